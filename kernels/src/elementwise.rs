//! Operations that work on one element at a time, gated units among them.

use crate::cpu;

/// The gate of a gated linear unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Glu {
    /// `gate * sigmoid(gate) * up`
    Silu,
    /// `gelu_tanh(gate) * up`
    GeluTanh,
    /// `gate * sigmoid(1.702 * gate) * (up + 1)` of clamped values: `gate` up to [`Glu::LIMIT`],
    /// `up` within it on both sides.
    ClampedSwish,
}

impl Glu {
    /// Where [`Glu::ClampedSwish`] clamps (gpt-oss' `swiglu_limit`).
    pub const LIMIT: f32 = 7.0;
    /// The slope of its sigmoid, which makes it near GELU (Hendrycks and Gimpel 2016, section 2).
    pub const SLOPE: f32 = 1.702;
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

/// `gate = act(gate) * up`
pub fn glu(glu: Glu, gate: &mut [f32], up: &[f32]) {
    match glu {
        Glu::Silu => cpu::silu_mul(gate, up),
        Glu::GeluTanh => cpu::gelu_tanh_mul(gate, up),
        Glu::ClampedSwish => cpu::clamped_swish_mul(gate, up),
    }
}
