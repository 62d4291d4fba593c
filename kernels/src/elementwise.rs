//! Element by element.

use crate::cpu;
use crate::norm::for_rows;
use crate::pool::ThreadPool;

/// `x += y`
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// `x *= factor`
pub fn scale(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

/// `x = cap * tanh(x / cap)`
pub fn softcap(x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * (*x / cap).tanh();
    }
}

/// `gate = silu(gate) * up`, both `[num_rows, width]`.
pub fn silu_mul(pool: &ThreadPool, gate: &mut [f32], up: &[f32], width: usize) {
    for_rows(pool, gate, width, |row, gate| {
        cpu::silu_mul(gate, &up[row * width..][..width]);
    });
}

/// `gate = gelu_tanh(gate) * up`, both `[num_rows, width]`.
pub fn gelu_tanh_mul(pool: &ThreadPool, gate: &mut [f32], up: &[f32], width: usize) {
    for_rows(pool, gate, width, |row, gate| {
        cpu::gelu_tanh_mul(gate, &up[row * width..][..width]);
    });
}
