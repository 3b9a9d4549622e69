//! y = LN(x; ln1); out q = y + (y_prev - y) * x_q, for q of r, w, k, v, a, g. All of it is safe code.

use crate::view::{Rows, ShiftMix};
use std::collections::TryReserveError;

/// Rounded to nearest, ties to even; NaN stays NaN.
fn bf16(f: f32) -> u16 {
    let u = f.to_bits();
    if f.is_nan() {
        (u >> 16) as u16 | 0x40
    } else {
        (u.wrapping_add(0x7fff + (u >> 16 & 1)) >> 16) as u16
    }
}

fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32]) {
    let n = x.len() as f64;
    let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + f64::from(eps)).sqrt();
    for (i, y) in y.iter_mut().enumerate() {
        *y = ((f64::from(x[i]) - mean) * scale * f64::from(w[i]) + f64::from(b[i])) as f32;
    }
}

pub fn shift_mix(s: ShiftMix) -> Result<(), TryReserveError> {
    let ShiftMix { width, ln_eps, x, ln_w, ln_b, mix, mut out, sequences } = s;
    let mut rows = Vec::new();
    rows.try_reserve_exact(2 * width)?; // what runs out of memory in Rust's own way ends the process
    rows.resize(2 * width, 0.0f32);
    let (y, before) = rows.split_at_mut(width);
    for (tokens, state) in sequences {
        match &state {
            Some(state) => before.copy_from_slice(state),
            None => before.fill(0.0),
        }
        for t in tokens {
            let row = t * width..(t + 1) * width;
            layer_norm(&x[row.clone()], ln_w, ln_b, ln_eps, y);
            for (mix, out) in mix.iter().zip(&mut out) {
                let mixed = y.iter().zip(before.iter()).zip(mix.iter()).map(|((y, before), m)| y + (before - y) * m);
                match out {
                    Rows::F32(out) => out[row.clone()].iter_mut().zip(mixed).for_each(|(o, v)| *o = v),
                    Rows::Bf16(out) => out[row.clone()].iter_mut().zip(mixed).for_each(|(o, v)| *o = bf16(v)),
                }
            }
            before.copy_from_slice(y);
        }
        if let Some(state) = state {
            state.copy_from_slice(before); // without tokens this is what was there
        }
    }
    Ok(())
}
