//! Products of the first and the second 16 inputs of a block apart: each may have its own scale.

use std::arch::x86_64::*;

use super::{Input, add_scaled, broadcast_group, bytes_of, half_line, halves, signed_factor};
use crate::activations::{Correction, half_sums};
use crate::codebook::Codebook;
use crate::panel::{Codes, LINE_BYTES, Panel, Scales};

/// [`super::add_block`] for formats whose halves of a block have scales of their own.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn add_halves<const ROWS: usize>(
    panel: &Panel<'_>,
    index: usize,
    lines: &[[u8; LINE_BYTES]],
    half: usize,
    inputs: [Input<'_>; ROWS],
    sums: &mut [__m256; ROWS],
) {
    let (own, header) = panel.scale_entries(index);
    let unit = _mm256_set1_ps(panel.format.codes.unit());
    let d = _mm256_mul_ps(halves(header, 0, half), unit);
    let dots = half_dots(panel.format.codes, lines, half, inputs);
    let parts = [Correction::LowHalf, Correction::HighHalf];
    for (part, correction) in parts.into_iter().enumerate() {
        if let Scales::SuperHalves { zero } = panel.format.scales {
            let scale = _mm256_mul_ps(d, signed_factor(own, part, half));
            for r in 0..ROWS {
                // Corrections are those of zero point 32.
                let correction = match zero {
                    32 => inputs[r].corrections[correction as usize],
                    4 => inputs[r].corrections[correction as usize] >> 3,
                    _ => 0,
                };
                let dot = _mm256_add_epi32(dots[part][r], _mm256_set1_epi32(correction));
                sums[r] = add_scaled(sums[r], dot, scale, inputs[r].info);
            }
            continue;
        }
        let both = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes_of(own, part, half)));
        let scale = _mm256_cvtepi32_ps(_mm256_and_si256(both, _mm256_set1_epi32(15)));
        let scale = _mm256_mul_ps(d, scale);
        let minimum = _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(both));
        let minimum = _mm256_mul_ps(halves(header, 1, half), minimum);
        for r in 0..ROWS {
            sums[r] = add_scaled(sums[r], dots[part][r], scale, inputs[r].info);
            let input_sum = half_sums(inputs[r].corrections)[part] as f32 * inputs[r].info.scale;
            sums[r] = _mm256_fnmadd_ps(minimum, _mm256_set1_ps(input_sum), sums[r]);
        }
    }
}

/// Of any codes that have such scales.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn half_dots<const ROWS: usize>(
    codes: Codes,
    lines: &[[u8; LINE_BYTES]],
    half: usize,
    inputs: [Input<'_>; ROWS],
) -> [[__m256i; ROWS]; 2] {
    match codes {
        Codes::Bits2 => pair_dots::<ROWS, false>(lines, half, inputs),
        Codes::Bits3 => pair_dots::<ROWS, true>(lines, half, inputs),
        Codes::Bits6 => six_bit_dots(lines, half, inputs),
        Codes::Named(codebook) => named_dots(codebook, lines, half, inputs),
        Codes::Bits4 | Codes::Bits5 | Codes::Bits8 => {
            unreachable!("this is a bug: their halves share a scale")
        }
    }
}

/// Bit `group` of each byte of `plane`, moved to bit 2.
#[inline]
#[target_feature(enable = "avx2")]
fn third_bit(plane: __m256i, group: usize) -> __m256i {
    let mask = _mm256_set1_epi8((1_u8 << group) as i8);
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(plane, mask), mask);
    _mm256_and_si256(set, _mm256_set1_epi8(4))
}

/// Dot products of 2- and 3-bit codes. Four sums of pairs, `4 * 2 * 7 * 127`, fit 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn pair_dots<const ROWS: usize, const THREE: bool>(
    lines: &[[u8; LINE_BYTES]],
    half: usize,
    inputs: [Input<'_>; ROWS],
) -> [[__m256i; ROWS]; 2] {
    let low = _mm256_set1_epi8(3);
    let ones = _mm256_set1_epi16(1);
    let plane = if THREE {
        half_line(&lines[2], half)
    } else {
        _mm256_setzero_si256()
    };
    let mut totals = [[_mm256_setzero_si256(); ROWS]; 2];
    for (part, totals) in totals.iter_mut().enumerate() {
        let bits = half_line(&lines[part], half);
        let moved = [
            bits,
            _mm256_srli_epi16::<2>(bits),
            _mm256_srli_epi16::<4>(bits),
            _mm256_srli_epi16::<6>(bits),
        ];
        let mut pairs = [_mm256_setzero_si256(); ROWS];
        for (g, moved) in moved.into_iter().enumerate() {
            let group = 4 * part + g;
            let mut weights = _mm256_and_si256(moved, low);
            if THREE {
                weights = _mm256_or_si256(weights, third_bit(plane, group));
            }
            for r in 0..ROWS {
                let input = broadcast_group(inputs[r].codes, group);
                pairs[r] = _mm256_add_epi16(pairs[r], _mm256_maddubs_epi16(weights, input));
            }
        }
        for r in 0..ROWS {
            totals[r] = _mm256_madd_epi16(pairs[r], ones);
        }
    }
    totals
}

/// Dot products of the values that 4-bit codes name: |w| times sign(w) x keeps the
/// unsigned-by-signed product exact. The largest value is 127.
#[inline]
#[target_feature(enable = "avx2")]
fn named_dots<const ROWS: usize>(
    codebook: Codebook,
    lines: &[[u8; LINE_BYTES]],
    half: usize,
    inputs: [Input<'_>; ROWS],
) -> [[__m256i; ROWS]; 2] {
    // SAFETY: sixteen bytes are there.
    let values = unsafe { _mm_loadu_si128(codebook.values().as_ptr().cast()) };
    let values = _mm256_broadcastsi128_si256(values);
    let (nibble, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let mut totals = [[_mm256_setzero_si256(); ROWS]; 2];
    for (p, line) in lines.iter().take(4).enumerate() {
        let both = half_line(line, half);
        let codes = [both, _mm256_srli_epi16::<4>(both)];
        for (part, codes) in codes.into_iter().enumerate() {
            let weights = _mm256_shuffle_epi8(values, _mm256_and_si256(codes, nibble));
            let magnitude = _mm256_abs_epi8(weights);
            for r in 0..ROWS {
                let input = broadcast_group(inputs[r].codes, 4 * part + p);
                let signed = _mm256_sign_epi8(input, weights);
                let pairs = _mm256_maddubs_epi16(magnitude, signed);
                let dots = _mm256_madd_epi16(pairs, ones);
                totals[part][r] = _mm256_add_epi32(totals[part][r], dots);
            }
        }
    }
    totals
}

/// Dot products of 6-bit codes.
#[inline]
#[target_feature(enable = "avx2")]
fn six_bit_dots<const ROWS: usize>(
    lines: &[[u8; LINE_BYTES]],
    half: usize,
    inputs: [Input<'_>; ROWS],
) -> [[__m256i; ROWS]; 2] {
    let (nibble, above) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
    let ones = _mm256_set1_epi16(1);
    let mut totals = [[_mm256_setzero_si256(); ROWS]; 2];
    for (part, totals) in totals.iter_mut().enumerate() {
        let bits = half_line(&lines[4 + part], half);
        // Each code's pair of bits, moved to bits 4 and 5.
        let moved = [
            _mm256_slli_epi16::<4>(bits),
            _mm256_slli_epi16::<2>(bits),
            bits,
            _mm256_srli_epi16::<2>(bits),
        ];
        let mut pairs = [_mm256_setzero_si256(); ROWS];
        for (g, moved) in moved.into_iter().enumerate() {
            let both = half_line(&lines[g], half);
            let both = if part == 0 {
                both
            } else {
                _mm256_srli_epi16::<4>(both)
            };
            let low = _mm256_and_si256(both, nibble);
            let weights = _mm256_or_si256(low, _mm256_and_si256(moved, above));
            for r in 0..ROWS {
                // Two sums of pairs, 2 * 2 * 63 * 127, still fit 16 bits.
                let input = broadcast_group(inputs[r].codes, 4 * part + g);
                pairs[r] = _mm256_add_epi16(pairs[r], _mm256_maddubs_epi16(weights, input));
                if g % 2 == 1 {
                    totals[r] = _mm256_add_epi32(totals[r], _mm256_madd_epi16(pairs[r], ones));
                    pairs[r] = _mm256_setzero_si256();
                }
            }
        }
    }
    totals
}

/// See [`crate::codebook::half_power`].
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn half_powers(exponent: __m256i) -> __m256 {
    let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(exponent, _mm256_set1_epi32(1)));
    let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), exponent);
    let subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), exponent);
    _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, is_small))
}
