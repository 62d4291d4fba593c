//! Row operations of encoders in plain Rust, as [`super::rows`] has them.

use super::rows::{exp, fma, tree_sum};

const LANES: usize = 16;

/// The sum of `of` over a row: sixteen partial sums vectorise.
#[inline(always)]
fn sum(x: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (groups, rest) = x.as_chunks::<LANES>();
    for group in groups {
        for i in 0..LANES {
            sums[i] += of(group[i]);
        }
    }
    let rest: f32 = rest.iter().map(|x| of(*x)).sum();
    tree_sum(sums) + rest
}

#[inline(always)]
pub(super) fn layer_norm_row<const FMA: bool>(
    x: &mut [f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
) {
    let len = x.len() as f32;
    let mean = sum(x, |x| x) / len;
    let variance = sum(x, |x| (x - mean) * (x - mean)) / len;
    let scale = (variance + eps).sqrt().recip();
    for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
        *x = fma::<FMA>((*x - mean) * scale, *weight, *bias);
    }
}

/// The error function by Abramowitz and Stegun 7.1.26, within 1.5e-7.
#[inline(always)]
pub(super) fn gelu<const FMA: bool>(x: &mut [f32]) {
    const P: f32 = 0.327_591_1;
    for value in x {
        let z = *value * std::f32::consts::FRAC_1_SQRT_2;
        let t = 1.0 / fma::<FMA>(P, z.abs(), 1.0);
        let mut p = 1.061_405_4;
        for coefficient in [-1.453_152, 1.421_413_8, -0.284_496_74, 0.254_829_6] {
            p = fma::<FMA>(p, t, coefficient);
        }
        // One minus the error function of the absolute value.
        let rest = p * t * exp::<FMA>(-z * z);
        let both = if z < 0.0 { rest } else { 2.0 - rest };
        *value *= 0.5 * both;
    }
}

#[inline(always)]
pub(super) fn gelu_tanh<const FMA: bool>(x: &mut [f32]) {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    for value in x {
        let x = *value;
        let u = SQRT_2_OVER_PI * x * fma::<FMA>(0.044_715 * x, x, 1.0);
        *value = x / (1.0 + exp::<FMA>(-2.0 * u));
    }
}
