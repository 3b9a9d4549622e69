//! chat MODEL: tells a story together with you. Each line that you type is added to it, then the model goes on. An empty
//! line (or the end of the input) ends the story.

use duet::{Finish, GenerateOptions, Library, Model, Sampler, SamplerOptions, Session, State, Tokenizer};
use std::error::Error;
use std::io::{self, BufRead, Write};
use std::ops::ControlFlow;

fn chat(path: &str) -> Result<(), Box<dyn Error>> {
    let library = Library::new(Default::default())?;
    let model = Model::load(&library, path, Default::default())?;
    let tokenizer = Tokenizer::for_model(&model)?;
    let mut state = State::new(&model, 1)?; // all that the model remembers of the story
    let mut session = Session::new(&model, Default::default())?; // reads your lines in parallel, goes on token by token
    let mut sampler = Sampler::new(SamplerOptions { temperature: 0.8, top_p: 0.7, seed: 1, ..Default::default() })?;
    let mut show = |text: &str| match print(text) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };

    let mut unread = vec![0]; // what the state has not read yet: token 0 begins a text
    let mut lines = io::stdin().lock().lines();
    loop {
        print("> ")?;
        let line = lines.next().transpose()?.unwrap_or_default();
        if line.is_empty() {
            return Ok(());
        }
        unread.extend(tokenizer.encode(line)?);
        let options = GenerateOptions { max_tokens: 60, tokenizer: Some(&tokenizer), on_text: Some(&mut show), ..Default::default() };
        let turn = session.generate(&mut state, 0, &mut sampler, &unread, options)?;
        print("\n")?;
        unread.clear();
        unread.extend(turn.tokens.last());
        if turn.finish == Finish::StopToken {
            // the story ended: the next line begins another
            state.reset(0)?;
            unread = vec![0];
        }
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.len() != 2 {
        eprintln!("usage: chat MODEL");
        std::process::exit(2);
    }
    if let Err(error) = chat(&arguments[1]) {
        eprintln!("chat: {}", error);
        std::process::exit(1);
    }
}
