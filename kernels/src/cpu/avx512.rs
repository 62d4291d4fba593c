//! AVX-512 VNNI: sixteen output rows a register.

use std::arch::x86_64::*;
use std::ops::Range;

use super::ahead::Ahead;
use super::{DecodedPanel, Line, rows};
use crate::activations::{Activations, BlockInfo, Correction, Corrections};
use crate::panel::{BLOCK_INPUTS, Codes, LINE_BYTES, PANEL_ROWS, Panel, SUPER_BLOCKS, Scales};

/// Activation rows whose sums are kept in registers together: with the eight lines of a block and its
/// scales these are all there are.
const TILE_ROWS: usize = 16;
/// Lines of a block whose codes are whole bytes.
pub(super) const BLOCK_LINES: usize = 8;
/// Lines of a decoded block: codes, then two f32 vectors (scale and offset, or two scales).
pub(super) const DECODED_LINES: usize = BLOCK_LINES + 2;

pub(super) const BITS4: u32 = 4;
pub(super) const BITS5: u32 = 5;
pub(super) const BITS6: u32 = 6;
pub(super) const BITS8: u32 = 8;
/// Already unpacked by [`decode`].
const DECODED: u32 = 0;

/// [`Scales`] as constants.
pub(super) const EIGHT: u32 = 0;
pub(super) const SIXTEEN: u32 = 1;
pub(super) const SIGNED: u32 = 2;
pub(super) const OFFSET: u32 = 3;
pub(super) const SUPER: u32 = 4;
pub(super) const HALVES: u32 = 5;

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn panel_product(
    x: &Activations,
    panel: Panel<'_>,
    rows: Range<usize>,
    decoded: &mut DecodedPanel,
    out: &mut [f32],
) {
    match (panel.format.codes, panel.format.scales) {
        (Codes::Bits4, Scales::Half { .. }) => run::<BITS4, EIGHT>(x, panel, rows, decoded, out),
        (Codes::Bits4, Scales::HalfOffset) => run::<BITS4, OFFSET>(x, panel, rows, decoded, out),
        (Codes::Bits4, _) => run::<BITS4, SUPER>(x, panel, rows, decoded, out),
        (Codes::Bits5, Scales::Half { .. }) => run::<BITS5, SIXTEEN>(x, panel, rows, decoded, out),
        (Codes::Bits5, Scales::HalfOffset) => run::<BITS5, OFFSET>(x, panel, rows, decoded, out),
        (Codes::Bits5, _) => run::<BITS5, SUPER>(x, panel, rows, decoded, out),
        (Codes::Bits6, _) => run::<BITS6, HALVES>(x, panel, rows, decoded, out),
        (Codes::Bits8, _) => run::<BITS8, SIGNED>(x, panel, rows, decoded, out),
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn run<const BITS: u32, const KIND: u32>(
    x: &Activations,
    panel: Panel<'_>,
    rows: Range<usize>,
    decoded: &mut DecodedPanel,
    out: &mut [f32],
) {
    let (out, _) = out.as_chunks_mut::<PANEL_ROWS>();
    let source = Source {
        codes: panel.codes.as_ptr(),
        scales: panel.scales.as_ptr(),
        ahead: Ahead::of_packed(&panel),
    };
    if rows.len() <= TILE_ROWS {
        return tiles::<BITS, KIND>(x, source, panel.blocks, rows, out);
    }
    // Many rows share the unpacking.
    let lines = decoded.lines(panel.blocks * DECODED_LINES);
    for (index, lines) in lines
        .as_chunks_mut::<DECODED_LINES>()
        .0
        .iter_mut()
        .enumerate()
    {
        // SAFETY: the panel holds block `index`.
        decode(unsafe { read_block::<BITS, KIND>(source, index) }, lines);
    }
    let num_turns = panel.blocks * rows.len().div_ceil(TILE_ROWS);
    let source = Source {
        codes: lines.as_ptr().cast(),
        scales: std::ptr::null(),
        ahead: Ahead::of_next(&panel, num_turns),
    };
    tiles::<DECODED, KIND>(x, source, panel.blocks, rows, out);
}

/// Unpacks a block to signed codes with their zero points taken off; only the scales of 8-bit codes, which
/// are signed bytes as they are.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn decode_signed<const BITS: u32, const KIND: u32>(
    panel: Panel<'_>,
    index: usize,
    lines: &mut [Line; DECODED_LINES],
) {
    assert!(index < panel.blocks, "this is a bug");
    let zero = _mm512_set1_epi8(match KIND {
        EIGHT => 8,
        SIXTEEN => 16,
        SIGNED => -128,
        HALVES => 32,
        _ => 0,
    });
    let source = Source {
        codes: panel.codes.as_ptr(),
        scales: panel.scales.as_ptr(),
        ahead: Ahead::of_packed(&panel),
    };
    if BITS == BITS8 {
        // Whole bytes are multiplied where they are.
        // SAFETY: the panel holds the block; a line is sixteen floats.
        unsafe {
            let (scale, _) = read_scales::<KIND>(panel.scales.as_ptr(), index);
            _mm512_store_ps(lines[BLOCK_LINES].0.as_mut_ptr().cast(), scale);
        }
        return;
    }
    // SAFETY: the panel holds the block.
    let mut block = unsafe { read_block::<BITS, KIND>(source, index) };
    for line in &mut block.lines {
        *line = _mm512_sub_epi8(*line, zero);
    }
    decode(block, lines);
}

/// A panel's bytes, packed or decoded (then everything is in `codes`).
#[derive(Clone, Copy)]
struct Source {
    codes: *const u8,
    scales: *const u8,
    ahead: Ahead,
}

/// A block of a panel in registers.
struct Block {
    /// Unsigned codes of inputs `4 g..4 g + 4`.
    lines: [__m512i; BLOCK_LINES],
    scale: __m512,
    /// The offset, or the scale of the second half.
    second: __m512,
}

#[inline]
#[target_feature(enable = "avx512f")]
fn decode(block: Block, lines: &mut [Line; DECODED_LINES]) {
    // SAFETY: a line holds 64 aligned bytes.
    unsafe {
        for (line, codes) in lines.iter_mut().zip(block.lines) {
            _mm512_store_si512(line.0.as_mut_ptr().cast(), codes);
        }
        _mm512_store_ps(lines[BLOCK_LINES].0.as_mut_ptr().cast(), block.scale);
        _mm512_store_ps(lines[BLOCK_LINES + 1].0.as_mut_ptr().cast(), block.second);
    }
}

/// # Safety
/// `source` holds block `index` in the form that `BITS` and `KIND` say.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn read_block<const BITS: u32, const KIND: u32>(source: Source, index: usize) -> Block {
    // SAFETY: the caller's promise bounds every load.
    unsafe {
        if BITS == DECODED {
            let base = source.codes.add(index * DECODED_LINES * LINE_BYTES);
            let line = |g: usize| _mm512_load_si512(base.add(g * LINE_BYTES).cast());
            return Block {
                lines: std::array::from_fn(line),
                scale: _mm512_load_ps(base.add(BLOCK_LINES * LINE_BYTES).cast()),
                second: _mm512_load_ps(base.add((BLOCK_LINES + 1) * LINE_BYTES).cast()),
            };
        }
        let base = source.codes.add(index * code_lines::<BITS>() * LINE_BYTES);
        let lines = read_codes::<BITS>(base);
        let (scale, second) = read_scales::<KIND>(source.scales, index);
        Block {
            lines,
            scale,
            second,
        }
    }
}

/// Lines of a packed block.
pub(super) const fn code_lines<const BITS: u32>() -> usize {
    match BITS {
        BITS4 => 4,
        BITS5 => 5,
        BITS6 => 6,
        _ => 8,
    }
}

/// # Safety
/// `base` points at a whole block of codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn read_codes<const BITS: u32>(base: *const u8) -> [__m512i; BLOCK_LINES] {
    // SAFETY: the caller's promise bounds every load.
    let line = |g: usize| unsafe { _mm512_loadu_si512(base.add(g * LINE_BYTES).cast()) };
    if BITS == BITS8 {
        // Signed codes plus 128.
        let flip = _mm512_set1_epi8(-128);
        return std::array::from_fn(|g| _mm512_xor_si512(line(g), flip));
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
        _ => lines,
    }
}

/// `a | (b & mask)`
#[inline]
#[target_feature(enable = "avx512f")]
fn or_masked(a: __m512i, b: __m512i, mask: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0xF8>(a, b, mask)
}

/// The scale, and the offset or the second half's scale, of every row.
///
/// # Safety
/// `scales` is the scales part of a panel that has block `index`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn read_scales<const KIND: u32>(scales: *const u8, index: usize) -> (__m512, __m512) {
    const ENTRY: usize = 2 * PANEL_ROWS;
    // SAFETY: the caller's promise bounds every load.
    unsafe {
        let half = |at: usize| _mm512_cvtph_ps(_mm256_loadu_si256(scales.add(at).cast()));
        let bytes = |at: usize| _mm_loadu_si128(scales.add(at).cast());
        let supers = index / SUPER_BLOCKS;
        match KIND {
            OFFSET => (half(2 * ENTRY * index), half(2 * ENTRY * index + ENTRY)),
            SUPER => {
                let header = supers * (2 + SUPER_BLOCKS) * ENTRY;
                let own = header + (2 + index % SUPER_BLOCKS) * ENTRY;
                let factor = |at| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes(at)));
                let scale = _mm512_mul_ps(half(header), factor(own));
                let minimum = _mm512_mul_ps(half(header + ENTRY), factor(own + PANEL_ROWS));
                (scale, _mm512_sub_ps(_mm512_setzero_ps(), minimum))
            }
            HALVES => {
                let header = supers * (1 + SUPER_BLOCKS) * ENTRY;
                let own = header + (1 + index % SUPER_BLOCKS) * ENTRY;
                let factor = |at| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(at)));
                let d = half(header);
                let first = _mm512_mul_ps(d, factor(own));
                (first, _mm512_mul_ps(d, factor(own + PANEL_ROWS)))
            }
            _ => (half(ENTRY * index), _mm512_setzero_ps()),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn tiles<const BITS: u32, const KIND: u32>(
    x: &Activations,
    source: Source,
    blocks: usize,
    rows: Range<usize>,
    out: &mut [[f32; PANEL_ROWS]],
) {
    assert!(
        x.codes().len() >= rows.end * blocks * BLOCK_INPUTS,
        "this is a bug"
    );
    assert!(x.infos.len() >= rows.end * blocks, "this is a bug");
    assert!(x.corrections.len() == x.infos.len(), "this is a bug");
    let mut row = rows.start;
    while row < rows.end {
        let count = TILE_ROWS.min(rows.end - row);
        let out = &mut out[row - rows.start..][..count];
        let inputs = Inputs {
            codes: x.codes()[row * blocks * BLOCK_INPUTS..].as_ptr(),
            infos: x.infos[row * blocks..].as_ptr(),
            corrections: x.corrections[row * blocks..].as_ptr(),
            blocks,
            count,
        };
        let first_turn = (row - rows.start) / TILE_ROWS * blocks;
        // SAFETY: the assertions above bound the inputs of `count` rows; `source` holds `blocks` blocks.
        unsafe {
            match count {
                13.. => tile::<BITS, KIND, 16>(inputs, source, first_turn, out),
                9..13 => tile::<BITS, KIND, 12>(inputs, source, first_turn, out),
                8 => tile::<BITS, KIND, 8>(inputs, source, first_turn, out),
                7 => tile::<BITS, KIND, 7>(inputs, source, first_turn, out),
                6 => tile::<BITS, KIND, 6>(inputs, source, first_turn, out),
                5 => tile::<BITS, KIND, 5>(inputs, source, first_turn, out),
                4 => tile::<BITS, KIND, 4>(inputs, source, first_turn, out),
                3 => tile::<BITS, KIND, 3>(inputs, source, first_turn, out),
                2 => tile::<BITS, KIND, 2>(inputs, source, first_turn, out),
                _ => tile::<BITS, KIND, 1>(inputs, source, first_turn, out),
            }
        }
        row += count;
    }
}

/// Activation rows from some row on.
#[derive(Clone, Copy)]
struct Inputs {
    codes: *const i8,
    infos: *const BlockInfo,
    corrections: *const Corrections,
    blocks: usize,
    /// Rows that there are. A tile of more takes the last of them again.
    count: usize,
}

/// Sixteen output rows times `ROWS` activation rows. Integer sums are exact and each element's float
/// operations are the same for every `ROWS` and for packed and decoded panels, so a row's result does
/// not depend on its neighbours.
///
/// # Safety
/// `inputs` has its rows, at least one; `source` holds `inputs.blocks` blocks in the form that `BITS` and `KIND` say.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile<const BITS: u32, const KIND: u32, const ROWS: usize>(
    inputs: Inputs,
    source: Source,
    first_turn: usize,
    out: &mut [[f32; PANEL_ROWS]],
) {
    let mut sums = [_mm512_setzero_ps(); ROWS];
    for index in 0..inputs.blocks {
        // SAFETY: the caller's promise.
        unsafe {
            source.ahead.fetch(first_turn + index);
            let block = read_block::<BITS, KIND>(source, index);
            for (r, sum) in sums.iter_mut().enumerate() {
                let at = r.min(inputs.count - 1) * inputs.blocks + index;
                let codes = inputs.codes.add(at * BLOCK_INPUTS);
                let (info, corrections) = (&*inputs.infos.add(at), &*inputs.corrections.add(at));
                *sum = add_block::<KIND>(*sum, &block, codes, info, corrections);
            }
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: the array holds sixteen floats.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
}

/// # Safety
/// `codes` points at 32 codes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn add_block<const KIND: u32>(
    sum: __m512,
    block: &Block,
    codes: *const i8,
    info: &BlockInfo,
    corrections: &Corrections,
) -> __m512 {
    let scaled = |sum: __m512, dot: __m512i, scale: __m512| {
        let scale = _mm512_mul_ps(scale, _mm512_set1_ps(info.scale));
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sum)
    };
    let start = |correction: Correction| _mm512_set1_epi32(corrections[correction as usize]);
    // SAFETY: groups are below 8.
    let input = |group: usize| unsafe {
        _mm512_set1_epi32(codes.add(4 * group).cast::<i32>().read_unaligned())
    };
    let dot = |mut dot: __m512i, groups: Range<usize>| {
        for group in groups {
            dot = _mm512_dpbusd_epi32(dot, block.lines[group], input(group));
        }
        dot
    };
    match KIND {
        HALVES => {
            let sum = scaled(sum, dot(start(Correction::LowHalf), 0..4), block.scale);
            scaled(sum, dot(start(Correction::HighHalf), 4..8), block.second)
        }
        OFFSET | SUPER => {
            let sum = scaled(sum, dot(_mm512_setzero_si512(), 0..8), block.scale);
            _mm512_fmadd_ps(block.second, _mm512_set1_ps(info.scaled_sum), sum)
        }
        EIGHT => scaled(sum, dot(start(Correction::Eight), 0..8), block.scale),
        SIXTEEN => scaled(sum, dot(start(Correction::Sixteen), 0..8), block.scale),
        _ => scaled(sum, dot(start(Correction::Signed), 0..8), block.scale),
    }
}

#[target_feature(enable = "avx512f")]
pub(super) fn widen_halves(source: &[u16], out: &mut [f32]) {
    let (groups, rest) = source.as_chunks::<16>();
    let (wide, wide_rest) = out.as_chunks_mut::<16>();
    for (group, wide) in groups.iter().zip(wide) {
        // SAFETY: both sides hold sixteen values.
        unsafe {
            let halves = _mm256_loadu_si256(group.as_ptr().cast());
            _mm512_storeu_ps(wide.as_mut_ptr(), _mm512_cvtph_ps(halves));
        }
    }
    rows::widen_halves(rest, wide_rest);
}

/// See [`super::dot_rounds`]; 512 multiply-adds are eight `vpdpbusd`.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn dot_rounds(rounds: usize) -> i32 {
    let (weights, inputs) = (
        _mm512_set1_epi8(3),
        std::hint::black_box(_mm512_set1_epi8(5)),
    );
    let mut sums = [_mm512_setzero_si512(); 8];
    for _ in 0..rounds * 8 {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, weights, inputs);
        }
    }
    let total = sums
        .iter()
        .fold(_mm512_setzero_si512(), |a, b| _mm512_add_epi32(a, *b));
    _mm512_reduce_add_epi32(total)
}
