//! States: the whole memory of sequences.

use crate::argument::{c_path, same_length, sized};
use crate::error::{check, Result};
use crate::handle::Owner;
use crate::{sys, Dtype, Model};
use std::path::Path;
use std::ptr;

/// One sequence in the canonical form.
#[derive(Clone, Debug, PartialEq)]
pub struct StateArrays {
    /// `[L,C]`
    pub att_x: Vec<f32>,
    /// `[L,H,N,N]`: value row, key column.
    pub wkv: Vec<f32>,
    /// `[L,C]`
    pub ffn_x: Vec<f32>,
}

/// The whole memory of `n_slots` sequences, one in each slot. Both modes read and leave the same state. One thread at a time.
pub struct State {
    owner: Owner<sys::duet_state>,
    n_slots: u32,
    x_size: usize,
    wkv_size: usize,
}

// SAFETY: duet.h: any thread, one at a time. It is not Sync, so `&State` stays on one thread.
unsafe impl Send for State {}

impl State {
    /// Fresh slots: zero, or the model's tuned state if it has one.
    pub fn new(model: &Model, n_slots: u32) -> Result<State> {
        State::with_dtype(model, n_slots, Dtype::F32)
    }

    /// With the matrices stored in another dtype on the device.
    pub fn with_dtype(model: &Model, n_slots: u32, wkv: Dtype) -> Result<State> {
        let info = model.info()?;
        let o = sys::duet_state_options { wkv: Dtype::code(Some(wkv)), ..Default::default() };
        // SAFETY: all arguments live through the call.
        let owner = Owner::new(model.0.log(), sys::duet_state_free, |out| unsafe { sys::duet_state_create(model.as_ptr(), n_slots, &o, out) })?;
        let x_size = info.n_layer as usize * info.n_embd as usize;
        Ok(State { owner, n_slots, x_size, wkv_size: x_size * info.head_size as usize })
    }

    /// Sequences that it holds.
    pub fn n_slots(&self) -> u32 {
        self.n_slots
    }

    /// Elements of `att_x` and of `ffn_x`: L*C.
    pub fn x_size(&self) -> usize {
        self.x_size
    }

    /// Elements of `wkv`: L*H*N*N.
    pub fn wkv_size(&self) -> usize {
        self.wkv_size
    }

    /// As freshly made.
    pub fn reset(&mut self, slot: u32) -> Result<()> {
        // SAFETY: the state is live.
        check(unsafe { sys::duet_state_reset(self.as_ptr(), slot) })
    }

    /// Takes over a slot of another state: also of another model object, device or dtype, if the shape is the same.
    pub fn copy_from(&mut self, slot: u32, source: &State, source_slot: u32) -> Result<()> {
        // SAFETY: both states are live.
        check(unsafe { sys::duet_state_copy(self.as_ptr(), slot, source.as_ptr(), source_slot) })
    }

    /// Copies one slot to another.
    pub fn copy_slot(&mut self, from: u32, to: u32) -> Result<()> {
        // SAFETY: the state is live.
        check(unsafe { sys::duet_state_copy(self.as_ptr(), to, self.as_ptr(), from) })
    }

    /// A copy of a slot.
    pub fn get(&self, slot: u32) -> Result<StateArrays> {
        let mut out = StateArrays { att_x: vec![0.0; self.x_size], wkv: vec![0.0; self.wkv_size], ffn_x: vec![0.0; self.x_size] };
        self.get_into(slot, Some(&mut out.att_x), Some(&mut out.wkv), Some(&mut out.ffn_x))?;
        Ok(out)
    }

    /// A copy of a slot, in caller's memory; None skips a part.
    pub fn get_into(&self, slot: u32, att_x: Option<&mut [f32]>, wkv: Option<&mut [f32]>, ffn_x: Option<&mut [f32]>) -> Result<()> {
        fn part(given: Option<&mut [f32]>, want: usize, name: &str) -> Result<*mut f32> {
            given.map_or(Ok(ptr::null_mut()), |given| same_length(given.len(), want, name).map(|()| given.as_mut_ptr()))
        }
        let (att_x, wkv, ffn_x) = (part(att_x, self.x_size, "att_x")?, part(wkv, self.wkv_size, "wkv")?, part(ffn_x, self.x_size, "ffn_x")?);
        // SAFETY: each part is NULL or as long as the library writes.
        check(unsafe { sys::duet_state_get(self.as_ptr(), slot, att_x, wkv, ffn_x) })
    }

    /// Sets a slot; None keeps a part. Refuses numbers that are not finite.
    pub fn set(&mut self, slot: u32, att_x: Option<&[f32]>, wkv: Option<&[f32]>, ffn_x: Option<&[f32]>) -> Result<()> {
        fn part(given: Option<&[f32]>, want: usize, name: &str) -> Result<*const f32> {
            given.map_or(Ok(ptr::null()), |given| same_length(given.len(), want, name).map(|()| given.as_ptr()))
        }
        let (att_x, wkv, ffn_x) = (part(att_x, self.x_size, "att_x")?, part(wkv, self.wkv_size, "wkv")?, part(ffn_x, self.x_size, "ffn_x")?);
        // SAFETY: each part is NULL or as long as the library reads.
        check(unsafe { sys::duet_state_set(self.as_ptr(), slot, att_x, wkv, ffn_x) })
    }

    /// A slot as the bytes of a safetensors file.
    pub fn save(&self, slot: u32) -> Result<Vec<u8>> {
        // SAFETY: `dst` has `cap` bytes.
        sized(|dst, cap, size| unsafe { sys::duet_state_save(self.as_ptr(), slot, dst.cast(), cap, size) })
    }

    /// Takes the bytes of a safetensors file. A failed load leaves the slot as it was.
    pub fn load(&mut self, slot: u32, file: &[u8]) -> Result<()> {
        // SAFETY: the slice has the length that is given.
        check(unsafe { sys::duet_state_load(self.as_ptr(), slot, file.as_ptr().cast(), file.len()) })
    }

    /// Writes a slot to a file, atomically.
    pub fn save_file(&self, slot: u32, path: impl AsRef<Path>) -> Result<()> {
        let path = c_path(path.as_ref(), "path")?;
        // SAFETY: all arguments live through the call.
        check(unsafe { sys::duet_state_save_file(self.as_ptr(), slot, path.as_ptr()) })
    }

    /// Reads a slot from a file.
    pub fn load_file(&mut self, slot: u32, path: impl AsRef<Path>) -> Result<()> {
        let path = c_path(path.as_ref(), "path")?;
        // SAFETY: all arguments live through the call.
        check(unsafe { sys::duet_state_load_file(self.as_ptr(), slot, path.as_ptr()) })
    }

    /// For calls of [`sys`]; borrowed.
    pub fn as_ptr(&self) -> *mut sys::duet_state {
        self.owner.as_ptr()
    }
}
