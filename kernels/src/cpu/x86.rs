//! AVX2 + FMA + F16C.

use std::arch::x86_64::*;
use std::ops::Range;

use super::Sink;
use super::portable::{self, QueryState, TileInput};
use crate::activations::{Activations, QuantisedRow};
use crate::matrix::{BLOCK_INPUTS, Codes, PANEL_ROWS, PackedMatrix, Storage};

/// Activation rows whose sums are kept in registers together.
const TILE_ROWS: usize = 4;

const BITS4: u32 = 4;
const BITS5: u32 = 5;
const BITS6: u32 = 6;
const BITS8: u32 = 8;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn panel_product(
    x: &Activations,
    weights: &PackedMatrix,
    panel: usize,
    rows: Range<usize>,
    sink: &Sink<'_>,
) {
    let Storage::Panels { codes, bytes } = &weights.storage else {
        let widen = |source: &[u16], out: &mut [f32]| widen_halves(source, out);
        return portable::float_panel::<true>(x, weights, panel, rows, widen, sink);
    };
    let panel_bytes = x.in_features / BLOCK_INPUTS * codes.block_bytes();
    let panel = &bytes[panel * panel_bytes..][..panel_bytes];
    match codes {
        Codes::Bits4 => tiles::<BITS4>(x, *codes, panel, rows, sink),
        Codes::Bits5 => tiles::<BITS5>(x, *codes, panel, rows, sink),
        Codes::Bits6 => tiles::<BITS6>(x, *codes, panel, rows, sink),
        Codes::Bits8 => tiles::<BITS8>(x, *codes, panel, rows, sink),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn tiles<const BITS: u32>(
    x: &Activations,
    codes: Codes,
    panel: &[u8],
    rows: Range<usize>,
    sink: &Sink<'_>,
) {
    let mut row = rows.start;
    while row + TILE_ROWS <= rows.end {
        tile::<BITS, TILE_ROWS>(x, codes, panel, row, sink);
        row += TILE_ROWS;
    }
    match rows.end - row {
        3 => tile::<BITS, 3>(x, codes, panel, row, sink),
        2 => tile::<BITS, 2>(x, codes, panel, row, sink),
        1 => tile::<BITS, 1>(x, codes, panel, row, sink),
        _ => {}
    }
}

/// Eight output rows times `ROWS` activation rows. Integer sums are exact and each element's float
/// operations are the same for every `ROWS`, so a row's result does not depend on its neighbours.
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<const BITS: u32, const ROWS: usize>(
    x: &Activations,
    codes: Codes,
    panel: &[u8],
    first_row: usize,
    sink: &Sink<'_>,
) {
    let k = x.in_features;
    let blocks = k / BLOCK_INPUTS;
    assert!(panel.len() == blocks * codes.block_bytes());
    assert!(x.codes.len() >= (first_row + ROWS) * k);
    assert!(x.scales.len() >= (first_row + ROWS) * blocks && x.sums.len() == x.scales.len());
    assert!(x.half_sums.len() == 2 * x.scales.len());
    let mut sums = [_mm256_setzero_ps(); ROWS];
    for index in 0..blocks {
        // SAFETY: `index` is below `blocks`, and the assertions above bound every buffer by it.
        unsafe {
            let block = panel.as_ptr().add(index * codes.block_bytes());
            let inputs = std::array::from_fn(|r| {
                x.codes
                    .as_ptr()
                    .add((first_row + r) * k + index * BLOCK_INPUTS)
            });
            let at = std::array::from_fn(|r| (first_row + r) * blocks + index);
            add_block::<BITS, ROWS>(x, block, inputs, at, &mut sums);
        }
    }
    for (r, sum) in sums.iter().enumerate() {
        let mut values = [0.0_f32; PANEL_ROWS];
        // SAFETY: the array holds eight floats.
        unsafe { _mm256_storeu_ps(values.as_mut_ptr(), *sum) };
        sink(first_row + r, &values);
    }
}

/// # Safety
/// `block` points at a whole packed block, each of `inputs` at 32 codes, and each of `at` is an index
/// into `x.scales` (twice it into `x.half_sums`).
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_block<const BITS: u32, const ROWS: usize>(
    x: &Activations,
    block: *const u8,
    inputs: [*const i8; ROWS],
    at: [usize; ROWS],
    sums: &mut [__m256; ROWS],
) {
    // SAFETY: all reads stay inside the block, the inputs and the scale arrays (caller's promise).
    unsafe {
        let scale = _mm256_cvtph_ps(_mm_loadu_si128(block.cast()));
        match BITS {
            BITS4 | BITS5 => {
                let offset = _mm256_cvtph_ps(_mm_loadu_si128(block.add(16).cast()));
                let dots = nibble_dots::<BITS, ROWS>(block.add(32), inputs);
                for r in 0..ROWS {
                    let input_scale = _mm256_set1_ps(*x.scales.get_unchecked(at[r]));
                    let input_sum = _mm256_set1_ps(*x.sums.get_unchecked(at[r]));
                    let dot = _mm256_cvtepi32_ps(dots[r]);
                    sums[r] = _mm256_fmadd_ps(dot, _mm256_mul_ps(scale, input_scale), sums[r]);
                    sums[r] = _mm256_fmadd_ps(offset, input_sum, sums[r]);
                }
            }
            BITS6 => {
                let scale_high = _mm256_cvtph_ps(_mm_loadu_si128(block.add(16).cast()));
                let (low, high) = six_bit_dots::<ROWS>(block.add(32), inputs);
                for r in 0..ROWS {
                    let input_scale = _mm256_set1_ps(*x.scales.get_unchecked(at[r]));
                    for (half, (dot, scale)) in [(low[r], scale), (high[r], scale_high)]
                        .into_iter()
                        .enumerate()
                    {
                        let offset = 32 * *x.half_sums.get_unchecked(2 * at[r] + half);
                        let dot = _mm256_sub_epi32(dot, _mm256_set1_epi32(offset));
                        let dot = _mm256_cvtepi32_ps(dot);
                        sums[r] = _mm256_fmadd_ps(dot, _mm256_mul_ps(scale, input_scale), sums[r]);
                    }
                }
            }
            _ => {
                let dots = byte_dots::<ROWS>(block.add(16), inputs);
                for r in 0..ROWS {
                    let input_scale = _mm256_set1_ps(*x.scales.get_unchecked(at[r]));
                    let dot = _mm256_cvtepi32_ps(dots[r]);
                    sums[r] = _mm256_fmadd_ps(dot, _mm256_mul_ps(scale, input_scale), sums[r]);
                }
            }
        }
    }
}

/// Four input codes (group `group` of a block) in every 32-bit lane.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn broadcast_group(inputs: *const i8, group: usize) -> __m256i {
    // SAFETY: the caller points at 32 codes and `group` is below 8.
    unsafe { _mm256_set1_epi32(inputs.add(4 * group).cast::<i32>().read_unaligned()) }
}

/// The bits of plane `plane` for `group`, moved to bit `bit` of each code.
#[inline]
#[target_feature(enable = "avx2")]
fn plane_bits(plane: __m256i, group: usize, bit: u8) -> __m256i {
    let mask = _mm256_set1_epi8((1_u8 << group) as i8);
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(plane, mask), mask);
    _mm256_and_si256(set, _mm256_set1_epi8(1 << bit))
}

/// Dot products of 4- and 5-bit codes. Pair sums are accumulated in 16 bits while they can't
/// overflow: 8 * 2 * 15 * 127 and 4 * 2 * 31 * 127 are below 2^15.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn nibble_dots<const BITS: u32, const ROWS: usize>(
    codes: *const u8,
    inputs: [*const i8; ROWS],
) -> [__m256i; ROWS] {
    // SAFETY: 128 bytes of nibbles, then one plane for 5-bit codes (caller's promise).
    unsafe {
        let nibble = _mm256_set1_epi8(15);
        let ones = _mm256_set1_epi16(1);
        let plane = if BITS == BITS5 {
            _mm256_loadu_si256(codes.add(128).cast())
        } else {
            _mm256_setzero_si256()
        };
        let mut totals = [_mm256_setzero_si256(); ROWS];
        let mut pairs = [_mm256_setzero_si256(); ROWS];
        for p in 0..4 {
            let both = _mm256_loadu_si256(codes.add(32 * p).cast());
            let mut low = _mm256_and_si256(both, nibble);
            let mut high = _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibble);
            if BITS == BITS5 {
                low = _mm256_or_si256(low, plane_bits(plane, p, 4));
                high = _mm256_or_si256(high, plane_bits(plane, p + 4, 4));
            }
            for r in 0..ROWS {
                let a = _mm256_maddubs_epi16(low, broadcast_group(inputs[r], p));
                let b = _mm256_maddubs_epi16(high, broadcast_group(inputs[r], p + 4));
                pairs[r] = _mm256_add_epi16(pairs[r], _mm256_add_epi16(a, b));
            }
            if p == 3 || (BITS == BITS5 && p == 1) {
                for r in 0..ROWS {
                    totals[r] = _mm256_add_epi32(totals[r], _mm256_madd_epi16(pairs[r], ones));
                    pairs[r] = _mm256_setzero_si256();
                }
            }
        }
        totals
    }
}

/// Dot products of 6-bit codes, of the first and the second 16 inputs apart: each has its own scale.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn six_bit_dots<const ROWS: usize>(
    codes: *const u8,
    inputs: [*const i8; ROWS],
) -> ([__m256i; ROWS], [__m256i; ROWS]) {
    // SAFETY: 128 bytes of nibbles and two planes (caller's promise).
    unsafe {
        let nibble = _mm256_set1_epi8(15);
        let ones = _mm256_set1_epi16(1);
        let planes: [__m256i; 2] =
            std::array::from_fn(|plane| _mm256_loadu_si256(codes.add(128 + 32 * plane).cast()));
        let mut totals = [[_mm256_setzero_si256(); ROWS]; 2];
        let mut pairs = [[_mm256_setzero_si256(); ROWS]; 2];
        for p in 0..4 {
            let both = _mm256_loadu_si256(codes.add(32 * p).cast());
            let low = _mm256_and_si256(both, nibble);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibble);
            for (half, (nibbles, group)) in [(low, p), (high, p + 4)].into_iter().enumerate() {
                let bits = _mm256_or_si256(
                    plane_bits(planes[0], group, 4),
                    plane_bits(planes[1], group, 5),
                );
                let weights = _mm256_or_si256(nibbles, bits);
                for r in 0..ROWS {
                    // Two sums of pairs, 2 * 2 * 63 * 127, still fit 16 bits.
                    let sum = _mm256_maddubs_epi16(weights, broadcast_group(inputs[r], group));
                    pairs[half][r] = _mm256_add_epi16(pairs[half][r], sum);
                    if p % 2 == 1 {
                        totals[half][r] = _mm256_add_epi32(
                            totals[half][r],
                            _mm256_madd_epi16(pairs[half][r], ones),
                        );
                        pairs[half][r] = _mm256_setzero_si256();
                    }
                }
            }
        }
        (totals[0], totals[1])
    }
}

/// Dot products of signed bytes: |w| times sign(w) x keeps the unsigned-by-signed product exact.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn byte_dots<const ROWS: usize>(
    codes: *const u8,
    inputs: [*const i8; ROWS],
) -> [__m256i; ROWS] {
    // SAFETY: 256 bytes of codes (caller's promise).
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut totals = [_mm256_setzero_si256(); ROWS];
        for group in 0..8 {
            let weights = _mm256_loadu_si256(codes.add(32 * group).cast());
            let magnitude = _mm256_abs_epi8(weights);
            for r in 0..ROWS {
                let signed = _mm256_sign_epi8(broadcast_group(inputs[r], group), weights);
                let pairs = _mm256_maddubs_epi16(magnitude, signed);
                totals[r] = _mm256_add_epi32(totals[r], _mm256_madd_epi16(pairs, ones));
            }
        }
        totals
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn quantise_row(x: &[f32], target: QuantisedRow<'_>) {
    portable::quantise_row(x, target);
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
    portable::widen_halves(rest, wide_rest);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn attend_tile(tile: &TileInput<'_>, states: &mut [QueryState<'_>]) {
    portable::attend_tile::<true>(tile, states);
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn silu_mul(gate: &mut [f32], up: &[f32]) {
    portable::silu_mul::<true>(gate, up);
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn gelu_tanh_mul(gate: &mut [f32], up: &[f32]) {
    portable::gelu_tanh_mul::<true>(gate, up);
}
