//! The binding gives the bits that the C interface gives.

mod common;

use common::{library, load, stories, variable, world, Folder, World, TEXT};
use duet::*;
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

/// The options of five sequences: text to its length, a closure that stops, a cancel, nothing to draw from, and a stop token.
fn with_options(tokenizer: &Tokenizer, mut call: impl FnMut([GenerateOptions<'_>; 5])) {
    let cancel = Cancel::new();
    let (mut sevenths, mut fourths) = (0, 0);
    let mut stops = |_| {
        sevenths += 1;
        if sevenths == 7 {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    let mut cancels = |_| {
        fourths += 1;
        if fourths == 4 {
            cancel.request();
        }
        ControlFlow::Continue(())
    };
    call([
        GenerateOptions { max_tokens: 12, tokenizer: Some(tokenizer), stops: &[], ..Default::default() },
        GenerateOptions { stops: &[], on_token: Some(&mut stops), ..Default::default() },
        GenerateOptions { stops: &[], on_token: Some(&mut cancels), cancel: Some(&cancel), ..Default::default() },
        Default::default(),
        GenerateOptions { stops: &[9], ..Default::default() },
    ])
}

#[test]
fn a_batch_of_generations_is_each_of_them() {
    const PROMPTS: [&[i32]; 5] = [&[1, 2, 3], &[4, 5], &[6], &[7, 8], &[9; 20]];
    const SLOTS: [u32; 5] = [4, 0, 3, 1, 2];
    let World { library, model, mut session, .. } = world();
    let tokenizer = Tokenizer::world(&library).unwrap();
    let mut state = State::new(&model, 5).unwrap();
    let never: Vec<(i32, f32)> = (0..256).map(|token| (token, f32::NEG_INFINITY)).collect();
    let only: Vec<(i32, f32)> = never.iter().copied().filter(|&(token, _)| token != 9).collect();
    let biases: [&[(i32, f32)]; 5] = [&[], &[], &[], &never, &only];
    let samplers = || -> Vec<Sampler> {
        let sampler = |(sequence, bias)| Sampler::new(SamplerOptions { temperature: 0.8, top_p: 0.7, seed: 7, sequence, bias, ..Default::default() });
        (0..).zip(biases).map(sampler).collect::<Result<_>>().unwrap()
    };

    let mut results = Vec::new();
    with_options(&tokenizer, |options| {
        let mut samplers = samplers();
        let prompts = PROMPTS.iter().zip(SLOTS).zip(&mut samplers).zip(options);
        let prompts = prompts.map(|(((tokens, slot), sampler), options)| Prompt { tokens, slot: Some(slot), sampler, options });
        results = session.generate_batch(&mut state, prompts).unwrap();
    });
    let finishes: Vec<Finish> = results.iter().map(|result| result.finish).collect();
    assert_eq!(finishes, [Finish::Length, Finish::Callback, Finish::Cancelled, Finish::Numeric, Finish::StopToken]);
    assert_eq!(results.iter().map(|result| result.n_new).collect::<Vec<_>>(), [12, 7, 4, 0, 1]);

    with_options(&tokenizer, |options| {
        for (i, (options, mut sampler)) in options.into_iter().zip(samplers()).enumerate() {
            let mut alone = State::new(&model, 1).unwrap();
            let got = &results[i];
            assert_eq!(got.n_prompt, PROMPTS[i].len() as u64);
            match session.generate(&mut alone, 0, &mut sampler, PROMPTS[i], options) {
                Ok(want) => {
                    assert_eq!((got.finish, &got.tokens, &got.text, got.n_new), (want.finish, &want.tokens, &want.text, want.n_new));
                    assert_eq!(state.save(SLOTS[i]).unwrap(), alone.save(0).unwrap());
                }
                Err(error) => assert_eq!((i, error.status()), (3, Status::Numeric)),
            }
        }
    });
}
