//! Row operations in plain Rust. Bodies marked `inline(always)` are compiled for every instruction
//! set, where `FMA` turns on fused multiply-add.

use half::f16;

use super::vector::{LANES, ROUND, Vector};
use crate::activations::{BlockInfo, Correction, Corrections};
use crate::elementwise::Glu;
use crate::panel::BLOCK_INPUTS;

#[inline(always)]
pub(super) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// e^x for `x` in -87..=88, clamped outside; relative error below 3e-7.
///
/// Cephes' `expf` reduction, written so that it vectorises: the rounding constant 1.5 * 2^23 leaves
/// the integer part in the low bits.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -0.693_359_4, x);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5e-1,
    ] {
        p = fma::<FMA>(p, r, coefficient);
    }
    let y = fma::<FMA>(p * r, r, r) + 1.0;
    let power = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127)
        << 23;
    y * f32::from_bits(power)
}

/// Adds lanes pairwise, always in the same order.
#[inline(always)]
pub(super) fn tree_sum(mut lanes: [f32; 16]) -> f32 {
    let mut width = 16 / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest lane.
#[inline(always)]
pub(super) fn tree_max(mut lanes: [f32; 16]) -> f32 {
    let mut width = 8;
    while width > 0 {
        for i in 0..width {
            lanes[i] = lanes[i].max(lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Quantises whole blocks of 32 values.
#[inline(always)]
pub(super) fn quantise_row<V: Vector>(
    x: &[f32],
    codes: &mut [i8],
    infos: &mut [BlockInfo],
    corrections: &mut [Corrections],
) {
    let (blocks, _) = x.as_chunks::<BLOCK_INPUTS>();
    let (codes, _) = codes.as_chunks_mut::<BLOCK_INPUTS>();
    for (((block, codes), info), corrections) in
        blocks.iter().zip(codes).zip(infos).zip(corrections)
    {
        let [low, high] = [0, 1].map(|half| V::load(&block.as_chunks::<LANES>().0[half]));
        let largest = low.abs().max(high.abs()).largest();
        let scale = largest / 127.0;
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        // Products are within -127..=127 up to rounding. Infinities and NaN become some code, and the
        // scale carries them on.
        let rounded = |x: V| x.mul(V::splat(inverse)).sub(V::splat(-ROUND));
        let (low_codes, high_codes) = codes.split_at_mut(LANES);
        let low = rounded(low).store_rounded(&mut low_codes.as_chunks_mut().0[0]);
        let high = rounded(high).store_rounded(&mut high_codes.as_chunks_mut().0[0]);
        let sum = low + high;
        info.scale = scale;
        info.scaled_sum = scale * sum as f32;
        corrections[Correction::Eight as usize] = -8 * sum;
        corrections[Correction::Sixteen as usize] = -16 * sum;
        corrections[Correction::Signed as usize] = -128 * sum;
        corrections[Correction::LowHalf as usize] = -32 * low;
        corrections[Correction::HighHalf as usize] = -32 * high;
        corrections[Correction::None as usize] = 0;
    }
}

#[inline(always)]
pub(super) fn rms_norm_row<const FMA: bool>(x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = inverse_rms(x, eps);
    for (x, weight) in x.iter_mut().zip(weight) {
        *x *= scale * weight;
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    // Eight partial sums vectorise; f64 keeps long rows exact.
    let mut sums = [0.0_f64; 8];
    let (groups, rest) = x.as_chunks::<8>();
    for group in groups {
        for i in 0..8 {
            sums[i] += f64::from(group[i]) * f64::from(group[i]);
        }
    }
    let tail: f64 = rest.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    let total: f64 = sums.iter().sum::<f64>() + tail;
    (1.0 / (total / x.len() as f64 + f64::from(eps)).sqrt()) as f32
}

#[inline(always)]
pub(super) fn largest<const FMA: bool>(x: &[f32], out: &mut f32) {
    let mut lanes = [*out; LANES];
    let (groups, rest) = x.as_chunks::<LANES>();
    for group in groups {
        for i in 0..LANES {
            lanes[i] = if group[i] > lanes[i] {
                group[i]
            } else {
                lanes[i]
            };
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = if *x > *lane { *x } else { *lane };
    }
    *out = lanes.iter().fold(*out, |a, b| if *b > a { *b } else { a });
}

/// The exponential of what is not above zero. Below the range of `exp` nothing is left of a weight;
/// its clamp would leave 1e-38.
#[inline(always)]
pub(super) fn weight_of<const FMA: bool>(shifted: f32) -> f32 {
    if shifted < -87.0 {
        0.0
    } else {
        exp::<FMA>(shifted)
    }
}

#[inline(always)]
pub(super) fn weigh<const FMA: bool>(x: &[f32], shift: f32, weights: &mut [f32], sum: &mut f64) {
    for (x, weight) in x.iter().zip(&mut *weights) {
        *weight = weight_of::<FMA>(x - shift);
    }
    let mut sums = [0.0_f64; 8];
    let (groups, rest) = weights.as_chunks::<8>();
    for group in groups {
        for i in 0..8 {
            sums[i] += f64::from(group[i]);
        }
    }
    let rest: f64 = rest.iter().map(|weight| f64::from(*weight)).sum();
    *sum = sums.iter().sum::<f64>() + rest;
}

#[inline(always)]
pub(super) fn add_assign<const FMA: bool>(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[inline(always)]
pub(super) fn rotate_halves<const FMA: bool>(
    low: &mut [f32],
    high: &mut [f32],
    angles: &[(f32, f32)],
) {
    for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(angles) {
        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
    }
}

pub(super) fn widen_halves(source: &[u16], out: &mut [f32]) {
    for (out, bits) in out.iter_mut().zip(source) {
        *out = f16::from_bits(*bits).to_f32();
    }
}

/// A NaN stays one.
#[inline(always)]
pub(super) fn round_to_bf16<const FMA: bool>(x: &[f32], out: &mut [u16]) {
    for (out, x) in out.iter_mut().zip(x) {
        let bits = x.to_bits();
        let odd = (bits >> 16) & 1;
        let rounded = bits.wrapping_add(0x7FFF + odd);
        // The quiet bit: rounding could carry a NaN's bits into the sign.
        let bits = if x.is_nan() {
            bits | 0x40_0000
        } else {
            rounded
        };
        *out = (bits >> 16) as u16;
    }
}

#[inline(always)]
pub(super) fn silu_mul<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp::<FMA>(-*gate)) * up;
    }
}

/// The tanh form of GELU: `x * sigmoid(2 u)` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
#[inline(always)]
pub(super) fn gelu_tanh_mul<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    for (gate, up) in gate.iter_mut().zip(up) {
        let x = *gate;
        let u = SQRT_2_OVER_PI * x * fma::<FMA>(0.044_715 * x, x, 1.0);
        *gate = x / (1.0 + exp::<FMA>(-2.0 * u)) * up;
    }
}

#[inline(always)]
pub(super) fn clamped_swish_mul<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        // `min` would hide what is not a number.
        let x = if *gate > Glu::LIMIT {
            Glu::LIMIT
        } else {
            *gate
        };
        let up = up.clamp(-Glu::LIMIT, Glu::LIMIT);
        *gate = x / (1.0 + exp::<FMA>(-Glu::SLOPE * x)) * (up + 1.0);
    }
}

/// See [`super::read_floats`].
#[inline(always)]
pub(super) fn read_floats<V: Vector>(x: &[f32], largest: &mut f32) {
    let mut lanes = [V::splat(*largest); 8];
    for group in x.as_chunks::<LANES>().0.as_chunks::<8>().0 {
        for (lanes, x) in lanes.iter_mut().zip(group) {
            *lanes = lanes.max(V::load(x));
        }
    }
    *largest = lanes.into_iter().fold(*largest, |a, b| a.max(b.largest()));
}

/// See [`super::dot_rounds`].
pub(super) fn dot_rounds(rounds: usize) -> i32 {
    let (weights, inputs) = (
        std::hint::black_box([3_i8; 512]),
        std::hint::black_box([5_i8; 512]),
    );
    let mut sums = [0_i32; 8];
    for _ in 0..rounds {
        for sum in &mut sums {
            let products = weights.iter().zip(&inputs);
            *sum += products
                .map(|(a, b)| i32::from(*a) * i32::from(*b))
                .sum::<i32>();
        }
    }
    sums.iter().sum()
}
