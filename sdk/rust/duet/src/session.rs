//! Sessions: scratch memory, a queue, and the mode.

use crate::argument::{count, same_length};
use crate::error::{check, Result};
use crate::handle::Owner;
use crate::{sys, Model, State};
use std::ptr;
use std::slice::{self, ChunksExact};

/// How a run of tokens is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Parallel for runs of tokens, recurrent for single tokens.
    #[default]
    Automatic,
    /// One token per sequence and step.
    Recurrent,
    /// Whole sequences at once.
    Parallel,
}

/// How to make a [`Session`].
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionOptions {
    /// How runs of tokens are computed.
    pub mode: Mode,
    /// Tokens that one pass computes at once; longer batches are fed in pieces. 0 = as fits the device.
    pub max_tokens: u32,
}

/// Sequences that are computed together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batch<'a> {
    /// Packed: the tokens of sequence 0, then of sequence 1, ...
    pub tokens: &'a [i32],
    /// `[n_seqs]`: their sum is the number of tokens, 0 is allowed. None = one token each.
    pub lengths: Option<&'a [u32]>,
    /// `[n_seqs]`: distinct slots of the state. None = 0, 1, 2, ...
    pub slots: Option<&'a [u32]>,
}

/// What a forward computes beside the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outputs {
    /// A row per token; else one per sequence that has tokens.
    pub all_rows: bool,
    /// Rows `[V]`.
    pub logits: bool,
    /// Rows `[C]`: the last hidden state, after ln_out.
    pub hidden: bool,
    /// Rows `[C]`: layer 0's value vector, always a row per token.
    pub v_first: bool,
}

/// The logits of the last token of each sequence.
impl Default for Outputs {
    fn default() -> Self {
        Outputs { all_rows: false, logits: true, hidden: false, v_first: false }
    }
}

/// `[n, width]`, borrowed from the session: while it lives, the session cannot compute.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    data: &'a [f32],
    n: usize,
    width: usize,
}

impl<'a> Rows<'a> {
    /// Rows.
    pub fn len(&self) -> usize {
        self.n
    }

    /// No rows: the output was not asked for, or no sequence has tokens.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Elements of a row: V or C.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All rows, one after another.
    pub fn as_slice(&self) -> &'a [f32] {
        self.data
    }

    /// One row.
    pub fn get(&self, row: usize) -> Option<&'a [f32]> {
        self.iter().nth(row)
    }

    /// The last row.
    pub fn last(&self) -> Option<&'a [f32]> {
        self.iter().last()
    }

    /// Row by row.
    pub fn iter(&self) -> ChunksExact<'a, f32> {
        self.data.chunks_exact(self.width.max(1))
    }
}

/// Scratch memory, a queue and a mode. A state goes through sessions of both modes. One thread at a time.
///
/// Rows cannot be kept while the session computes again:
///
/// ```compile_fail,E0499
/// # fn f(session: &mut duet::Session, state: &mut duet::State) -> duet::Result<()> {
/// let first = session.forward(state, 0, &[1], Default::default())?;
/// let second = session.forward(state, 0, &[2], Default::default())?;
/// println!("{:?}", first);
/// # Ok(())
/// # }
/// ```
///
/// Nor can two threads be in one session:
///
/// ```compile_fail,E0277
/// fn shared<T: Sync>() {}
/// shared::<duet::Session>();
/// ```
pub struct Session(Owner<sys::duet_session>);

// SAFETY: duet.h: any thread, one at a time. It is not Sync, so `&Session` stays on one thread.
unsafe impl Send for Session {}

impl Session {
    /// Makes a session for states of this model.
    pub fn new(model: &Model, options: SessionOptions) -> Result<Session> {
        let mode = match options.mode {
            Mode::Automatic => sys::DUET_MODE_AUTO,
            Mode::Recurrent => sys::DUET_MODE_RECURRENT,
            Mode::Parallel => sys::DUET_MODE_PARALLEL,
        };
        let o = sys::duet_session_options { mode, max_tokens: options.max_tokens, ..Default::default() };
        // SAFETY: all arguments live through the call.
        Owner::new(model.0.log(), sys::duet_session_free, |out| unsafe { sys::duet_session_create(model.as_ptr(), &o, out) }).map(Session)
    }

    /// Runs one sequence and advances its slot. Returns the logits: `[1,V]`, or `[T,V]` for `all_rows`.
    pub fn forward(&mut self, state: &mut State, slot: u32, tokens: &[i32], outputs: Outputs) -> Result<Rows<'_>> {
        let length = count(tokens.len(), "tokens")?;
        self.forward_batch(state, Batch { tokens, lengths: Some(&[length]), slots: Some(&[slot]) }, outputs)
    }

    /// Runs several sequences and advances their slots. Returns the logits, in the batch's order.
    pub fn forward_batch(&mut self, state: &mut State, batch: Batch<'_>, outputs: Outputs) -> Result<Rows<'_>> {
        let n_seqs = batch.lengths.map_or(batch.tokens.len(), <[u32]>::len);
        let n_tokens = batch.lengths.map_or(n_seqs, |lengths| lengths.iter().map(|&length| length as usize).sum());
        same_length(batch.tokens.len(), n_tokens, "tokens")?;
        if let Some(slots) = batch.slots {
            same_length(slots.len(), n_seqs, "slots")?;
        }
        let flag = |wanted: bool, bit: u32| if wanted { bit } else { 0 };
        let b = sys::duet_batch {
            n_seqs: count(n_seqs, "lengths")?,
            tokens: batch.tokens.as_ptr(),
            lengths: batch.lengths.map_or(ptr::null(), <[u32]>::as_ptr),
            slots: batch.slots.map_or(ptr::null(), <[u32]>::as_ptr),
            outputs: flag(outputs.all_rows, sys::DUET_OUT_ALL_LOGITS)
                | flag(!outputs.logits, sys::DUET_OUT_NO_LOGITS)
                | flag(outputs.hidden, sys::DUET_OUT_HIDDEN)
                | flag(outputs.v_first, sys::DUET_OUT_V_FIRST),
            ..Default::default()
        };
        // SAFETY: the lengths have been checked; nobody else has the session or the state.
        check(unsafe { sys::duet_forward(self.as_ptr(), state.as_ptr(), &b) })?;
        self.logits()
    }

    /// Logits of the last forward: rows `[V]`, none if they were not asked for.
    pub fn logits(&self) -> Result<Rows<'_>> {
        self.rows(sys::DUET_OUTPUT_LOGITS)
    }

    /// Hidden states of the last forward: rows `[C]`, none if they were not asked for.
    pub fn hidden(&self) -> Result<Rows<'_>> {
        self.rows(sys::DUET_OUTPUT_HIDDEN)
    }

    /// Layer 0's value vectors of the last forward: rows `[C]`, none if they were not asked for.
    pub fn v_first(&self) -> Result<Rows<'_>> {
        self.rows(sys::DUET_OUTPUT_V_FIRST)
    }

    fn rows(&self, output: u32) -> Result<Rows<'_>> {
        let (mut data, mut n, mut width) = (ptr::null(), 0, 0);
        // SAFETY: the session is live.
        check(unsafe { sys::duet_session_outputs(self.as_ptr(), output, &mut data, &mut n, &mut width) })?;
        let (n, width) = (n as usize, width as usize);
        let data = match n * width {
            0 => &[], // C may give NULL for nothing
            // SAFETY: the library keeps the rows as they are until the session computes, which takes `&mut self`.
            size => unsafe { slice::from_raw_parts(data, size) },
        };
        Ok(Rows { data, n, width })
    }

    /// `[T-1]`: -log p(tokens\[t+1\] | state, tokens\[0..=t\]), natural log. Advances the slot by all T tokens.
    pub fn score(&mut self, state: &mut State, slot: u32, tokens: &[i32]) -> Result<Vec<f64>> {
        let mut nll = vec![0.0; tokens.len().saturating_sub(1)];
        // SAFETY: the library reads T tokens and writes T-1 numbers.
        check(unsafe { sys::duet_score(self.as_ptr(), state.as_ptr(), slot, tokens.as_ptr(), tokens.len(), nll.as_mut_ptr()) })?;
        Ok(nll)
    }

    /// For calls of [`sys`]; borrowed.
    pub fn as_ptr(&self) -> *mut sys::duet_session {
        self.0.as_ptr()
    }
}
