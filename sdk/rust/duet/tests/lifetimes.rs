//! Owners are dropped in any order, move between threads, and share models.

mod common;

use common::{load, tiny, world, World};
use duet::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;

fn any_threads_at_once<T: Send + Sync>() {}
fn one_thread_at_a_time<T: Send>() {}

#[test]
fn threads_are_as_the_library_allows() {
    any_threads_at_once::<Library>();
    any_threads_at_once::<Model>();
    any_threads_at_once::<Tokenizer>();
    any_threads_at_once::<Cancel>();
    one_thread_at_a_time::<State>();
    one_thread_at_a_time::<Session>();
    one_thread_at_a_time::<Sampler>();
}

#[test]
fn objects_outlive_what_they_came_from() {
    let World { library, model, mut state, mut session, mut sampler } = world();
    let want = session.forward(&mut state, 0, &[0, 1], Default::default()).unwrap().as_slice().to_vec();
    state.reset(0).unwrap();
    drop(library);
    drop(model);
    assert_eq!(session.forward(&mut state, 0, &[0, 1], Default::default()).unwrap().as_slice(), want);
    let generated = session.generate(&mut state, 0, &mut sampler, &[0], Default::default());
    assert!(generated.is_ok());
    drop(session);
    assert!(state.get(0).is_ok());
}

#[test]
fn sessions_of_one_model_run_at_once() {
    let World { model, mut state, mut session, .. } = world();
    let tokens: Vec<i32> = (0..60).collect();
    let want = session.forward(&mut state, 0, &tokens, Default::default()).unwrap().as_slice().to_vec();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let (mut session, mut state) = (Session::new(&model, Default::default()).unwrap(), State::new(&model, 1).unwrap());
                for _ in 0..5 {
                    state.reset(0).unwrap();
                    assert_eq!(session.forward(&mut state, 0, &tokens, Default::default()).unwrap().as_slice(), want);
                }
            });
        }
    });
    let (moved, mut state) = (session, state);
    let rows = thread::spawn(move || {
        let mut session = moved;
        state.reset(0).unwrap();
        session.forward(&mut state, 0, &tokens, Default::default()).unwrap().as_slice().to_vec()
    });
    assert_eq!(rows.join().unwrap(), want);
}

#[test]
fn the_log_function_lives_as_long_as_anything_can_log_and_may_panic() {
    let messages = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&messages);
    let log: LogFunction = Box::new(move |_, _| {
        counter.fetch_add(1, Ordering::Relaxed);
        panic!("a log function that panics: this is part of the test");
    });
    let library = Library::new(LibraryOptions { log: Some(log), log_level: Some(LogLevel::Debug), ..Default::default() }).unwrap();
    assert!(!library.devices().unwrap().is_empty());
    let session = Session::new(&load(&library, tiny(), "reference"), Default::default()).unwrap();
    let tokenizer = Tokenizer::world(&library).unwrap();
    let sampler = Sampler::new(SamplerOptions { tokenizer: Some(&tokenizer), ..Default::default() }).unwrap();
    drop(library);
    assert!(messages.load(Ordering::Relaxed) > 0);
    drop(session);
    drop(tokenizer);
    assert_eq!(Arc::strong_count(&messages), 2); // the sampler keeps its tokenizer
    drop(sampler);
    assert_eq!(Arc::strong_count(&messages), 1);
}
