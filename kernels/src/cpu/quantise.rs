//! Blocks of quantised weights from floats. Layouts are those of ggml's `ggml-common.h`.
//!
//! Scales of K-quants are searched: candidates give codes, codes give the scale (and minimum) of
//! least weighted squares, and the candidate with the least error stays. Errors of large weights
//! count more, as in llama.cpp: there is no calibration data that says which matter.

use half::f16;

use super::vector::{LANES, ROUND};
use crate::dtype::DType;

/// Values of a K-quant's block.
const SUPER: usize = 256;
/// Values with a scale of their own: of Q8_0 and Q4_K, and of Q6_K.
const SUB: usize = 32;
const SMALL_SUB: usize = 16;
const SUBS: usize = SUPER / SUB;
const SMALL_SUBS: usize = SUPER / SMALL_SUB;
/// Largest 6-bit scale or minimum of Q4_K.
const MAX_SCALE: f32 = 63.0;
/// Largest code of Q4_K.
const MAX_CODE: f32 = 15.0;
/// Candidates for a sub-block's scale lie around the one that reaches its largest value:
/// `max_code + FIRST_STEP + STEP * candidate` codes for its range.
const FIRST_STEP: f32 = -1.0;
const STEP: f32 = 0.1;
const CANDIDATES: usize = 21;
/// The same of Q6_K, on both sides.
const SIDE_CANDIDATES: i32 = 9;
/// The farthest 8-bit scale of Q6_K.
const FAR_SCALE: f32 = -128.0;
/// What Q6_K's codes are counted from.
const ZERO: f32 = 32.0;

/// The nearest whole number, ties to even; for values up to 2^22.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    (x + ROUND) - ROUND
}

/// The sum over a function of `N` places, in an order that vectorises.
#[inline(always)]
fn sum<const N: usize>(value: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    for first in (0..N).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += value(first + lane);
        }
    }
    super::rows::tree_sum(lanes)
}

/// See [`super::quantise_values`].
#[inline(always)]
pub(super) fn quantise_values<const FMA: bool>(dtype: DType, x: &[f32], out: &mut [u8]) {
    match dtype {
        DType::Q8_0 => quantise_q8_0(x, out),
        DType::Q4K => quantise_q4_k(x, out),
        DType::Q6K => quantise_q6_k(x, out),
        _ => unreachable!("the caller looked"),
    }
}

/// `d * code`: the scale of a block of 32 reaches its largest value. As gguf-py's `Q8_0`.
#[inline(always)]
fn quantise_q8_0(x: &[f32], out: &mut [u8]) {
    let (blocks, _) = out.as_chunks_mut::<34>();
    for (x, out) in x.as_chunks::<SUB>().0.iter().zip(blocks) {
        let largest = x.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let scale = largest / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        out[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        for (code, x) in out[2..].iter_mut().zip(x) {
            *code = (x * inverse).round() as i8 as u8;
        }
    }
}

/// How a sub-block of Q4_K is made: `scale * code - minimum`, neither negative.
#[derive(Clone, Copy, Default)]
struct Affine {
    scale: f32,
    minimum: f32,
}

impl Affine {
    #[inline(always)]
    fn code(self, x: f32) -> f32 {
        let inverse = if self.scale > 0.0 {
            1.0 / self.scale
        } else {
            0.0
        };
        nearest((x + self.minimum) * inverse).clamp(0.0, MAX_CODE)
    }

    #[inline(always)]
    fn error(self, x: &[f32; SUB], weights: &[f32; SUB]) -> f32 {
        let inverse = if self.scale > 0.0 {
            1.0 / self.scale
        } else {
            0.0
        };
        sum::<SUB>(|i| {
            let code = nearest((x[i] + self.minimum) * inverse).clamp(0.0, MAX_CODE);
            let off = self.scale * code - self.minimum - x[i];
            weights[i] * off * off
        })
    }

    /// The best of what candidates' codes lead to.
    #[inline(always)]
    fn search(x: &[f32; SUB], weights: &[f32; SUB]) -> Self {
        let least = x.iter().fold(0.0_f32, |least, x| least.min(*x));
        let most = x.iter().fold(f32::NEG_INFINITY, |most, x| most.max(*x));
        if most <= least {
            // All values are one that is not positive.
            return Self {
                scale: 0.0,
                minimum: -least,
            };
        }
        let sum_w = sum::<SUB>(|i| weights[i]);
        let sum_x = sum::<SUB>(|i| weights[i] * x[i]);
        let mut best = Self {
            scale: (most - least) / MAX_CODE,
            minimum: -least,
        };
        let mut best_error = best.error(x, weights);
        for candidate in 0..CANDIDATES {
            let steps = MAX_CODE + FIRST_STEP + STEP * candidate as f32;
            let inverse = steps / (most - least);
            let codes: [f32; SUB] =
                std::array::from_fn(|i| nearest(inverse * (x[i] - least)).clamp(0.0, MAX_CODE));
            let sum_c = sum::<SUB>(|i| weights[i] * codes[i]);
            let sum_cc = sum::<SUB>(|i| weights[i] * codes[i] * codes[i]);
            let sum_cx = sum::<SUB>(|i| weights[i] * codes[i] * x[i]);
            let determinant = sum_w * sum_cc - sum_c * sum_c;
            if determinant <= 0.0 {
                continue;
            }
            let mut fit = Self {
                scale: (sum_w * sum_cx - sum_x * sum_c) / determinant,
                minimum: -(sum_cc * sum_x - sum_c * sum_cx) / determinant,
            };
            if fit.minimum < 0.0 {
                fit = Self {
                    scale: sum_cx / sum_cc,
                    minimum: 0.0,
                };
            }
            if fit.scale <= 0.0 {
                continue;
            }
            let error = fit.error(x, weights);
            if error < best_error {
                (best, best_error) = (fit, error);
            }
        }
        best
    }
}

/// Blocks of 256: eight sub-blocks with 6-bit scales and minima.
#[inline(always)]
fn quantise_q4_k(x: &[f32], out: &mut [u8]) {
    let (blocks, _) = out.as_chunks_mut::<144>();
    for (x, out) in x.as_chunks::<SUPER>().0.iter().zip(blocks) {
        let (subs, _) = x.as_chunks::<SUB>();
        let weights: [[f32; SUB]; SUBS] = std::array::from_fn(|sub| {
            let x = &subs[sub];
            let typical = (sum::<SUB>(|i| x[i] * x[i]) / SUB as f32).sqrt();
            x.map(|x| typical + x.abs())
        });
        let fits: [Affine; SUBS] =
            std::array::from_fn(|sub| Affine::search(&subs[sub], &weights[sub]));
        let largest = |part: fn(&Affine) -> f32| fits.iter().map(part).fold(0.0, f32::max);
        // As they are read back.
        let step = |largest: f32| f16::from_f32(largest / MAX_SCALE);
        let (d, d_min) = (
            step(largest(|fit| fit.scale)),
            step(largest(|fit| fit.minimum)),
        );
        let steps = [d, d_min].map(f16::to_f32);
        out[..2].copy_from_slice(&d.to_le_bytes());
        out[2..4].copy_from_slice(&d_min.to_le_bytes());
        let mut rounded = [(0, 0); SUBS];
        let mut codes = [0_u8; SUPER];
        for (sub, x) in subs.iter().enumerate() {
            let (pair, affine) = round_affine(fits[sub], steps, x, &weights[sub]);
            rounded[sub] = pair;
            for (code, x) in codes[sub * SUB..].iter_mut().zip(x) {
                *code = affine.code(*x) as u8;
            }
        }
        put_k_scales(&rounded, &mut out[4..16]);
        // Sub-blocks in pairs: the first low, the second high.
        let pairs = codes.as_chunks::<{ 2 * SUB }>().0.iter();
        for (pair, out) in pairs.zip(out[16..].as_chunks_mut::<SUB>().0) {
            for (i, byte) in out.iter_mut().enumerate() {
                *byte = pair[i] | pair[SUB + i] << 4;
            }
        }
    }
}

/// The 6-bit scale and minimum, and what they mean: of the nearest and their neighbours those with
/// the least error.
#[inline(always)]
fn round_affine(
    fit: Affine,
    [d, d_min]: [f32; 2],
    x: &[f32; SUB],
    weights: &[f32; SUB],
) -> ((u8, u8), Affine) {
    let multiple = |value: f32, step: f32| match step > 0.0 {
        true => nearest(value / step).clamp(0.0, MAX_SCALE),
        false => 0.0,
    };
    let (scale, minimum) = (multiple(fit.scale, d), multiple(fit.minimum, d_min));
    let mut best = (f32::INFINITY, (0, 0), Affine::default());
    for by_scale in [0.0, -1.0, 1.0] {
        for by_minimum in [0.0, -1.0, 1.0] {
            let scale = (scale + by_scale).clamp(0.0, MAX_SCALE);
            let minimum = (minimum + by_minimum).clamp(0.0, MAX_SCALE);
            let affine = Affine {
                scale: d * scale,
                minimum: d_min * minimum,
            };
            let error = affine.error(x, weights);
            if error < best.0 {
                best = (error, (scale as u8, minimum as u8), affine);
            }
        }
    }
    (best.1, best.2)
}

/// Eight 6-bit scales and minima in twelve bytes.
fn put_k_scales(pairs: &[(u8, u8); SUBS], out: &mut [u8]) {
    for (sub, (scale, minimum)) in pairs.iter().enumerate() {
        if sub < 4 {
            out[sub] |= scale;
            out[sub + 4] |= minimum;
        } else {
            out[sub + 4] |= (scale & 15) | (minimum & 15) << 4;
            out[sub - 4] |= (scale >> 4) << 6;
            out[sub] |= (minimum >> 4) << 6;
        }
    }
}

/// Error of `scale * code` with 6-bit codes around zero.
#[inline(always)]
fn signed_error(x: &[f32; SMALL_SUB], scale: f32) -> f32 {
    let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
    sum::<SMALL_SUB>(|i| {
        let off = scale * nearest(x[i] * inverse).clamp(-ZERO, ZERO - 1.0) - x[i];
        x[i] * x[i] * off * off
    })
}

/// The scale, of either sign, whose codes have the least error.
#[inline(always)]
fn search_signed(x: &[f32; SMALL_SUB]) -> f32 {
    let farthest = x.iter().fold(0.0_f32, |farthest, x| {
        if x.abs() > farthest.abs() {
            *x
        } else {
            farthest
        }
    });
    if farthest == 0.0 {
        return 0.0;
    }
    let mut best = farthest / -ZERO;
    let mut best_error = signed_error(x, best);
    for candidate in -SIDE_CANDIDATES..=SIDE_CANDIDATES {
        let inverse = -(ZERO + STEP * candidate as f32) / farthest;
        let codes: [f32; SMALL_SUB] =
            std::array::from_fn(|i| nearest(inverse * x[i]).clamp(-ZERO, ZERO - 1.0));
        let along = sum::<SMALL_SUB>(|i| x[i] * x[i] * x[i] * codes[i]);
        let square = sum::<SMALL_SUB>(|i| x[i] * x[i] * codes[i] * codes[i]);
        if square <= 0.0 {
            continue;
        }
        let fit = along / square;
        let error = signed_error(x, fit);
        if error < best_error {
            (best, best_error) = (fit, error);
        }
    }
    best
}

/// Blocks of 256: sixteen sub-blocks with signed 8-bit scales.
#[inline(always)]
fn quantise_q6_k(x: &[f32], out: &mut [u8]) {
    let (blocks, _) = out.as_chunks_mut::<210>();
    for (x, out) in x.as_chunks::<SUPER>().0.iter().zip(blocks) {
        let (subs, _) = x.as_chunks::<SMALL_SUB>();
        let fits: [f32; SMALL_SUBS] = std::array::from_fn(|sub| search_signed(&subs[sub]));
        let farthest = fits.iter().fold(0.0_f32, |farthest, fit| {
            if fit.abs() > farthest.abs() {
                *fit
            } else {
                farthest
            }
        });
        let d = f16::from_f32(farthest / FAR_SCALE);
        out[208..].copy_from_slice(&d.to_le_bytes());
        let d = d.to_f32();
        let mut codes = [0_u8; SUPER];
        for (sub, x) in subs.iter().enumerate() {
            let multiple = if d != 0.0 {
                nearest(fits[sub] / d)
            } else {
                0.0
            };
            let near = [0.0, -1.0, 1.0].map(|by| (multiple + by).clamp(FAR_SCALE, 127.0));
            let error = |scale: &f32| signed_error(x, d * scale);
            let best = near
                .into_iter()
                .min_by(|a, b| error(a).total_cmp(&error(b)));
            let scale = best.unwrap_or(multiple);
            out[192 + sub] = scale as i8 as u8;
            let step = d * scale;
            let inverse = if step != 0.0 { 1.0 / step } else { 0.0 };
            for (code, x) in codes[sub * SMALL_SUB..].iter_mut().zip(x) {
                *code = (nearest(x * inverse).clamp(-ZERO, ZERO - 1.0) + ZERO) as u8;
            }
        }
        put_6_bits(&codes, out);
    }
}

/// Low nibbles of two runs of 32 a byte, and the two bits above of four runs a byte, for each half
/// of the block.
fn put_6_bits(codes: &[u8; SUPER], out: &mut [u8; 210]) {
    let (low, rest) = out.split_at_mut(128);
    let halves = codes.as_chunks::<128>().0.iter();
    let outs = low.as_chunks_mut::<64>().0.iter_mut();
    let outs = outs.zip(rest.as_chunks_mut::<32>().0);
    for (codes, (low, high)) in halves.zip(outs) {
        for (i, high) in high.iter_mut().enumerate() {
            let run = |index: usize| codes[32 * index + i];
            low[i] = (run(0) & 15) | (run(2) & 15) << 4;
            low[32 + i] = (run(1) & 15) | (run(3) & 15) << 4;
            *high = run(0) >> 4 | (run(1) >> 4) << 2 | (run(2) >> 4) << 4 | (run(3) >> 4) << 6;
        }
    }
}
