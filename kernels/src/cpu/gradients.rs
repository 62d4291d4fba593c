//! Gradients of gated activations and of norms, in plain Rust compiled for every instruction set.

use std::ops::Range;

use super::rows::{self, exp, fma, tree_sum, weight_of};
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

/// See [`super::dot`]. In lanes, so that it vectorises.
#[inline(always)]
pub(super) fn dot<const FMA: bool>(a: &[f32], b: &[f32], sum: &mut f32) {
    let mut sums = [0.0_f32; LANES];
    let (a_groups, a_rest) = a.as_chunks::<LANES>();
    let (b_groups, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_groups.iter().zip(b_groups) {
        for lane in 0..LANES {
            sums[lane] = fma::<FMA>(a[lane], b[lane], sums[lane]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    *sum = tree_sum(sums) + rest;
}

/// See [`super::rms_norm_gradient`]: with `r = 1 / rms`, `r w g - x r^3 mean(w g x)`.
#[inline(always)]
pub(super) fn rms_norm_gradient<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    by_normed: &[f32],
    out: &mut [f32],
) {
    let mut squares = 0.0;
    dot::<FMA>(x, x, &mut squares);
    let mut sums = [0.0_f32; LANES];
    let groups = x.chunks(LANES).zip(weight.chunks(LANES));
    for ((x, weight), by) in groups.zip(by_normed.chunks(LANES)) {
        let products = x.iter().zip(weight).zip(by);
        for (sum, ((x, weight), by)) in sums.iter_mut().zip(products) {
            *sum = fma::<FMA>(x * weight, *by, *sum);
        }
    }
    let count = x.len() as f32;
    let r = 1.0 / (squares / count + eps).sqrt();
    let pull = r * r * r * tree_sum(sums) / count;
    for (((out, x), weight), by) in out.iter_mut().zip(x).zip(weight).zip(by_normed) {
        *out += r * weight * by - x * pull;
    }
}

/// See [`super::mask_scores`].
#[inline(always)]
pub(super) fn mask_scores<const FMA: bool>(
    scores: &mut [f32],
    seen: Range<usize>,
    scale: f32,
    largest: &mut f32,
) {
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..].fill(f32::NEG_INFINITY);
    for score in &mut scores[seen] {
        *score *= scale;
    }
    rows::largest::<FMA>(scores, largest);
}

/// See [`super::weigh_scores`].
#[inline(always)]
pub(super) fn weigh_scores<const FMA: bool>(
    scores: &mut [f32],
    slopes: &[f32],
    shift: f32,
    [total, along]: &mut [f64; 2],
) {
    let (mut sums, mut products) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let scores = scores.as_chunks_mut::<LANES>().0;
    for (scores, slopes) in scores.iter_mut().zip(slopes.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            scores[lane] = weight_of::<FMA>(scores[lane] - shift);
            sums[lane] += scores[lane];
            products[lane] = fma::<FMA>(scores[lane], slopes[lane], products[lane]);
        }
    }
    *total += f64::from(tree_sum(sums));
    *along += f64::from(tree_sum(products));
}

/// See [`super::score_gradient`].
#[inline(always)]
pub(super) fn score_gradient<const FMA: bool>(
    weights: &mut [f32],
    slopes: &mut [f32],
    factor: f32,
    mean: f32,
    scale: f32,
) {
    for (weight, slope) in weights.iter_mut().zip(slopes) {
        *weight *= factor;
        *slope = *weight * (*slope - mean) * scale;
    }
}
