//! Element by element.

use crate::cpu;
use crate::matmul::Glu;

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

/// `gate = act(gate) * up`
pub fn glu(glu: Glu, gate: &mut [f32], up: &[f32]) {
    match glu {
        Glu::Silu => cpu::silu_mul(gate, up),
        Glu::GeluTanh => cpu::gelu_tanh_mul(gate, up),
        Glu::ClampedSwish => cpu::clamped_swish_mul(gate, up),
    }
}
