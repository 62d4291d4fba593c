//! AVX2 + FMA + F16C: eight output rows a register, the two halves of a panel one after the other.

mod half_dots;

use std::arch::x86_64::*;
use std::ops::Range;

use self::half_dots::half_powers;
use super::ahead::Ahead;
use super::rows;
use crate::activations::{Activations, BlockInfo, Correction, Corrections};
use crate::panel::{BLOCK_INPUTS, Codes, LINE_BYTES, PANEL_ROWS, Panel, Scales};

/// Activation rows whose sums are kept in registers together.
const TILE_ROWS: usize = 4;
/// Output rows in a register.
const LANES: usize = 8;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn panel_product(
    x: &Activations,
    panel: Panel<'_>,
    rows: Range<usize>,
    out: &mut [f32],
) {
    let (out, _) = out.as_chunks_mut::<PANEL_ROWS>();
    let mut row = rows.start;
    while row < rows.end {
        let count = TILE_ROWS.min(rows.end - row);
        let out = &mut out[row - rows.start..][..count];
        match count {
            4 => tile::<4>(x, &panel, row, out),
            3 => tile::<3>(x, &panel, row, out),
            2 => tile::<2>(x, &panel, row, out),
            _ => tile::<1>(x, &panel, row, out),
        }
        row += count;
    }
}

/// Where one activation row's block lies.
#[derive(Clone, Copy)]
struct Input<'a> {
    codes: &'a [i8; BLOCK_INPUTS],
    info: &'a BlockInfo,
    corrections: &'a Corrections,
}

/// Sixteen output rows times `ROWS` activation rows. Integer sums are exact and each element's float
/// operations are the same for every `ROWS`, so a row's result does not depend on its neighbours.
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<const ROWS: usize>(
    x: &Activations,
    panel: &Panel<'_>,
    first_row: usize,
    out: &mut [[f32; PANEL_ROWS]],
) {
    let (codes, _) = x.codes().as_chunks::<BLOCK_INPUTS>();
    let mut sums = [[_mm256_setzero_ps(); ROWS]; 2];
    let block_bytes = panel.format.codes.block_bytes();
    let ahead = Ahead::of_packed(panel);
    for (index, block) in panel.codes.chunks_exact(block_bytes).enumerate() {
        ahead.fetch(index);
        let (lines, _) = block.as_chunks::<LINE_BYTES>();
        let inputs: [Input<'_>; ROWS] = std::array::from_fn(|r| {
            let at = (first_row + r) * panel.blocks + index;
            Input {
                codes: &codes[at],
                info: &x.infos[at],
                corrections: &x.corrections[at],
            }
        });
        for (half, sums) in sums.iter_mut().enumerate() {
            add_block(panel, index, lines, half, inputs, sums);
        }
    }
    for (r, out) in out.iter_mut().enumerate() {
        for (half, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            // SAFETY: the array holds eight floats.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sums[half][r]) };
        }
    }
}

/// Eight f16 of entry `entry` as f32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn halves(bytes: &[u8], entry: usize, half: usize) -> __m256 {
    let bytes = &bytes[2 * (PANEL_ROWS * entry + LANES * half)..][..2 * LANES];
    // SAFETY: sixteen bytes are there.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// Eight bytes of entry `entry`.
#[inline]
fn bytes_of(bytes: &[u8], entry: usize, half: usize) -> i64 {
    let at = PANEL_ROWS * entry + LANES * half;
    i64::from_le_bytes(std::array::from_fn(|i| bytes[at + i] as _))
}

/// `sum + dot * scale`, the scale being that of the weights.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_scaled(sum: __m256, dot: __m256i, scale: __m256, info: &BlockInfo) -> __m256 {
    let scale = _mm256_mul_ps(scale, _mm256_set1_ps(info.scale));
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, sum)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_block<const ROWS: usize>(
    panel: &Panel<'_>,
    index: usize,
    lines: &[[u8; LINE_BYTES]],
    half: usize,
    inputs: [Input<'_>; ROWS],
    sums: &mut [__m256; ROWS],
) {
    let (own, header) = panel.scale_entries(index);
    let corrected = |dot: __m256i, input: Input<'_>, correction: Correction| {
        _mm256_add_epi32(
            dot,
            _mm256_set1_epi32(input.corrections[correction as usize]),
        )
    };
    match panel.format.scales {
        Scales::SuperHalves { .. } | Scales::SuperHalvesOffset => {
            half_dots::add_halves(panel, index, lines, half, inputs, sums);
        }
        Scales::SuperSigned | Scales::Exponent => {
            let scale = if panel.format.scales == Scales::Exponent {
                let exponent = _mm_cvtsi64_si128(bytes_of(own, 0, half));
                half_powers(_mm256_cvtepu8_epi32(exponent))
            } else {
                let unit = _mm256_set1_ps(panel.format.codes.unit());
                let d = _mm256_mul_ps(halves(header, 0, half), unit);
                _mm256_mul_ps(d, signed_factor(own, 0, half))
            };
            let dots = dots(panel.format.codes, lines, half, inputs);
            for r in 0..ROWS {
                sums[r] = add_scaled(sums[r], dots[r], scale, inputs[r].info);
            }
        }
        Scales::Half { zero } => {
            let scale = halves(own, 0, half);
            let correction = match zero {
                8 => Correction::Eight,
                16 => Correction::Sixteen,
                _ => Correction::None,
            };
            let dots = dots(panel.format.codes, lines, half, inputs);
            for r in 0..ROWS {
                let dot = corrected(dots[r], inputs[r], correction);
                sums[r] = add_scaled(sums[r], dot, scale, inputs[r].info);
            }
        }
        Scales::HalfOffset | Scales::Super => {
            let (scale, offset) = if panel.format.scales == Scales::HalfOffset {
                (halves(own, 0, half), halves(own, 1, half))
            } else {
                let factor = |entry: usize| {
                    let bytes = _mm_cvtsi64_si128(bytes_of(own, entry, half));
                    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
                };
                let minimum = _mm256_mul_ps(halves(header, 1, half), factor(1));
                let negative = _mm256_xor_ps(minimum, _mm256_set1_ps(-0.0));
                (_mm256_mul_ps(halves(header, 0, half), factor(0)), negative)
            };
            let dots = dots(panel.format.codes, lines, half, inputs);
            for r in 0..ROWS {
                let info = inputs[r].info;
                sums[r] = add_scaled(sums[r], dots[r], scale, info);
                sums[r] = _mm256_fmadd_ps(offset, _mm256_set1_ps(info.scaled_sum), sums[r]);
            }
        }
    }
}

/// Eight signed bytes of entry `entry` as f32.
#[inline]
#[target_feature(enable = "avx2")]
fn signed_factor(bytes: &[u8], entry: usize, half: usize) -> __m256 {
    let bytes = _mm_cvtsi64_si128(bytes_of(bytes, entry, half));
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
}

/// Half a line: eight rows' codes of four inputs.
#[inline]
#[target_feature(enable = "avx2")]
fn half_line(line: &[u8; LINE_BYTES], half: usize) -> __m256i {
    let bytes = &line[32 * half..][..32];
    // SAFETY: 32 bytes are there.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// Four input codes (group `group` of a block) in every 32-bit lane.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast_group(codes: &[i8; BLOCK_INPUTS], group: usize) -> __m256i {
    let codes = codes.as_chunks::<4>().0[group];
    _mm256_set1_epi32(i32::from_le_bytes(codes.map(|code| code as u8)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn dots<const ROWS: usize>(
    codes: Codes,
    lines: &[[u8; LINE_BYTES]],
    half: usize,
    inputs: [Input<'_>; ROWS],
) -> [__m256i; ROWS] {
    match codes {
        Codes::Bits4 => nibble_dots::<ROWS, false>(lines, half, inputs),
        Codes::Bits5 => nibble_dots::<ROWS, true>(lines, half, inputs),
        Codes::Bits8 => byte_dots(lines, half, inputs),
        Codes::Bits2 | Codes::Bits3 | Codes::Bits6 | Codes::Named(_) => {
            let [low, high] = half_dots::half_dots(codes, lines, half, inputs);
            std::array::from_fn(|r| _mm256_add_epi32(low[r], high[r]))
        }
    }
}

/// Bit `group` of each byte of `plane`, moved to bit 4.
#[inline]
#[target_feature(enable = "avx2")]
fn fifth_bit(plane: __m256i, group: usize) -> __m256i {
    let mask = _mm256_set1_epi8((1_u8 << group) as i8);
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(plane, mask), mask);
    _mm256_and_si256(set, _mm256_set1_epi8(16))
}

/// Dot products of 4- and 5-bit codes. Pair sums are accumulated in 16 bits while they can't
/// overflow: 8 * 2 * 15 * 127 and 4 * 2 * 31 * 127 are below 2^15.
#[inline]
#[target_feature(enable = "avx2")]
fn nibble_dots<const ROWS: usize, const FIVE: bool>(
    lines: &[[u8; LINE_BYTES]],
    half: usize,
    inputs: [Input<'_>; ROWS],
) -> [__m256i; ROWS] {
    let nibble = _mm256_set1_epi8(15);
    let ones = _mm256_set1_epi16(1);
    let plane = if FIVE {
        half_line(&lines[4], half)
    } else {
        _mm256_setzero_si256()
    };
    let mut totals = [_mm256_setzero_si256(); ROWS];
    let mut pairs = [_mm256_setzero_si256(); ROWS];
    for (p, line) in lines.iter().take(4).enumerate() {
        let both = half_line(line, half);
        let mut low = _mm256_and_si256(both, nibble);
        let mut high = _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibble);
        if FIVE {
            low = _mm256_or_si256(low, fifth_bit(plane, p));
            high = _mm256_or_si256(high, fifth_bit(plane, p + 4));
        }
        for r in 0..ROWS {
            let a = _mm256_maddubs_epi16(low, broadcast_group(inputs[r].codes, p));
            let b = _mm256_maddubs_epi16(high, broadcast_group(inputs[r].codes, p + 4));
            pairs[r] = _mm256_add_epi16(pairs[r], _mm256_add_epi16(a, b));
        }
        if p == 3 || (FIVE && p == 1) {
            for r in 0..ROWS {
                totals[r] = _mm256_add_epi32(totals[r], _mm256_madd_epi16(pairs[r], ones));
                pairs[r] = _mm256_setzero_si256();
            }
        }
    }
    totals
}

/// Dot products of signed bytes: |w| times sign(w) x keeps the unsigned-by-signed product exact.
#[inline]
#[target_feature(enable = "avx2")]
fn byte_dots<const ROWS: usize>(
    lines: &[[u8; LINE_BYTES]],
    half: usize,
    inputs: [Input<'_>; ROWS],
) -> [__m256i; ROWS] {
    let ones = _mm256_set1_epi16(1);
    let mut totals = [_mm256_setzero_si256(); ROWS];
    for (group, line) in lines.iter().enumerate() {
        let weights = half_line(line, half);
        let magnitude = _mm256_abs_epi8(weights);
        for r in 0..ROWS {
            let signed = _mm256_sign_epi8(broadcast_group(inputs[r].codes, group), weights);
            let pairs = _mm256_maddubs_epi16(magnitude, signed);
            totals[r] = _mm256_add_epi32(totals[r], _mm256_madd_epi16(pairs, ones));
        }
    }
    totals
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn widen_halves(source: &[u16], out: &mut [f32]) {
    let (groups, rest) = source.as_chunks::<8>();
    let (wide, wide_rest) = out.as_chunks_mut::<8>();
    for (group, wide) in groups.iter().zip(wide) {
        // SAFETY: both sides hold eight values.
        unsafe {
            let halves = _mm_loadu_si128(group.as_ptr().cast());
            _mm256_storeu_ps(wide.as_mut_ptr(), _mm256_cvtph_ps(halves));
        }
    }
    rows::widen_halves(rest, wide_rest);
}

/// See [`super::dot_rounds`]; a product of 32 codes is sixteen of the instruction pair.
#[target_feature(enable = "avx2")]
pub(super) fn dot_rounds(rounds: usize) -> i32 {
    let (weights, inputs) = (
        _mm256_set1_epi8(3),
        std::hint::black_box(_mm256_set1_epi8(5)),
    );
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_si256(); 8];
    for _ in 0..rounds * 16 {
        for sum in &mut sums {
            // Opaque, so that the product isn't computed once.
            let inputs = std::hint::black_box(inputs);
            let pairs = _mm256_maddubs_epi16(weights, inputs);
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    let total = sums
        .iter()
        .fold(_mm256_setzero_si256(), |a, b| _mm256_add_epi32(a, *b));
    _mm256_extract_epi32::<0>(total)
}
