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
    /// Seconds for the prompt.
    pub prompt_s: f64,
    /// Seconds for the new tokens.
    pub new_s: f64,
    /// Drawn, without a stop token. If none came, the slot has read all of them but the last: feed that one to go on.
    pub tokens: Vec<i32>,
    /// Of these tokens, up to a stop text; empty without a tokenizer.
    pub text: String,
}

/// What the callbacks of C share.
struct Stream<'a> {
    on_token: Option<OnToken<'a>>,
    on_text: Option<OnText<'a>>,
    tokens: Vec<i32>,
    text: String,
    panics: Panics,
}

unsafe extern "C" fn on_token(user: *mut c_void, token: i32) -> sys::duet_status {
    // SAFETY: `user` is the Stream of the call, which nobody else uses meanwhile.
    let Stream { on_token, tokens, panics, .. } = unsafe { &mut *user.cast::<Stream<'_>>() };
    panics.run(|| {
        tokens.push(token);
        on_token.as_mut().map_or(ControlFlow::Continue(()), |closure| closure(token))
    })
}

unsafe extern "C" fn on_text(user: *mut c_void, shown: *const c_char, n: usize) -> sys::duet_status {
    // SAFETY: as above; the library gives n bytes.
    let (Stream { on_text, text, panics, .. }, shown) = unsafe { (&mut *user.cast::<Stream<'_>>(), slice::from_raw_parts(shown.cast::<u8>(), n)) };
    panics.run(|| {
        let shown = String::from_utf8_lossy(shown); // borrows: the library gives whole characters
        text.push_str(&shown);
        on_text.as_mut().map_or(ControlFlow::Continue(()), |closure| closure(&shown))
    })
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
        if options.on_text.is_some() && options.tokenizer.is_none() {
            return Err(Error::invalid("on_text needs a tokenizer: set it in the options"));
        }
        let stop_texts = options.stop_texts.iter().map(|&text| c_string(text, "a stop text")).collect::<Result<Vec<CString>>>()?;
        let stop_pointers: Vec<*const c_char> = stop_texts.iter().map(|text| text.as_ptr()).collect();
        let mut stream = Stream { on_token: options.on_token, on_text: options.on_text, tokens: Vec::new(), text: String::new(), panics: Panics::default() };
        let o = sys::duet_generate_options {
            max_tokens: options.max_tokens,
            tokenizer: options.tokenizer.map_or(ptr::null_mut(), Tokenizer::as_ptr),
            stops: options.stops.as_ptr(), // never NULL, which would mean token 0
            n_stops: count(options.stops.len(), "stops")?,
            stop_texts: stop_pointers.as_ptr(),
            n_stop_texts: count(stop_pointers.len(), "stop_texts")?,
            on_token: Some(on_token),
            on_text: options.tokenizer.map(|_| on_text as unsafe extern "C" fn(*mut c_void, *const c_char, usize) -> sys::duet_status),
            user: (&mut stream as *mut Stream<'_>).cast(),
            cancel: options.cancel.map_or(ptr::null(), Cancel::as_ptr),
            ..Default::default()
        };
        let mut r = sys::duet_generate_result::default();
        // SAFETY: all arguments live through the call; nobody else has session, state, sampler or stream.
        let status = unsafe { sys::duet_generate(self.as_ptr(), state.as_ptr(), slot, sampler.as_ptr(), prompt.as_ptr(), prompt.len(), &o, &mut r) };
        stream.panics.resume();
        if status != sys::DUET_E_CANCELLED {
            check(status)?;
        }
        Ok(GenerateResult {
            finish: match (status, r.finish) {
                (sys::DUET_E_CANCELLED, _) => Finish::Cancelled,
                (_, sys::DUET_FINISH_STOP_TOKEN) => Finish::StopToken,
                (_, sys::DUET_FINISH_STOP_TEXT) => Finish::StopText,
                (_, sys::DUET_FINISH_CALLBACK) => Finish::Callback,
                _ => Finish::Length,
            },
            n_prompt: r.n_prompt,
            n_new: r.n_new,
            prompt_s: r.prompt_s,
            new_s: r.new_s,
            tokens: stream.tokens,
            text: stream.text,
        })
    }
}
