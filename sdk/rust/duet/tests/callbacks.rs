//! Closures stop a call, cancel it, and panic, without a panic crossing C.

mod common;

use common::{refused, tiny, world, Folder, World};
use duet::*;
use std::ops::ControlFlow::{Break, Continue};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// What the closure panicked with.
fn panic_of(call: impl FnOnce()) -> &'static str {
    catch_unwind(AssertUnwindSafe(call)).expect_err("nothing panicked").downcast_ref::<&'static str>().unwrap()
}

#[test]
fn progress_stops_a_load() {
    let World { library, .. } = world();
    let mut calls = 0;
    let mut stop = |_, _| {
        calls += 1;
        Break(())
    };
    let options = ModelOptions { progress: Some(&mut stop), ..Default::default() };
    refused(Model::load(&library, tiny(), options).map(|_| ()), Status::Cancelled, "progress");
    assert_eq!(calls, 1);
}

#[test]
fn a_panic_comes_out_of_the_call_and_the_closures_are_not_called_again() {
    let World { library, mut state, mut session, .. } = world();
    let folder = Folder::new("panic");
    let mut calls = 0;
    let mut fail = |_, _| {
        calls += 1;
        panic!("in progress")
    };
    let options = ConvertOptions { progress: Some(&mut fail), ..Default::default() };
    assert_eq!(panic_of(|| drop(library.convert(tiny(), folder.join("out"), options))), "in progress");
    assert_eq!(calls, 1);
    assert!(!folder.join("out").exists());

    let tokenizer = Tokenizer::world(&library).unwrap();
    // The library shows the text of the token at which on_token stopped: the binding must not.
    let letter = tokenizer.encode("a").unwrap()[0];
    let mut sampler = Sampler::new(SamplerOptions { bias: &[(letter, 1e6)], ..Default::default() }).unwrap();
    let (mut tokens, mut texts) = (0, 0);
    let mut on_token = |_| {
        tokens += 1;
        panic!("in on_token")
    };
    let mut on_text = |_: &str| {
        texts += 1;
        Continue(())
    };
    let options = GenerateOptions { tokenizer: Some(&tokenizer), stops: &[], on_token: Some(&mut on_token), on_text: Some(&mut on_text), ..Default::default() };
    assert_eq!(panic_of(|| drop(session.generate(&mut state, 0, &mut sampler, &[0, 1], options))), "in on_token");
    assert_eq!((tokens, texts), (1, 0));

    let mut on_text = |_: &str| panic!("in on_text");
    let options = GenerateOptions { tokenizer: Some(&tokenizer), stops: &[], on_text: Some(&mut on_text), ..Default::default() };
    assert_eq!(panic_of(|| drop(session.generate(&mut state, 0, &mut sampler, &[0, 1], options))), "in on_text");

    // and all work on
    assert_eq!(session.forward(&mut state, 0, &[1], Default::default()).unwrap().len(), 1);
}

#[test]
fn a_panic_in_a_batch_comes_out_of_it_and_no_closure_is_called_again() {
    let World { mut state, mut session, mut sampler, .. } = world();
    let mut other = Sampler::new(Default::default()).unwrap();
    let (mut calls, mut others) = (0, 0);
    let mut third_fails = |_| {
        calls += 1;
        if calls == 3 {
            panic!("in the third")
        }
        Continue(())
    };
    let mut counts = |_| {
        others += 1;
        Continue(())
    };
    let prompts = [
        Prompt {
            tokens: &[0],
            slot: None,
            sampler: &mut sampler,
            options: GenerateOptions { stops: &[], on_token: Some(&mut third_fails), ..Default::default() },
        },
        Prompt { tokens: &[0], slot: None, sampler: &mut other, options: GenerateOptions { stops: &[], on_token: Some(&mut counts), ..Default::default() } },
    ];
    assert_eq!(panic_of(|| drop(session.generate_batch(&mut state, prompts))), "in the third");
    assert_eq!((calls, others), (3, 2));
    assert_eq!(session.forward(&mut state, 0, &[1], Default::default()).unwrap().len(), 1);
}

#[test]
fn a_closure_stops_a_generation() {
    let World { mut state, mut session, mut sampler, .. } = world();
    let mut drawn = Vec::new();
    let mut on_token = |token| {
        drawn.push(token);
        if drawn.len() == 3 {
            return Break(());
        }
        Continue(())
    };
    let options = GenerateOptions { stops: &[], on_token: Some(&mut on_token), ..Default::default() };
    let result = session.generate(&mut state, 0, &mut sampler, &[0, 1], options).unwrap();
    assert_eq!((result.finish, result.n_new), (Finish::Callback, 3));
    assert_eq!(result.tokens, drawn);
}

#[test]
fn another_thread_cancels() {
    static CANCEL: Cancel = Cancel::new();
    let World { mut state, mut session, mut sampler, .. } = world();
    let drawn = AtomicUsize::new(0);
    let mut on_token = |_| {
        drawn.fetch_add(1, Ordering::Relaxed);
        Continue(())
    };
    let endless = GenerateOptions { max_tokens: 100_000_000, stops: &[], on_token: Some(&mut on_token), cancel: Some(&CANCEL), ..Default::default() };
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            while drawn.load(Ordering::Relaxed) < 5 {
                thread::yield_now();
            }
            CANCEL.request();
        });
        session.generate(&mut state, 0, &mut sampler, &[0, 1], endless).unwrap()
    });
    assert_eq!(result.finish, Finish::Cancelled);
    assert!(result.n_new >= 5);
    assert_eq!(result.tokens.len() as u64, result.n_new);
    assert!(CANCEL.is_requested());
    let mut again = |max_tokens| {
        let options = GenerateOptions { max_tokens, stops: &[], cancel: Some(&CANCEL), ..Default::default() };
        session.generate(&mut state, 0, &mut sampler, &[0], options).unwrap()
    };
    assert_eq!(again(3).n_prompt, 0);
    CANCEL.clear();
    assert_eq!(again(3).finish, Finish::Length);
}
