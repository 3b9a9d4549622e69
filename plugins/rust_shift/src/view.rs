//! The arguments of `shift_mix` as slices: what of the stage is not safe is here.

use crate::abi::{self, Ref, Stage, State};
use std::marker::PhantomData;
use std::ops::Range;
use std::slice::{from_raw_parts, from_raw_parts_mut};

/// A matrix input, [tokens, C]: bf16 beside bf16 weights, else f32.
pub enum Rows<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [u16]),
}

pub struct ShiftMix<'a> {
    pub width: usize,
    pub ln_eps: f32,
    pub x: &'a [f32], // [tokens, C]
    pub ln_w: &'a [f32],
    pub ln_b: &'a [f32],
    pub mix: [&'a [f32]; 6], // r w k v a g
    pub out: [Rows<'a>; 6],  // in the same order
    pub sequences: Sequences<'a>,
}

/// The sequences of the frame, each with its place among the tokens and the state's vector, None for a sequence without state.
pub struct Sequences<'a> {
    starts: &'a [i32],
    slots: &'a [i32],
    state: *const State,
    layer: u64,
    _state: PhantomData<&'a mut [f32]>,
}

impl<'a> Iterator for Sequences<'a> {
    type Item = (Range<usize>, Option<&'a mut [f32]>);
    fn next(&mut self) -> Option<Self::Item> {
        let (&slot, slots) = self.slots.split_first()?;
        let tokens = self.starts[0] as usize..self.starts[1] as usize;
        self.slots = slots;
        self.starts = &self.starts[1..];
        // Slots are distinct, so no two slices are of the same memory.
        let att_x = (slot >= 0).then(|| unsafe {
            let s = &*self.state;
            let at = slot as u64 * s.slot_floats + self.layer * s.layer_floats;
            from_raw_parts_mut(s.data.add(at as usize), s.shape.n_embd as usize)
        });
        Some((tokens, att_x))
    }
}

unsafe fn pointer<T>(r: &Ref) -> *mut T {
    (*r.buf).data.cast::<u8>().add(r.off as usize).cast()
}

impl<'a> ShiftMix<'a> {
    /// # Safety
    /// `a` is what the host gave to `shift_mix`, and the result does not outlive the call.
    pub unsafe fn new(a: &'a Stage) -> Self {
        let layer = &*a.layer;
        let frame = &*a.frame;
        let used = from_raw_parts(pointer::<i32>(&frame.used), 3);
        let (n_tokens, n_seqs) = (used[0] as usize, used[1] as usize);
        let width = layer.shape.n_embd as usize;
        let vector = |id: usize| from_raw_parts(layer.tensor[id].data.cast::<f32>(), width);
        let rows = |r: &Ref| match r.dtype {
            abi::BF16 => Rows::Bf16(from_raw_parts_mut(pointer(r), n_tokens * width)),
            _ => Rows::F32(from_raw_parts_mut(pointer(r), n_tokens * width)),
        };
        let six = [0, 1, 2, 3, 4, 5];
        ShiftMix {
            width,
            ln_eps: layer.shape.ln_eps,
            x: from_raw_parts(pointer(&a.input[0]), n_tokens * width),
            ln_w: vector(abi::T_LN1_W),
            ln_b: vector(abi::T_LN1_B),
            mix: six.map(|i| vector(abi::T_X_R + i)),
            out: six.map(|i| rows(&a.output[i])),
            sequences: Sequences {
                starts: from_raw_parts(pointer(&frame.starts), n_seqs + 1),
                slots: from_raw_parts(pointer(&frame.slots), n_seqs),
                state: a.state,
                layer: a.layer_index.into(),
                _state: PhantomData,
            },
        }
    }
}
