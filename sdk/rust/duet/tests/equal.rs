//! The binding gives the bits that the C interface gives.

mod common;

use common::{library, load, stories, variable, Folder, TEXT};
use duet::{Finish, GenerateOptions, Mode, Outputs, Sampler, SamplerOptions, Session, SessionOptions, State, Tokenizer};
use std::fs;
use std::ops::ControlFlow;
use std::process::Command;

fn bytes_of_f32(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_ne_bytes()).collect()
}

fn compare(device: &str) {
    let folder = Folder::new("equal");
    let done = Command::new(variable("DUET_TEST_C_RESULTS")).arg(stories()).args([device, folder.join("").to_str().unwrap()]).status().unwrap();
    assert!(done.success());
    let same = |name: &str, got: Vec<u8>| assert!(got == fs::read(folder.join(name)).unwrap(), "{} differs from C on {}", name, device);

    let library = library();
    let model = load(&library, stories(), device);
    let tokenizer = Tokenizer::for_model(&model).unwrap();
    let mut state = State::new(&model, 3).unwrap();
    let session = |mode| Session::new(&model, SessionOptions { mode, ..Default::default() }).unwrap();
    let (mut parallel, mut recurrent) = (session(Mode::Parallel), session(Mode::Recurrent));
    let mut tokens = vec![0];
    tokens.extend(tokenizer.encode(TEXT).unwrap());

    let all = Outputs { all_rows: true, hidden: true, v_first: true, ..Default::default() };
    let logits = parallel.forward(&mut state, 0, &tokens, all).unwrap();
    assert_eq!((logits.len(), logits.width()), (tokens.len(), model.info().unwrap().n_vocab as usize));
    same("logits", bytes_of_f32(logits.as_slice()));
    let mut sampler =
        Sampler::new(SamplerOptions { temperature: 0.8, top_p: 0.7, presence: 0.25, seed: 7, tokenizer: Some(&tokenizer), ..Default::default() }).unwrap();
    same("probs", bytes_of_f32(&sampler.probs(logits.last().unwrap()).unwrap()));
    same("hidden", bytes_of_f32(parallel.hidden().unwrap().as_slice()));
    same("v_first", bytes_of_f32(parallel.v_first().unwrap().as_slice()));
    same("nll", recurrent.score(&mut state, 1, &tokens).unwrap().iter().flat_map(|x| x.to_ne_bytes()).collect());
    same("state", state.save(1).unwrap());

    let mut shown = String::new();
    let mut show = |text: &str| {
        shown.push_str(text);
        ControlFlow::Continue(())
    };
    let options =
        GenerateOptions { max_tokens: 50, tokenizer: Some(&tokenizer), stop_texts: &["nothing says this"], on_text: Some(&mut show), ..Default::default() };
    let result = parallel.generate(&mut state, 2, &mut sampler, &tokens, options).unwrap();
    same("text", result.text.clone().into_bytes());
    same("text", shown.into_bytes());
    assert_eq!((result.finish, result.n_new, result.n_prompt), (Finish::Length, 50, tokens.len() as u64));
    assert_eq!(tokenizer.decode(&result.tokens).unwrap(), result.text.into_bytes());
}

#[test]
fn every_backend_gives_the_bits_of_c() {
    let devices: Vec<String> = library().devices().unwrap().into_iter().map(|device| device.spec).collect();
    assert!(devices.contains(&"reference:0".to_string()));
    devices.iter().for_each(|device| compare(device));
}
