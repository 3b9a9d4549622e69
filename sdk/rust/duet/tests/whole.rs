//! What there is beside the forward pass: batches, states, files, tokenizers, samplers, stops.

mod common;

use common::{load, refused, tiny, variable, world, Folder, World, TEXT};
use duet::*;
use std::ops::ControlFlow::Continue;

#[test]
fn a_batch_is_its_sequences() {
    let World { model, mut state, mut session, .. } = world();
    let batch = Batch { tokens: &[1, 2, 3, 4, 5], lengths: Some(&[2, 3]), slots: Some(&[1, 0]) };
    let rows = session.forward_batch(&mut state, batch, Default::default()).unwrap();
    let rows: Vec<Vec<f32>> = rows.iter().map(<[f32]>::to_vec).collect();
    assert_eq!(rows.len(), 2);
    for (row, (tokens, slot)) in rows.iter().zip([(&[1, 2][..], 1), (&[3, 4, 5][..], 0)]) {
        let mut other = State::new(&model, 2).unwrap();
        assert_eq!(session.forward(&mut other, slot, tokens, Default::default()).unwrap().as_slice(), row);
        assert_eq!(other.get(slot).unwrap(), state.get(slot).unwrap());
    }
    let single = Batch { tokens: &[1, 2], ..Default::default() }; // one token each, slots 0 and 1
    assert_eq!(session.forward_batch(&mut state, single, Default::default()).unwrap().len(), 2);
}

#[test]
fn outputs_that_were_not_asked_for_have_no_rows() {
    let World { mut state, mut session, .. } = world();
    assert!(session.forward(&mut state, 0, &[], Default::default()).unwrap().is_empty());
    let outputs = Outputs { logits: false, hidden: true, ..Default::default() };
    let logits = session.forward(&mut state, 0, &[1, 2], outputs).unwrap();
    assert!(logits.is_empty() && logits.get(0).is_none() && logits.last().is_none());
    assert!(session.v_first().unwrap().is_empty());
    let hidden = session.hidden().unwrap();
    assert_eq!((hidden.len(), hidden.width()), (1, 128));
    assert_eq!(hidden.get(0), Some(hidden.as_slice()));
    assert!(hidden.get(1).is_none());
}

#[test]
fn states_are_forked_set_saved_and_loaded() {
    let World { library, model, mut state, mut session, .. } = world();
    let folder = Folder::new("states");
    session.forward(&mut state, 1, &[1, 2, 3], Default::default()).unwrap();
    let want = state.get(1).unwrap();
    let fresh = state.get(0).unwrap();
    assert_ne!(fresh, want);
    state.copy_slot(1, 0).unwrap();
    assert_eq!(state.get(0).unwrap(), want);
    let mut other = State::new(&model, 1).unwrap();
    other.copy_from(0, &state, 1).unwrap();
    assert_eq!(other.get(0).unwrap(), want);
    other.reset(0).unwrap();
    assert_eq!(other.get(0).unwrap(), fresh);
    other.load(0, &state.save(1).unwrap()).unwrap();
    assert_eq!(other.get(0).unwrap(), want);
    other.reset(0).unwrap();
    state.save_file(1, folder.join("state")).unwrap();
    other.load_file(0, folder.join("state")).unwrap();
    assert_eq!(other.get(0).unwrap(), want);
    assert!(library.file_info(folder.join("state"), FileFlags { verify: true, ..Default::default() }).unwrap().contains("state"));
    other.reset(0).unwrap();
    other.set(0, Some(&want.att_x), None, Some(&want.ffn_x)).unwrap();
    assert_eq!(other.get(0).unwrap(), StateArrays { wkv: fresh.wkv, ..want.clone() });
    let mut wkv = vec![0.0; state.wkv_size()];
    state.get_into(1, None, Some(&mut wkv), None).unwrap();
    assert_eq!(wkv, want.wkv);
    assert_eq!((state.n_slots(), state.x_size()), (2, 3 * 128));
}

#[test]
fn library_files_and_models_tell_what_c_tells() {
    let World { library, model, mut state, mut session, .. } = world();
    let folder = Folder::new("files");
    assert!(version().starts_with(env!("CARGO_PKG_VERSION")));
    assert!(library.report().unwrap().contains("\"plugins\""));
    let devices = library.devices().unwrap();
    assert_eq!(devices.last().map(|d| (d.spec.as_str(), d.plugin.as_str(), d.kind)), Some(("reference:0", "built in", DeviceKind::Cpu)));
    let info = model.info().unwrap();
    assert_eq!((info.n_layer, info.n_embd, info.n_vocab, info.weights, info.device.as_str()), (3, 128, 256, Dtype::Bf16, "reference:0"));
    assert_eq!(info.state_bytes as usize, 4 * (2 * state.x_size() + state.wkv_size()));

    let mut last = (0, 1);
    let mut progress = |done, total| {
        last = (done, total);
        Continue(())
    };
    model.save(folder.join("saved")).unwrap();
    let options = ConvertOptions { weights: Some(Dtype::F32), progress: Some(&mut progress), ..Default::default() };
    library.convert(tiny(), folder.join("converted"), options).unwrap();
    assert_eq!(last.0, last.1);
    refused(library.convert(tiny(), folder.join("converted"), Default::default()), Status::Exists, "converted");
    for dtype in [Dtype::Q8, Dtype::Q4] {
        let file = folder.join(&format!("{:?}", dtype));
        library.convert(tiny(), &file, ConvertOptions { weights: Some(dtype), ..Default::default() }).unwrap();
        let quantised = load(&library, &file, "reference").info().unwrap();
        assert_eq!(quantised.weights, dtype);
        assert!(quantised.weight_bytes < info.weight_bytes);
    }
    let options = InitOptions { n_layer: 2, n_embd: 64, n_vocab: 32, seed: 3, ..Default::default() };
    library.init(folder.join("fresh"), options).unwrap();
    assert_eq!(load(&library, folder.join("fresh"), "reference").info().unwrap().n_vocab, 32);

    let want = session.forward(&mut state, 0, &[1, 2, 3], Default::default()).unwrap();
    for name in ["saved", "converted"] {
        let options = ModelOptions { device: Some("reference"), weights: Some(Dtype::Bf16), ..Default::default() };
        let model = Model::load(&library, folder.join(name), options).unwrap();
        let (mut session, mut state) = (Session::new(&model, Default::default()).unwrap(), State::new(&model, 1).unwrap());
        assert_eq!(session.forward(&mut state, 0, &[1, 2, 3], Default::default()).unwrap().as_slice(), want.as_slice());
    }
}

#[test]
fn text_becomes_tokens_and_comes_back() {
    let World { library, .. } = world();
    let world = Tokenizer::world(&library).unwrap();
    assert_eq!(world.size().unwrap(), 65530);
    for text in [&b""[..], "caf\u{e9} \0 \u{4f60}".as_bytes(), b"\xff end"] {
        assert_eq!(world.decode(&world.encode(text).unwrap()).unwrap(), text);
    }
    let stories = Tokenizer::load(&library, variable("DUET_TEST_SOURCE").join("models/stories-7m/vocab.txt")).unwrap();
    assert_eq!(stories.decode(&stories.encode(TEXT).unwrap()).unwrap(), TEXT.as_bytes());
}

#[test]
fn samplers_draw() {
    let logits = [0.0, 1.0, 2.0, 3.0];
    let pick = |options: SamplerOptions<'_>| Sampler::new(options).unwrap().pick(&logits).unwrap();
    let greedy = SamplerOptions { temperature: 0.0, ..Default::default() };
    assert_eq!(pick(greedy), 3);
    assert_eq!(pick(SamplerOptions { bias: &[(3, f32::NEG_INFINITY)], ..greedy }), 2);
    let mut penalised = Sampler::new(SamplerOptions { presence: 100.0, ..greedy }).unwrap();
    penalised.accept(3).unwrap();
    assert_eq!(penalised.pick(&logits).unwrap(), 2);
    penalised.reset().unwrap();
    assert_eq!(penalised.pick(&logits).unwrap(), 3);
    let total: f32 = Sampler::new(Default::default()).unwrap().probs(&logits).unwrap().iter().sum();
    assert!((total - 1.0).abs() < 1e-5);
}

#[test]
fn defaults_of_samplers_are_those_of_c() {
    let mut c = sys::duet_sampler_options::default();
    // SAFETY: `size` is set.
    assert_eq!(unsafe { sys::duet_sampler_options_default(&mut c) }, sys::DUET_OK);
    let ours = SamplerOptions::default();
    assert_eq!((ours.top_k, ours.temperature, ours.top_p, ours.min_p), (c.top_k, c.temperature, c.top_p, c.min_p));
    assert_eq!((ours.presence, ours.frequency, ours.decay, ours.seed, ours.sequence), (c.presence, c.frequency, c.decay, c.seed, c.sequence));
}

#[test]
fn stops_end_a_text() {
    let World { library, mut state, mut session, .. } = world();
    let tokenizer = Tokenizer::world(&library).unwrap();
    let mut greedy = Sampler::new(SamplerOptions { temperature: 0.0, ..Default::default() }).unwrap();
    let mut generate = |stops: &[i32], stop_texts: &[&str]| {
        state.reset(0).unwrap();
        let options = GenerateOptions { max_tokens: 20, tokenizer: Some(&tokenizer), stops, stop_texts, ..Default::default() };
        session.generate(&mut state, 0, &mut greedy, &[0], options).unwrap()
    };
    let whole = generate(&[], &[]);
    assert_eq!((whole.finish, whole.tokens.len()), (Finish::Length, 20));
    let stop = whole.tokens[5];
    let first = whole.tokens.iter().position(|&token| token == stop).unwrap();
    let stopped = generate(&[stop], &[]);
    assert_eq!((stopped.finish, &stopped.tokens[..], stopped.n_new), (Finish::StopToken, &whole.tokens[..first], first as u64 + 1));
    let letter = whole.text.chars().skip(1).find(char::is_ascii_alphabetic).unwrap().to_string();
    let stopped = generate(&[], &[&letter]);
    assert_eq!((stopped.finish, &stopped.text[..]), (Finish::StopText, &whole.text[..whole.text.find(&letter).unwrap()]));
}

#[test]
fn token_0_ends_a_text_unless_there_are_no_stops() {
    let World { mut state, mut session, .. } = world();
    let mut always_0 = Sampler::new(SamplerOptions { bias: &[(0, 1e6)], ..Default::default() }).unwrap();
    let ended = session.generate(&mut state, 0, &mut always_0, &[1], Default::default()).unwrap();
    assert_eq!((ended.finish, ended.n_new, ended.tokens), (Finish::StopToken, 1, vec![]));
    let options = GenerateOptions { max_tokens: 3, stops: &[], ..Default::default() };
    let went_on = session.generate(&mut state, 0, &mut always_0, &[1], options).unwrap();
    assert_eq!((went_on.finish, went_on.tokens), (Finish::Length, vec![0; 3]));
}
