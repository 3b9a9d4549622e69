//! Wrong arguments are errors with a status and a sentence, and the objects work on.

mod common;

use common::{library, refused, tiny, world, World};
use duet::*;

#[test]
fn layers_that_do_not_exist() {
    let library = Library::new(LibraryOptions { layers: Some("nonsense"), ..Default::default() }).unwrap();
    refused(Model::load(&library, tiny(), Default::default()).map(|_| ()), Status::NotFound, "there is no layer nonsense");
}

#[test]
fn lengths_that_do_not_fit() {
    let World { mut state, mut session, mut sampler, .. } = world();
    let mut batch = |lengths: Option<&[u32]>, slots: Option<&[u32]>| {
        session.forward_batch(&mut state, Batch { tokens: &[1, 2, 3], lengths, slots }, Default::default()).map(|rows| rows.len())
    };
    refused(batch(Some(&[2]), None), Status::Invalid, "tokens has 3 elements; 2");
    refused(batch(Some(&[4]), None), Status::Invalid, "4 are needed");
    refused(batch(Some(&[1, 2]), Some(&[0])), Status::Invalid, "slots has 1");
    refused(batch(Some(&[1, 2]), Some(&[0, 0])), Status::Invalid, "twice");
    assert_eq!(batch(Some(&[1, 2]), None), Ok(2));
    refused(session.forward(&mut state, 7, &[1], Default::default()), Status::Invalid, "slot 7");
    refused(session.forward(&mut state, 0, &[1, 256], Default::default()), Status::Invalid, "token 256 at position 1");
    refused(session.score(&mut state, 0, &[]), Status::Limit, "0 tokens");
    refused(session.generate(&mut state, 0, &mut sampler, &[], Default::default()), Status::Invalid, "empty");

    let (mut small, mut nan) = (vec![0.0; 5], vec![0.0; state.x_size()]);
    nan[1] = f32::NAN;
    refused(state.set(0, Some(&small), None, None), Status::Invalid, "att_x has 5");
    refused(state.get_into(0, None, Some(&mut small), None), Status::Invalid, "wkv has 5");
    refused(state.set(0, None, None, Some(&nan)), Status::Numeric, "ffn_x");
    refused(state.load(0, &[]), Status::Format, "");
    refused(state.reset(2), Status::Invalid, "slot 2");
    refused(sampler.probs_into(&nan, &mut small), Status::Invalid, "out has 5");
    refused(sampler.probs(&nan), Status::Numeric, "token 1");
    refused(sampler.pick(&[]), Status::Invalid, "0 logits");
}

#[test]
fn names_that_are_wrong() {
    let World { library, model, mut state, mut session, mut sampler } = world();
    let load = |path: &str, device| Model::load(&library, path, ModelOptions { device, ..Default::default() }).map(|_| ());
    refused(load("no such file", None), Status::NotFound, "no such file");
    refused(load("tiny\0.pth", None), Status::Invalid, "path holds a NUL");
    refused(load(tiny().to_str().unwrap(), Some("tpu")), Status::NotFound, "tpu");
    refused(load(tiny().to_str().unwrap(), Some("c\0pu")), Status::Invalid, "device holds a NUL");
    let random = RandomOptions { shape: "9b", ..Default::default() };
    refused(Model::random(&library, random, Default::default()).map(|_| ()), Status::Invalid, "9b");
    refused(Sampler::new(SamplerOptions { temperature: -1.0, ..Default::default() }).map(|_| ()), Status::Invalid, "temperature");
    refused(State::new(&model, 0).map(|_| ()), Status::Limit, "n_slots");
    refused(Tokenizer::for_model(&model).map(|_| ()), Status::NotFound, "vocab.txt");
    let mut on_text = |_: &str| std::ops::ControlFlow::Continue(());
    let options = GenerateOptions { on_text: Some(&mut on_text), ..Default::default() };
    refused(session.generate(&mut state, 0, &mut sampler, &[0], options), Status::Invalid, "needs a tokenizer");
}

#[test]
fn what_is_wrong_with_a_sequence_of_a_batch() {
    let World { mut state, mut session, mut sampler, .. } = world();
    let mut other = Sampler::new(Default::default()).unwrap();
    let mut batch = |tokens: &[i32], slot, options: GenerateOptions| {
        let first = Prompt { tokens: &[1], slot: None, sampler: &mut sampler, options: GenerateOptions { max_tokens: 2, ..Default::default() } };
        session.generate_batch(&mut state, vec![first, Prompt { tokens, slot, sampler: &mut other, options }]).map(|results| results.len())
    };
    refused(batch(&[], None, Default::default()), Status::Invalid, "sequence 1 is empty");
    refused(batch(&[256], None, Default::default()), Status::Invalid, "token 256");
    refused(batch(&[1], Some(0), Default::default()), Status::Invalid, "slot 0 stands twice");
    refused(batch(&[1], Some(2), Default::default()), Status::Invalid, "slot 2");
    refused(batch(&[1], None, GenerateOptions { stop_texts: &["a\0"], ..Default::default() }), Status::Invalid, "a stop text holds a NUL");
    let mut on_text = |_: &str| std::ops::ControlFlow::Continue(());
    refused(batch(&[1], None, GenerateOptions { on_text: Some(&mut on_text), ..Default::default() }), Status::Invalid, "needs a tokenizer");
    assert_eq!(batch(&[1], None, GenerateOptions { max_tokens: 2, ..Default::default() }), Ok(2));
    let only_empty = Prompt { tokens: &[], slot: None, sampler: &mut other, options: Default::default() };
    refused(session.generate_batch(&mut state, [only_empty]), Status::Invalid, "sequence 0 is empty");
    assert_eq!(session.generate_batch(&mut state, []), Ok(vec![]));
}

#[test]
fn a_handle_that_was_freed_behind_the_owners_back_is_an_error_twice_freed_too() {
    let World { mut state, mut session, .. } = world();
    // SAFETY: the library checks handles, which is what this test is about.
    unsafe { sys::duet_session_free(session.as_ptr()) };
    refused(session.forward(&mut state, 0, &[1], Default::default()), Status::Handle, "not live");
}

#[test]
fn a_state_belongs_to_a_model() {
    let World { model, mut session, .. } = world();
    let mut other = world();
    refused(session.forward(&mut other.state, 0, &[1], Default::default()), Status::Invalid, "another model");
    let mut state = State::new(&model, 1).unwrap();
    state.copy_from(0, &other.state, 0).unwrap(); // of one shape
    assert_eq!(session.forward(&mut state, 0, &[1], Default::default()).unwrap().len(), 1);
}

#[test]
fn statuses_have_the_names_of_c() {
    let status = Model::load(&library(), "no such file", Default::default()).map(|_| ()).unwrap_err().status();
    assert_eq!((status.code(), status.name().as_str()), (sys::DUET_E_NOT_FOUND, "DUET_E_NOT_FOUND"));
    assert_eq!((Status::Other(-99).code(), Status::Other(-99).name().as_str()), (-99, "DUET_E_UNKNOWN"));
}
