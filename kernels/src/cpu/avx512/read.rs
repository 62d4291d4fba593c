//! Blocks of packed panels into registers, and from there to memory.

use std::arch::x86_64::*;

use super::{
    BITS2, BITS3, BITS4, BITS5, BITS6, BITS8, BLOCK_LINES, DECODED_LINES, EXPONENT, HALVES,
    HALVES_FOUR, HALVES_OFFSET, HALVES_SIGNED, NAMED, OFFSET, SUPER, SUPER_SIGNED,
};
use crate::cpu::Line;
use crate::panel::{Codes, LINE_BYTES, PANEL_ROWS, SUPER_BLOCKS};

/// What codes that name values are looked up in.
#[derive(Clone, Copy)]
pub(super) struct Lookup {
    /// The values plus 128, unsigned; four times the same sixteen.
    values: __m512i,
    pub unit: __m512,
}

impl Lookup {
    /// Zeros, and no work, for codes that are numbers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq")]
    pub(super) fn new<const BITS: u32>(codes: Codes) -> Self {
        let (mut values, mut unit) = (_mm512_setzero_si512(), _mm512_setzero_ps());
        if let (NAMED, Codes::Named(codebook)) = (BITS, codes) {
            // SAFETY: sixteen bytes are there.
            let signed = unsafe { _mm_loadu_si128(codebook.values().as_ptr().cast()) };
            let sign = _mm512_set1_epi8(-128);
            values = _mm512_xor_si512(_mm512_broadcast_i32x4(signed), sign);
            unit = _mm512_set1_ps(codebook.unit());
        }
        Self { values, unit }
    }
}

/// Lines of a decoded block: codes and scales.
pub(super) const fn decoded_lines<const KIND: u32>() -> usize {
    match KIND {
        HALVES_OFFSET => BLOCK_LINES + 4,
        _ => DECODED_LINES,
    }
}

/// A block of a panel in registers.
pub(super) struct Block {
    /// Unsigned codes of inputs `4 g..4 g + 4`.
    pub lines: [__m512i; BLOCK_LINES],
    /// The scale, then the offset or the scale of the second half, then the minima of both halves.
    pub scales: [__m512; 4],
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn decode<const KIND: u32>(block: Block, lines: &mut [Line]) {
    assert!(lines.len() >= decoded_lines::<KIND>(), "this is a bug");
    let (codes, scales) = lines.split_at_mut(BLOCK_LINES);
    let count = decoded_lines::<KIND>() - BLOCK_LINES;
    // SAFETY: a line holds 64 aligned bytes.
    unsafe {
        for (line, codes) in codes.iter_mut().zip(block.lines) {
            _mm512_store_si512(line.0.as_mut_ptr().cast(), codes);
        }
        for (line, scale) in scales.iter_mut().zip(block.scales).take(count) {
            _mm512_store_ps(line.0.as_mut_ptr().cast(), scale);
        }
    }
}

/// Lines of a packed block.
pub(in crate::cpu) const fn code_lines<const BITS: u32>() -> usize {
    match BITS {
        BITS2 => 2,
        BITS3 => 3,
        BITS4 | NAMED => 4,
        BITS5 => 5,
        BITS6 => 6,
        _ => 8,
    }
}

/// # Safety
/// `base` points at a whole block of codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn read_codes<const BITS: u32>(
    base: *const u8,
    lookup: Lookup,
) -> [__m512i; BLOCK_LINES] {
    // SAFETY: the caller's promise bounds every load.
    let line = |g: usize| unsafe { _mm512_loadu_si512(base.add(g * LINE_BYTES).cast()) };
    if BITS == BITS8 {
        // Signed codes plus 128.
        let flip = _mm512_set1_epi8(-128);
        return std::array::from_fn(|g| _mm512_xor_si512(line(g), flip));
    }
    if BITS == BITS2 || BITS == BITS3 {
        // SAFETY: the caller's promise.
        return unsafe { read_pairs::<BITS>(base) };
    }
    let nibble = _mm512_set1_epi8(15);
    let both: [__m512i; 4] = std::array::from_fn(line);
    let lines: [__m512i; BLOCK_LINES] = std::array::from_fn(|g| {
        if g < 4 {
            _mm512_and_si512(both[g], nibble)
        } else {
            _mm512_and_si512(_mm512_srli_epi16::<4>(both[g - 4]), nibble)
        }
    });
    match BITS {
        BITS5 => {
            let plane = line(4);
            let bit = _mm512_set1_epi8(16);
            // Bit `g` of every byte moves to bit 4.
            let moved = [
                _mm512_slli_epi16::<4>(plane),
                _mm512_slli_epi16::<3>(plane),
                _mm512_slli_epi16::<2>(plane),
                _mm512_slli_epi16::<1>(plane),
                plane,
                _mm512_srli_epi16::<1>(plane),
                _mm512_srli_epi16::<2>(plane),
                _mm512_srli_epi16::<3>(plane),
            ];
            std::array::from_fn(|g| or_masked(lines[g], moved[g], bit))
        }
        BITS6 => {
            let bits = _mm512_set1_epi8(0x30);
            std::array::from_fn(|g| {
                let pairs = line(4 + g / 4);
                // Bits `2 g` and `2 g + 1` of every byte move to bits 4 and 5.
                let moved = match g % 4 {
                    0 => _mm512_slli_epi16::<4>(pairs),
                    1 => _mm512_slli_epi16::<2>(pairs),
                    2 => pairs,
                    _ => _mm512_srli_epi16::<2>(pairs),
                };
                or_masked(lines[g], moved, bits)
            })
        }
        NAMED => lines.map(|line| _mm512_shuffle_epi8(lookup.values, line)),
        _ => lines,
    }
}

/// Codes of two bits, and those with a third.
///
/// # Safety
/// `base` points at a whole block of codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn read_pairs<const BITS: u32>(base: *const u8) -> [__m512i; BLOCK_LINES] {
    // SAFETY: the caller's promise bounds every load.
    let line = |g: usize| unsafe { _mm512_loadu_si512(base.add(g * LINE_BYTES).cast()) };
    let low = _mm512_set1_epi8(3);
    let lines: [__m512i; BLOCK_LINES] = std::array::from_fn(|g| {
        let pairs = line(g / 4);
        let moved = match g % 4 {
            0 => pairs,
            1 => _mm512_srli_epi16::<2>(pairs),
            2 => _mm512_srli_epi16::<4>(pairs),
            _ => _mm512_srli_epi16::<6>(pairs),
        };
        _mm512_and_si512(moved, low)
    });
    if BITS == BITS2 {
        return lines;
    }
    let plane = line(2);
    let bit = _mm512_set1_epi8(4);
    // Bit `g` of every byte moves to bit 2.
    let moved = [
        _mm512_slli_epi16::<2>(plane),
        _mm512_slli_epi16::<1>(plane),
        plane,
        _mm512_srli_epi16::<1>(plane),
        _mm512_srli_epi16::<2>(plane),
        _mm512_srli_epi16::<3>(plane),
        _mm512_srli_epi16::<4>(plane),
        _mm512_srli_epi16::<5>(plane),
    ];
    std::array::from_fn(|g| or_masked(lines[g], moved[g], bit))
}

/// `a | (b & mask)`
#[inline]
#[target_feature(enable = "avx512f")]
fn or_masked(a: __m512i, b: __m512i, mask: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0xF8>(a, b, mask)
}

/// The scale, the offset or the second half's scale, and a 32nd of both halves' minima, of every
/// row.
///
/// # Safety
/// `scales` is the scales part of a panel that has block `index`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn read_scales<const KIND: u32>(scales: *const u8, index: usize) -> [__m512; 4] {
    const ENTRY: usize = 2 * PANEL_ROWS;
    let zero = _mm512_setzero_ps();
    // SAFETY: the caller's promise bounds every load.
    unsafe {
        let half = |at: usize| _mm512_cvtph_ps(_mm256_loadu_si256(scales.add(at).cast()));
        let bytes = |at: usize| _mm_loadu_si128(scales.add(at).cast());
        let unsigned = |at| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes(at)));
        let signed = |at| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(at)));
        let supers = index / SUPER_BLOCKS;
        match KIND {
            OFFSET => {
                let at = 2 * ENTRY * index;
                [half(at), half(at + ENTRY), zero, zero]
            }
            SUPER => {
                let header = supers * (2 + SUPER_BLOCKS) * ENTRY;
                let own = header + (2 + index % SUPER_BLOCKS) * ENTRY;
                let scale = _mm512_mul_ps(half(header), unsigned(own));
                let minimum = _mm512_mul_ps(half(header + ENTRY), unsigned(own + PANEL_ROWS));
                [scale, _mm512_sub_ps(zero, minimum), zero, zero]
            }
            HALVES | HALVES_FOUR | HALVES_SIGNED => {
                let header = supers * (1 + SUPER_BLOCKS) * ENTRY;
                let own = header + (1 + index % SUPER_BLOCKS) * ENTRY;
                let d = half(header);
                let first = _mm512_mul_ps(d, signed(own));
                [
                    first,
                    _mm512_mul_ps(d, signed(own + PANEL_ROWS)),
                    zero,
                    zero,
                ]
            }
            HALVES_OFFSET => {
                let header = supers * (2 + SUPER_BLOCKS) * ENTRY;
                let own = header + (2 + index % SUPER_BLOCKS) * ENTRY;
                let d = half(header);
                let d_min = _mm512_mul_ps(half(header + ENTRY), _mm512_set1_ps(1.0 / 32.0));
                let nibble = _mm512_set1_epi32(15);
                let [first, second] = [own, own + PANEL_ROWS].map(|at| {
                    let both = _mm512_cvtepu8_epi32(bytes(at));
                    let scale = _mm512_cvtepi32_ps(_mm512_and_si512(both, nibble));
                    let minimum = _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(both));
                    [_mm512_mul_ps(d, scale), _mm512_mul_ps(d_min, minimum)]
                });
                [first[0], second[0], first[1], second[1]]
            }
            SUPER_SIGNED => {
                let header = (supers * (2 + SUPER_BLOCKS)) * PANEL_ROWS;
                let own = header + (2 + index % SUPER_BLOCKS) * PANEL_ROWS;
                [_mm512_mul_ps(half(header), signed(own)), zero, zero, zero]
            }
            EXPONENT => {
                let exponent = _mm512_cvtepu8_epi32(bytes(PANEL_ROWS * index));
                [half_powers(exponent), zero, zero, zero]
            }
            _ => [half(ENTRY * index), zero, zero, zero],
        }
    }
}

/// See [`crate::codebook::half_power`].
#[inline]
#[target_feature(enable = "avx512f")]
fn half_powers(exponent: __m512i) -> __m512 {
    let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(exponent, _mm512_set1_epi32(1)));
    let is_small = _mm512_cmplt_epu32_mask(exponent, _mm512_set1_epi32(2));
    let subnormal = _mm512_set1_epi32(0x0020_0000);
    _mm512_castsi512_ps(_mm512_mask_sllv_epi32(
        normal, is_small, subnormal, exponent,
    ))
}
