//! Generation: reads a prompt, draws tokens, streams them, stops.

use crate::argument::{c_string, count};
use crate::callback::Panics;
use crate::error::{check, Error, Result};
use crate::{sys, Sampler, Session, State, Tokenizer};
use std::ffi::CString;
use std::ops::ControlFlow;
use std::os::raw::{c_char, c_void};
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicI32, Ordering};

/// Stops generations: from any thread, from a callback, from a signal handler.
#[derive(Debug, Default)]
pub struct Cancel(AtomicI32);

impl Cancel {
    /// Not requested. Also for statics.
    pub const fn new() -> Cancel {
        Cancel(AtomicI32::new(0))
    }

    /// Ends the calls that it was given to, and later ones.
    pub fn request(&self) {
        self.0.store(1, Ordering::Relaxed);
    }

    /// Takes the request back.
    pub fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Whether it was requested.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// The library reads it as C reads a volatile int.
    fn as_ptr(&self) -> *const i32 {
        (&self.0 as *const AtomicI32).cast()
    }
}

/// Told each token that is drawn; `Break` stops.
pub type OnToken<'a> = &'a mut (dyn FnMut(i32) -> ControlFlow<()> + 'a);
/// Shown whole characters, never part of a stop text; `Break` stops.
pub type OnText<'a> = &'a mut (dyn FnMut(&str) -> ControlFlow<()> + 'a);

/// How to generate.
pub struct GenerateOptions<'a> {
    /// New tokens; 0 = 256.
    pub max_tokens: u32,
    /// Needed for text.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Tokens that end the text.
    pub stops: &'a [i32],
    /// Texts that end the text, and that are not shown.
    pub stop_texts: &'a [&'a str],
    /// None = nobody is told.
    pub on_token: Option<OnToken<'a>>,
    /// None = it is only collected in the result.
    pub on_text: Option<OnText<'a>>,
    /// Looked at between tokens, and between pieces of the prompt.
    pub cancel: Option<&'a Cancel>,
}

/// 256 tokens, up to token 0.
impl Default for GenerateOptions<'_> {
    fn default() -> Self {
        GenerateOptions { max_tokens: 256, tokenizer: None, stops: &[0], stop_texts: &[], on_token: None, on_text: None, cancel: None }
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// `max_tokens` were drawn.
    Length,
    /// A token of `stops` was drawn.
    StopToken,
    /// A text of `stop_texts` came.
    StopText,
    /// A callback said `Break`.
    Callback,
    /// [`Cancel::request`] was called: somebody asked for it, so it is no error.
    Cancelled,
    /// Of a sequence of [`Session::generate_batch`]: a logit was NaN or infinite, or all tokens were banned, and the slot is
    /// undefined. [`Session::generate`] fails then.
    Numeric,
}

/// What was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateResult {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens read.
    pub n_prompt: u64,
    /// Tokens drawn, a stop token included.
    pub n_new: u64,
    /// Seconds for the prompt; of prompts that are read together, until this one was.
    pub prompt_s: f64,
    /// Seconds for the new tokens.
    pub new_s: f64,
    /// Drawn, without a stop token. If none came, the slot has read all of them but the last: feed that one to go on.
    pub tokens: Vec<i32>,
    /// Of these tokens, up to a stop text; empty without a tokenizer.
    pub text: String,
}

/// A sequence of [`Session::generate_batch`].
pub struct Prompt<'a, 'o> {
    /// 1 or more.
    pub tokens: &'a [i32],
    /// Its own slot of the state. None = its place in the batch.
    pub slot: Option<u32>,
    /// Draws its tokens.
    pub sampler: &'a mut Sampler,
    /// Its own, closures and cancel too.
    pub options: GenerateOptions<'o>,
}

/// What the callbacks of one sequence share.
struct Stream<'a, 'p> {
    on_token: Option<OnToken<'a>>,
    on_text: Option<OnText<'a>>,
    tokens: Vec<i32>,
    text: String,
    panics: &'p Panics, // all sequences of the call
}

impl Stream<'_, '_> {
    fn result(self, status: sys::duet_status, r: &sys::duet_generate_result) -> GenerateResult {
        GenerateResult {
            finish: match (status, r.finish) {
                (sys::DUET_E_CANCELLED, _) => Finish::Cancelled,
                (sys::DUET_E_NUMERIC, _) => Finish::Numeric,
                (_, sys::DUET_FINISH_STOP_TOKEN) => Finish::StopToken,
                (_, sys::DUET_FINISH_STOP_TEXT) => Finish::StopText,
                (_, sys::DUET_FINISH_CALLBACK) => Finish::Callback,
                _ => Finish::Length,
            },
            n_prompt: r.n_prompt,
            n_new: r.n_new,
            prompt_s: r.prompt_s,
            new_s: r.new_s,
            tokens: self.tokens,
            text: self.text,
        }
    }
}

unsafe extern "C" fn on_token(user: *mut c_void, token: i32) -> sys::duet_status {
    // SAFETY: `user` is the Stream of the sequence, which nobody else uses meanwhile.
    let Stream { on_token, tokens, panics, .. } = unsafe { &mut *user.cast::<Stream<'_, '_>>() };
    panics.run(|| {
        tokens.push(token);
        on_token.as_mut().map_or(ControlFlow::Continue(()), |closure| closure(token))
    })
}

unsafe extern "C" fn on_text(user: *mut c_void, shown: *const c_char, n: usize) -> sys::duet_status {
    // SAFETY: as above; the library gives n bytes.
    let (Stream { on_text, text, panics, .. }, shown) = unsafe { (&mut *user.cast::<Stream<'_, '_>>(), slice::from_raw_parts(shown.cast::<u8>(), n)) };
    panics.run(|| {
        let shown = String::from_utf8_lossy(shown); // borrows: the library gives whole characters
        text.push_str(&shown);
        on_text.as_mut().map_or(ControlFlow::Continue(()), |closure| closure(&shown))
    })
}

/// Options in C, with what they point to.
struct COptions {
    options: sys::duet_generate_options, // its user is set when the stream has its place
    _stop_texts: Vec<CString>,
    _stop_pointers: Vec<*const c_char>,
}

impl COptions {
    fn new<'a, 'p>(options: GenerateOptions<'a>, panics: &'p Panics) -> Result<(COptions, Stream<'a, 'p>)> {
        if options.on_text.is_some() && options.tokenizer.is_none() {
            return Err(Error::invalid("on_text needs a tokenizer: set it in the options"));
        }
        let stop_texts = options.stop_texts.iter().map(|&text| c_string(text, "a stop text")).collect::<Result<Vec<CString>>>()?;
        let stop_pointers: Vec<*const c_char> = stop_texts.iter().map(|text| text.as_ptr()).collect();
        let o = sys::duet_generate_options {
            max_tokens: options.max_tokens,
            tokenizer: options.tokenizer.map_or(ptr::null_mut(), Tokenizer::as_ptr),
            stops: options.stops.as_ptr(), // never NULL, which would mean token 0
            n_stops: count(options.stops.len(), "stops")?,
            stop_texts: stop_pointers.as_ptr(),
            n_stop_texts: count(stop_pointers.len(), "stop_texts")?,
            on_token: Some(on_token),
            on_text: options.tokenizer.map(|_| on_text as unsafe extern "C" fn(*mut c_void, *const c_char, usize) -> sys::duet_status),
            cancel: options.cancel.map_or(ptr::null(), Cancel::as_ptr),
            ..Default::default()
        };
        let stream = Stream { on_token: options.on_token, on_text: options.on_text, tokens: Vec::new(), text: String::new(), panics };
        Ok((COptions { options: o, _stop_texts: stop_texts, _stop_pointers: stop_pointers }, stream))
    }
}

impl Session {
    /// Reads the prompt in the session's mode, then draws tokens recurrently. An empty prompt is an error: token 0 begins a
    /// text.
    ///
    /// The callbacks cannot reach the objects of the call, which C would answer with `DUET_E_BUSY`:
    ///
    /// ```compile_fail,E0499
    /// # fn f(session: &mut duet::Session, state: &mut duet::State, sampler: &mut duet::Sampler) -> duet::Result<()> {
    /// let mut on_token = |_| {
    ///     state.reset(0).unwrap();
    ///     std::ops::ControlFlow::Continue(())
    /// };
    /// let options = duet::GenerateOptions { on_token: Some(&mut on_token), ..Default::default() };
    /// session.generate(state, 0, sampler, &[0], options)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn generate(&mut self, state: &mut State, slot: u32, sampler: &mut Sampler, prompt: &[i32], options: GenerateOptions<'_>) -> Result<GenerateResult> {
        let panics = Panics::default();
        let (mut o, mut stream) = COptions::new(options, &panics)?;
        o.options.user = (&mut stream as *mut Stream<'_, '_>).cast();
        let mut r = sys::duet_generate_result::default();
        // SAFETY: all arguments live through the call; nobody else has session, state, sampler or stream.
        let status = unsafe { sys::duet_generate(self.as_ptr(), state.as_ptr(), slot, sampler.as_ptr(), prompt.as_ptr(), prompt.len(), &o.options, &mut r) };
        panics.resume();
        if status != sys::DUET_E_CANCELLED {
            check(status)?;
        }
        Ok(stream.result(status, &r))
    }

    /// [`Session::generate`] for many sequences at once: prompts are read together, then a token of every sequence is drawn in
    /// each step. Returns a result per sequence.
    ///
    /// A sequence that ends drops out, and the others go on. So does one that is cancelled, or that has no logits to draw from,
    /// which is [`Finish::Numeric`] and no error of the call. Closures of one sequence are called in order, those of several are
    /// mixed; a panic in one stops all.
    pub fn generate_batch<'a, 'o>(&mut self, state: &mut State, prompts: impl IntoIterator<Item = Prompt<'a, 'o>>) -> Result<Vec<GenerateResult>> {
        let panics = Panics::default();
        let (mut tokens, mut lengths, mut slots, mut samplers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut options, mut streams) = (Vec::new(), Vec::new());
        for (i, prompt) in (0..).zip(prompts) {
            tokens.extend_from_slice(prompt.tokens);
            lengths.push(count(prompt.tokens.len(), "tokens")?);
            slots.push(prompt.slot.unwrap_or(i));
            samplers.push(prompt.sampler.as_ptr());
            let (o, stream) = COptions::new(prompt.options, &panics)?;
            options.push(o);
            streams.push(stream);
        }
        // From here to the end of the call the vectors stay as they are.
        let first: *mut Stream<'_, '_> = streams.as_mut_ptr();
        for (i, o) in options.iter_mut().enumerate() {
            o.options.user = first.wrapping_add(i).cast();
        }
        let mut results = vec![sys::duet_generate_result::default(); lengths.len()];
        let c_options: Vec<*const sys::duet_generate_options> = options.iter().map(|o| &o.options as *const _).collect();
        let c_results: Vec<*mut sys::duet_generate_result> = results.iter_mut().map(|r| r as *mut _).collect();
        let c_prompts = sys::duet_prompts {
            n_seqs: count(lengths.len(), "prompts")?,
            tokens: tokens.as_ptr(),
            lengths: lengths.as_ptr(),
            slots: slots.as_ptr(),
            samplers: samplers.as_ptr(),
            options: c_options.as_ptr(),
            ..Default::default()
        };
        // SAFETY: as above; the prompts borrow their samplers for 'a.
        let status = unsafe { sys::duet_generate_batch(self.as_ptr(), state.as_ptr(), &c_prompts, c_results.as_ptr()) };
        panics.resume();
        let of_a_sequence = |r: &sys::duet_generate_result| matches!(r.status, sys::DUET_E_CANCELLED | sys::DUET_E_NUMERIC);
        if !results.iter().any(of_a_sequence) {
            check(status)?; // else the others have results
        }
        Ok(streams.into_iter().zip(&results).map(|(stream, r)| stream.result(r.status, r)).collect())
    }
}
