//! Text to tokens and back.

use crate::argument::{c_path, sized};
use crate::error::{check, Result};
use crate::handle::Owner;
use crate::{sys, Library, Model};
use std::path::Path;
use std::ptr;

/// World vocabulary, greedy longest match over bytes. Token 0 ends a text, and begins one; text never becomes token 0.
/// Any thread.
pub struct Tokenizer(pub(crate) Owner<sys::duet_tokenizer>);

// SAFETY: duet.h: a tokenizer may be used from any thread at once.
unsafe impl Send for Tokenizer {}
unsafe impl Sync for Tokenizer {}

impl Tokenizer {
    /// The World vocabulary that ships with Duet.
    pub fn world(library: &Library) -> Result<Tokenizer> {
        // SAFETY: NULL stands for that vocabulary.
        Owner::new(library.0.log(), sys::duet_tokenizer_free, |out| unsafe { sys::duet_tokenizer_load(library.as_ptr(), ptr::null(), out) }).map(Tokenizer)
    }

    /// A vocabulary file in the World format.
    pub fn load(library: &Library, path: impl AsRef<Path>) -> Result<Tokenizer> {
        let path = c_path(path.as_ref(), "path")?;
        // SAFETY: all arguments live through the call.
        Owner::new(library.0.log(), sys::duet_tokenizer_free, |out| unsafe { sys::duet_tokenizer_load(library.as_ptr(), path.as_ptr(), out) }).map(Tokenizer)
    }

    /// `vocab.txt` beside the model, else the World vocabulary where V = 65536.
    pub fn for_model(model: &Model) -> Result<Tokenizer> {
        // SAFETY: all arguments live through the call.
        Owner::new(model.0.log(), sys::duet_tokenizer_free, |out| unsafe { sys::duet_tokenizer_for_model(model.as_ptr(), out) }).map(Tokenizer)
    }

    /// The largest id + 1.
    pub fn size(&self) -> Result<u32> {
        let mut n = 0;
        // SAFETY: the tokenizer is live.
        check(unsafe { sys::duet_tokenizer_size(self.as_ptr(), &mut n) })?;
        Ok(n)
    }

    /// The tokens of a text, or of any bytes.
    pub fn encode(&self, text: impl AsRef<[u8]>) -> Result<Vec<i32>> {
        let text = text.as_ref();
        let mut tokens = vec![0; text.len()]; // a token has at least one byte
        let mut n = 0;
        // SAFETY: both slices have the lengths that are given.
        check(unsafe { sys::duet_tokenizer_encode(self.as_ptr(), text.as_ptr().cast(), text.len(), tokens.as_mut_ptr(), tokens.len(), &mut n) })?;
        tokens.truncate(n);
        Ok(tokens)
    }

    /// The bytes of tokens: a token may hold a part of a character.
    pub fn decode(&self, tokens: &[i32]) -> Result<Vec<u8>> {
        // SAFETY: `dst` has `cap` bytes.
        sized(|dst, cap, size| unsafe { sys::duet_tokenizer_decode(self.as_ptr(), tokens.as_ptr(), tokens.len(), dst.cast(), cap, size) })
    }

    /// For calls of [`sys`]; borrowed.
    pub fn as_ptr(&self) -> *mut sys::duet_tokenizer {
        self.0.as_ptr()
    }
}
