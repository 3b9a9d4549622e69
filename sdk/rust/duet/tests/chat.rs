//! The example tells the same story as the one in C++.

mod common;

use common::{stories, variable};
use std::env;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

fn story(program: &Path) -> Vec<u8> {
    let mut child = Command::new(program).arg(stories()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"Once upon a time\nBut then\n\n").unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success());
    done.stdout
}

#[test]
fn both_chats_tell_the_same_story() {
    // Cargo builds examples beside the folder of the tests' programs.
    let ours = env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/chat");
    let (ours, cpp) = (story(&ours), story(&variable("DUET_TEST_CHAT")));
    assert!(cpp.len() > 100);
    assert_eq!(String::from_utf8_lossy(&ours), String::from_utf8_lossy(&cpp));
}
