//! Gradients of gated activations and of one query's attention, in plain Rust compiled for every instruction set.

use super::rows::{exp, fma};
use super::vector::LANES;
use crate::elementwise::Glu;

#[inline(always)]
fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// See [`super::silu_gradient`].
#[inline(always)]
pub(super) fn silu_gradient<const FMA: bool>(gate: &mut [f32], up: &mut [f32], by_result: &[f32]) {
    for ((gate, up), by) in gate.iter_mut().zip(up).zip(by_result) {
        let x = *gate;
        let s = sigmoid::<FMA>(x);
        let slope = s * fma::<FMA>(x, 1.0 - s, 1.0);
        (*gate, *up) = (by * *up * slope, by * x * s);
    }
}

/// See [`super::gelu_tanh_gradient`].
#[inline(always)]
pub(super) fn gelu_tanh_gradient<const FMA: bool>(
    gate: &mut [f32],
    up: &mut [f32],
    by_result: &[f32],
) {
    // As `x * sigmoid(2 u)` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    const CUBIC: f32 = 0.044_715;
    for ((gate, up), by) in gate.iter_mut().zip(up).zip(by_result) {
        let x = *gate;
        let square = x * x;
        let s = sigmoid::<FMA>(2.0 * SQRT_2_OVER_PI * x * fma::<FMA>(CUBIC, square, 1.0));
        let u_slope = SQRT_2_OVER_PI * fma::<FMA>(3.0 * CUBIC, square, 1.0);
        let slope = s + 2.0 * x * s * (1.0 - s) * u_slope;
        (*gate, *up) = (by * *up * slope, by * x * s);
    }
}

/// See [`super::clamped_swish_gradient`]. What is clamped has no slope.
#[inline(always)]
pub(super) fn clamped_swish_gradient<const FMA: bool>(
    gate: &mut [f32],
    up: &mut [f32],
    by_result: &[f32],
) {
    for ((gate, up), by) in gate.iter_mut().zip(up).zip(by_result) {
        let x = gate.min(Glu::LIMIT);
        let s = sigmoid::<FMA>(Glu::SLOPE * x);
        let slope = s * fma::<FMA>(Glu::SLOPE * x, 1.0 - s, 1.0);
        let slope = if *gate > Glu::LIMIT { 0.0 } else { slope };
        let up_slope = if up.abs() > Glu::LIMIT { 0.0 } else { x * s };
        let factor = up.clamp(-Glu::LIMIT, Glu::LIMIT) + 1.0;
        (*gate, *up) = (by * factor * slope, by * up_slope);
    }
}

/// What the gradient of one query's attention reads. The query sees all of `keys` and `values`, `[tokens, dim]`.
pub struct AttentionRow<'a> {
    pub query: &'a [f32],
    pub by_result: &'a [f32],
    pub keys: &'a [f32],
    pub values: &'a [f32],
    /// Of the scores.
    pub scale: f32,
    /// The first token whose key and value are not constants.
    pub first: usize,
}

/// What it adds to: the gradients by the query, and by keys and values from `first` on; `weights` is scratch.
pub struct AttentionSums<'a> {
    pub by_query: &'a mut [f32],
    pub by_keys: &'a mut [f32],
    pub by_values: &'a mut [f32],
    pub weights: &'a mut Vec<f32>,
    pub slopes: &'a mut Vec<f32>,
}

/// See [`super::attention_gradient`].
#[inline(always)]
pub(super) fn attention_gradient<const FMA: bool>(
    row: &AttentionRow<'_>,
    sums: &mut AttentionSums<'_>,
) {
    let dim = row.query.len();
    let num_tokens = row.keys.len() / dim;
    let (weights, slopes) = (&mut *sums.weights, &mut *sums.slopes);
    weights.resize(num_tokens, 0.0);
    slopes.resize(num_tokens, 0.0);
    let mut largest = f32::NEG_INFINITY;
    for (weight, key) in weights.iter_mut().zip(row.keys.chunks_exact(dim)) {
        *weight = row.scale * dot::<FMA>(key, row.query);
        largest = largest.max(*weight);
    }
    for weight in weights.iter_mut() {
        *weight = exp::<FMA>(*weight - largest);
    }
    let total: f32 = weights.iter().sum();
    for weight in weights.iter_mut() {
        *weight /= total;
    }
    // What each weight's gradient is, less the mean under the weights.
    for (slope, value) in slopes.iter_mut().zip(row.values.chunks_exact(dim)) {
        *slope = dot::<FMA>(value, row.by_result);
    }
    let mean = dot::<FMA>(weights, slopes);
    for (slope, weight) in slopes.iter_mut().zip(&*weights) {
        *slope = weight * (*slope - mean) * row.scale;
    }
    for (by_score, key) in slopes.iter().zip(row.keys.chunks_exact(dim)) {
        add_scaled::<FMA>(sums.by_query, key, *by_score);
    }
    let own = slopes.iter().zip(&*weights).skip(row.first);
    let by_own = sums.by_keys.chunks_exact_mut(dim);
    let by_own = by_own.zip(sums.by_values.chunks_exact_mut(dim));
    for ((by_score, weight), (by_key, by_value)) in own.zip(by_own) {
        add_scaled::<FMA>(by_key, row.query, *by_score);
        add_scaled::<FMA>(by_value, row.by_result, *weight);
    }
}

/// In lanes, so that it vectorises.
#[inline(always)]
fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (a_groups, a_rest) = a.as_chunks::<LANES>();
    let (b_groups, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_groups.iter().zip(b_groups) {
        for lane in 0..LANES {
            sums[lane] = fma::<FMA>(a[lane], b[lane], sums[lane]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[inline(always)]
fn add_scaled<const FMA: bool>(out: &mut [f32], x: &[f32], factor: f32) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = fma::<FMA>(factor, *x, *out);
    }
}
