//! What the tests share. The variables come from ctest (tests/bindings/CMakeLists.txt).
#![allow(dead_code)] // each test program uses its own part

use duet::{Library, LibraryOptions, Model, ModelOptions, Result, Sampler, Session, State, Status};
use std::env;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;

pub const TEXT: &str = "Once upon a time there was a little fox who lived in the wood."; // as in c_results.c

pub fn variable(name: &str) -> PathBuf {
    env::var_os(name).unwrap_or_else(|| panic!("{} is not set; run these tests by `ctest -L bindings`", name)).into()
}

pub fn tiny() -> PathBuf {
    variable("DUET_TEST_GOLDEN").join("tiny.pth")
}

pub fn stories() -> PathBuf {
    variable("DUET_TEST_SOURCE").join("models/stories-7m/stories-7m.pth")
}

pub fn library() -> Library {
    Library::new(LibraryOptions { n_threads: 1, ..Default::default() }).unwrap()
}

pub fn load(library: &Library, path: impl AsRef<Path>, device: &str) -> Model {
    Model::load(library, path, ModelOptions { device: Some(device), ..Default::default() }).unwrap()
}

/// A small model on the reference backend, with a state, a session and a sampler.
pub struct World {
    pub library: Library,
    pub model: Model,
    pub state: State,
    pub session: Session,
    pub sampler: Sampler,
}

pub fn world() -> World {
    let library = library();
    let model = load(&library, tiny(), "reference");
    World {
        state: State::new(&model, 2).unwrap(),
        session: Session::new(&model, Default::default()).unwrap(),
        sampler: Sampler::new(Default::default()).unwrap(),
        library,
        model,
    }
}

/// The call failed with this status and a sentence that holds the word.
#[track_caller]
pub fn refused<T: Debug>(result: Result<T>, status: Status, word: &str) {
    let error = result.expect_err("nothing was refused");
    assert_eq!(error.status(), status, "{}", error);
    assert!(error.to_string().contains(word), "{:?} does not say {:?}", error.to_string(), word);
}

/// A folder of its own, gone with this.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path = env::temp_dir().join(format!("duet-rust-{}-{}", name, process::id()));
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
