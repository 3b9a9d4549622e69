//! From logits to the next token.

use crate::argument::{count, same_length};
use crate::error::{check, Result};
use crate::handle::Owner;
use crate::{sys, Tokenizer};
use std::ptr;

/// How to draw tokens. Every value is literal.
#[derive(Clone, Copy)]
pub struct SamplerOptions<'a> {
    /// 0 = no cut.
    pub top_k: u32,
    /// 0 = greedy.
    pub temperature: f32,
    /// From 1: no cut; 0 = only the most probable.
    pub top_p: f32,
    /// Drops tokens below this share of the largest probability; 0 = no cut.
    pub min_p: f32,
    /// Taken from the logit of a token that was drawn before.
    pub presence: f32,
    /// The same, for each time that it was drawn.
    pub frequency: f32,
    /// What counts are multiplied by at each step.
    pub decay: f32,
    /// The draw depends on seed, sequence and the number of tokens drawn alone.
    pub seed: u64,
    /// Tells sequences of one seed apart.
    pub sequence: u64,
    /// Tokens, and what is added to their logits; negative infinity bans one.
    pub bias: &'a [(i32, f32)],
    /// Digits and blanks then count 0 in the penalties.
    pub tokenizer: Option<&'a Tokenizer>,
}

/// Temperature 1, no cuts, no penalties, decay 0.996: the defaults of `duet.h`.
impl Default for SamplerOptions<'_> {
    fn default() -> Self {
        SamplerOptions {
            top_k: 0,
            temperature: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            presence: 0.0,
            frequency: 0.0,
            decay: 0.996,
            seed: 0,
            sequence: 0,
            bias: &[],
            tokenizer: None,
        }
    }
}

/// Draws tokens, and remembers them for the penalties. One thread at a time.
pub struct Sampler(Owner<sys::duet_sampler>);

// SAFETY: duet.h: any thread, one at a time. It is not Sync.
unsafe impl Send for Sampler {}

impl Sampler {
    /// Makes a sampler. It keeps the tokenizer of its options alive.
    pub fn new(options: SamplerOptions<'_>) -> Result<Sampler> {
        let (tokens, bias): (Vec<i32>, Vec<f32>) = options.bias.iter().copied().unzip();
        let o = sys::duet_sampler_options {
            top_k: options.top_k,
            temperature: options.temperature,
            top_p: options.top_p,
            min_p: options.min_p,
            presence: options.presence,
            frequency: options.frequency,
            decay: options.decay,
            seed: options.seed,
            sequence: options.sequence,
            n_bias: count(tokens.len(), "bias")?,
            bias_tokens: tokens.as_ptr(),
            bias: bias.as_ptr(),
            tokenizer: options.tokenizer.map_or(ptr::null_mut(), Tokenizer::as_ptr),
            ..Default::default()
        };
        let log = options.tokenizer.and_then(|tokenizer| tokenizer.0.log());
        // SAFETY: all arguments live through the call; arrays have the lengths that are given.
        Owner::new(log, sys::duet_sampler_free, |out| unsafe { sys::duet_sampler_create(&o, out) }).map(Sampler)
    }

    /// `[V]` -> `[V]`: what [`Sampler::pick`] would draw from.
    pub fn probs(&mut self, logits: &[f32]) -> Result<Vec<f32>> {
        let mut out = vec![0.0; logits.len()];
        self.probs_into(logits, &mut out)?;
        Ok(out)
    }

    /// The same, in caller's memory.
    pub fn probs_into(&mut self, logits: &[f32], out: &mut [f32]) -> Result<()> {
        same_length(out.len(), logits.len(), "out")?;
        // SAFETY: both slices have the length that is given.
        check(unsafe { sys::duet_sampler_probs(self.as_ptr(), logits.as_ptr(), count(logits.len(), "logits")?, out.as_mut_ptr()) })
    }

    /// Draws a token from logits `[V]`, and accepts it.
    pub fn pick(&mut self, logits: &[f32]) -> Result<i32> {
        let mut token = 0;
        // SAFETY: the slice has the length that is given.
        check(unsafe { sys::duet_sampler_pick(self.as_ptr(), logits.as_ptr(), count(logits.len(), "logits")?, &mut token) })?;
        Ok(token)
    }

    /// Counts a token that was chosen elsewhere.
    pub fn accept(&mut self, token: i32) -> Result<()> {
        // SAFETY: the sampler is live.
        check(unsafe { sys::duet_sampler_accept(self.as_ptr(), token) })
    }

    /// As freshly made.
    pub fn reset(&mut self) -> Result<()> {
        // SAFETY: the sampler is live.
        check(unsafe { sys::duet_sampler_reset(self.as_ptr()) })
    }

    /// For calls of [`sys`]; borrowed.
    pub fn as_ptr(&self) -> *mut sys::duet_sampler {
        self.0.as_ptr()
    }
}
