//! Int8 codes of keys, values and queries, in plain Rust compiled for every instruction set.

use half::f16;

use super::vector::{LANES, ROUND};
use crate::kv_codes::GROUP;

/// The largest code.
const LARGEST: f32 = 127.0;

/// The scale of some values; NaN when one of them is not finite.
#[inline(always)]
fn scale_of(x: &[f32]) -> f32 {
    let (mut largest, mut poison) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let (pieces, rest) = x.as_chunks::<LANES>();
    for piece in pieces {
        for i in 0..LANES {
            largest[i] = largest[i].max(piece[i].abs());
            poison[i] += piece[i] * 0.0;
        }
    }
    for (i, x) in rest.iter().enumerate() {
        largest[i] = largest[i].max(x.abs());
        poison[i] += x * 0.0;
    }
    let largest = largest.iter().fold(0.0_f32, |most, x| most.max(*x));
    largest / LARGEST + poison.iter().sum::<f32>()
}

/// Codes of values; where the scale is no positive number, they have no meaning.
#[inline(always)]
fn encode(x: &[f32], scale: f32, codes: &mut [i8]) {
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (code, x) in codes.iter_mut().zip(x) {
        let whole = (x * inverse).clamp(-LARGEST, LARGEST) + ROUND;
        *code = whole.to_bits().wrapping_sub(ROUND.to_bits()) as i8;
    }
}

/// See [`super::encode_codes`].
#[inline(always)]
pub(super) fn encode_codes<const FMA: bool>(x: &[f32], codes: &mut [i8], scales: &mut [u16]) {
    let groups = x.chunks(GROUP).zip(codes.chunks_mut(GROUP));
    for ((x, codes), scale) in groups.zip(scales) {
        let exact = scale_of(x);
        let nearest = f16::from_f32(exact);
        // Never below, or the largest value would have no code: that matters where f16 is coarse.
        *scale = nearest.to_bits() + u16::from(nearest.to_f32() < exact);
        encode(x, f16::from_bits(*scale).to_f32(), codes);
    }
}

/// See [`super::encode_query`].
#[inline(always)]
pub(super) fn encode_query<const FMA: bool>(
    x: &[f32],
    codes: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i32],
) {
    let groups = x.chunks(GROUP).zip(codes.chunks_mut(GROUP));
    for ((x, codes), (scale, sum)) in groups.zip(scales.iter_mut().zip(sums)) {
        *scale = scale_of(x);
        encode(x, *scale, codes);
        *sum = codes.iter().map(|code| i32::from(*code)).sum();
    }
}

/// See [`super::widen_codes`].
#[inline(always)]
pub(super) fn widen_codes<const FMA: bool>(codes: &[i8], scales: &[f32], out: &mut [f32]) {
    let head_dim = codes.len() / LANES;
    let tokens = codes
        .chunks_exact(head_dim)
        .zip(out.chunks_exact_mut(head_dim));
    for (token, (codes, out)) in tokens.enumerate() {
        let (groups, rest) = codes.as_chunks::<GROUP>();
        let (outs, rest_out) = out.as_chunks_mut::<GROUP>();
        let num_whole = groups.len();
        for (group, (codes, out)) in groups.iter().zip(outs).enumerate() {
            let scale = scales[group * LANES + token];
            for i in 0..GROUP {
                out[i] = f32::from(codes[i]) * scale;
            }
        }
        for (code, out) in rest.iter().zip(rest_out) {
            *out = f32::from(*code) * scales[num_whole * LANES + token];
        }
    }
}
