//! AVX-512 VNNI: sixteen output rows a register.

mod read;

use std::arch::x86_64::*;
use std::ops::Range;

pub(super) use self::read::code_lines;
use self::read::{Block, Lookup, decode, decoded_lines, read_codes, read_scales};
use super::ahead::Ahead;
use super::{DecodedPanel, Line, rows};
use crate::activations::{Activations, BlockInfo, Correction, Corrections};
use crate::panel::{BLOCK_INPUTS, Codes, LINE_BYTES, PANEL_ROWS, Panel, Scales};

/// Activation rows whose sums are kept in registers together: with the eight lines of a block and
/// its scales these are all there are.
const TILE_ROWS: usize = 16;
/// Lines of a block whose codes are whole bytes.
pub(super) const BLOCK_LINES: usize = 8;
/// Lines of a decoded block: codes, then two f32 vectors (scale and offset, or two scales).
pub(super) const DECODED_LINES: usize = BLOCK_LINES + 2;

const BITS2: u32 = 2;
const BITS3: u32 = 3;
pub(super) const BITS4: u32 = 4;
pub(super) const BITS5: u32 = 5;
pub(super) const BITS6: u32 = 6;
pub(super) const BITS8: u32 = 8;
/// Four bits that name a value.
const NAMED: u32 = 9;
/// Already unpacked by [`read::decode`].
const DECODED: u32 = 0;

/// [`Scales`] as constants.
pub(super) const EIGHT: u32 = 0;
pub(super) const SIXTEEN: u32 = 1;
pub(super) const SIGNED: u32 = 2;
pub(super) const OFFSET: u32 = 3;
pub(super) const SUPER: u32 = 4;
pub(super) const HALVES: u32 = 5;
/// Scales of halves, zero point 4.
const HALVES_FOUR: u32 = 6;
/// Scales of halves of signed values.
const HALVES_SIGNED: u32 = 7;
const HALVES_OFFSET: u32 = 8;
const SUPER_SIGNED: u32 = 9;
const EXPONENT: u32 = 10;

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn panel_product(
    x: &Activations,
    panel: Panel<'_>,
    rows: Range<usize>,
    decoded: &mut DecodedPanel,
    out: &mut [f32],
) {
    match (panel.format.codes, panel.format.scales) {
        (Codes::Bits2, _) => run::<BITS2, HALVES_OFFSET>(x, panel, rows, decoded, out),
        (Codes::Bits3, _) => run::<BITS3, HALVES_FOUR>(x, panel, rows, decoded, out),
        (Codes::Bits4, Scales::Half { .. }) => run::<BITS4, EIGHT>(x, panel, rows, decoded, out),
        (Codes::Bits4, Scales::HalfOffset) => run::<BITS4, OFFSET>(x, panel, rows, decoded, out),
        (Codes::Bits4, _) => run::<BITS4, SUPER>(x, panel, rows, decoded, out),
        (Codes::Bits5, Scales::Half { .. }) => run::<BITS5, SIXTEEN>(x, panel, rows, decoded, out),
        (Codes::Bits5, Scales::HalfOffset) => run::<BITS5, OFFSET>(x, panel, rows, decoded, out),
        (Codes::Bits5, _) => run::<BITS5, SUPER>(x, panel, rows, decoded, out),
        (Codes::Bits6, _) => run::<BITS6, HALVES>(x, panel, rows, decoded, out),
        (Codes::Bits8, _) => run::<BITS8, SIGNED>(x, panel, rows, decoded, out),
        (Codes::Named(_), Scales::Exponent) => {
            run::<NAMED, EXPONENT>(x, panel, rows, decoded, out);
        }
        (Codes::Named(_), Scales::SuperSigned) => {
            run::<NAMED, SUPER_SIGNED>(x, panel, rows, decoded, out);
        }
        (Codes::Named(_), Scales::SuperHalves { .. }) => {
            run::<NAMED, HALVES_SIGNED>(x, panel, rows, decoded, out);
        }
        (Codes::Named(_), _) => run::<NAMED, SIGNED>(x, panel, rows, decoded, out),
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
        format_codes: panel.format.codes,
    };
    if rows.len() <= TILE_ROWS {
        let ahead = Ahead::of_packed(&panel);
        return tiles::<BITS, KIND>(x, source, ahead, panel.blocks, rows, out);
    }
    // Many rows share the unpacking.
    let lookup = Lookup::new::<BITS>(source.format_codes);
    let lines = decoded.lines(panel.blocks * decoded_lines::<KIND>());
    for (index, lines) in lines.chunks_exact_mut(decoded_lines::<KIND>()).enumerate() {
        // SAFETY: the panel holds block `index`.
        let block = unsafe { read_block::<BITS, KIND>(source, lookup, index) };
        decode::<KIND>(block, lines);
    }
    let num_turns = panel.blocks * rows.len().div_ceil(TILE_ROWS);
    let source = Source {
        codes: lines.as_ptr().cast(),
        scales: std::ptr::null(),
        format_codes: panel.format.codes,
    };
    let ahead = Ahead::of_next(&panel, num_turns);
    tiles::<DECODED, KIND>(x, source, ahead, panel.blocks, rows, out);
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
        format_codes: panel.format.codes,
    };
    if BITS == BITS8 {
        // Whole bytes are multiplied where they are.
        // SAFETY: the panel holds the block; a line is sixteen floats.
        unsafe {
            let [scale, ..] = read_scales::<KIND>(panel.scales.as_ptr(), index);
            _mm512_store_ps(lines[BLOCK_LINES].0.as_mut_ptr().cast(), scale);
        }
        return;
    }
    let lookup = Lookup::new::<BITS>(source.format_codes);
    // SAFETY: the panel holds the block.
    let mut block = unsafe { read_block::<BITS, KIND>(source, lookup, index) };
    for line in &mut block.lines {
        *line = _mm512_sub_epi8(*line, zero);
    }
    decode::<KIND>(block, lines);
}

/// A panel's bytes, packed or decoded (then everything is in `codes`).
#[derive(Clone, Copy)]
struct Source {
    codes: *const u8,
    scales: *const u8,
    /// What the codes name, if they do.
    format_codes: Codes,
}

/// # Safety
/// `source` holds block `index` in the form that `BITS` and `KIND` say.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn read_block<const BITS: u32, const KIND: u32>(
    source: Source,
    lookup: Lookup,
    index: usize,
) -> Block {
    // SAFETY: the caller's promise bounds every load.
    unsafe {
        if BITS == DECODED {
            let base = source
                .codes
                .add(index * decoded_lines::<KIND>() * LINE_BYTES);
            let line = |g: usize| _mm512_load_si512(base.add(g * LINE_BYTES).cast());
            let scale = |i: usize| match BLOCK_LINES + i < decoded_lines::<KIND>() {
                true => _mm512_load_ps(base.add((BLOCK_LINES + i) * LINE_BYTES).cast()),
                false => _mm512_setzero_ps(),
            };
            return Block {
                lines: std::array::from_fn(line),
                scales: std::array::from_fn(scale),
            };
        }
        let base = source.codes.add(index * code_lines::<BITS>() * LINE_BYTES);
        let mut scales = read_scales::<KIND>(source.scales, index);
        if BITS == NAMED {
            scales = scales.map(|scale| _mm512_mul_ps(scale, lookup.unit));
        }
        Block {
            lines: read_codes::<BITS>(base, lookup),
            scales,
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn tiles<const BITS: u32, const KIND: u32>(
    x: &Activations,
    source: Source,
    ahead: Ahead,
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
        let ahead = ahead.after((row - rows.start) / TILE_ROWS * blocks);
        // SAFETY: the assertions above bound the inputs of `count` rows; `source` holds `blocks` blocks.
        unsafe {
            match count {
                13.. => tile::<BITS, KIND, 16>(inputs, source, ahead, out),
                9..13 => tile::<BITS, KIND, 12>(inputs, source, ahead, out),
                8 => tile::<BITS, KIND, 8>(inputs, source, ahead, out),
                7 => tile::<BITS, KIND, 7>(inputs, source, ahead, out),
                6 => tile::<BITS, KIND, 6>(inputs, source, ahead, out),
                5 => tile::<BITS, KIND, 5>(inputs, source, ahead, out),
                4 => tile::<BITS, KIND, 4>(inputs, source, ahead, out),
                3 => tile::<BITS, KIND, 3>(inputs, source, ahead, out),
                2 => tile::<BITS, KIND, 2>(inputs, source, ahead, out),
                _ => tile::<BITS, KIND, 1>(inputs, source, ahead, out),
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
/// `inputs` has its rows, at least one; `source` holds `inputs.blocks` blocks in the form that
/// `BITS` and `KIND` say.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile<const BITS: u32, const KIND: u32, const ROWS: usize>(
    inputs: Inputs,
    source: Source,
    ahead: Ahead,
    out: &mut [[f32; PANEL_ROWS]],
) {
    let mut sums = [_mm512_setzero_ps(); ROWS];
    let lookup = Lookup::new::<BITS>(source.format_codes);
    for index in 0..inputs.blocks {
        // SAFETY: the caller's promise.
        unsafe {
            ahead.fetch(index);
            let block = read_block::<BITS, KIND>(source, lookup, index);
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
    let zero = _mm512_setzero_si512();
    let [scale, second, minima @ ..] = block.scales;
    match KIND {
        HALVES | HALVES_FOUR | HALVES_SIGNED => {
            // Corrections are those of zero point 32.
            let start = |correction: Correction| match KIND {
                HALVES_FOUR => _mm512_srai_epi32::<3>(start(correction)),
                HALVES_SIGNED => _mm512_slli_epi32::<2>(start(correction)),
                _ => start(correction),
            };
            let sum = scaled(sum, dot(start(Correction::LowHalf), 0..4), scale);
            scaled(sum, dot(start(Correction::HighHalf), 4..8), second)
        }
        HALVES_OFFSET => {
            let sum = scaled(sum, dot(zero, 0..4), scale);
            let sum = scaled(sum, dot(zero, 4..8), second);
            // Minus 32 times the inputs' sums, by a 32nd of the minima.
            let sum = scaled(sum, start(Correction::LowHalf), minima[0]);
            scaled(sum, start(Correction::HighHalf), minima[1])
        }
        OFFSET | SUPER => {
            let sum = scaled(sum, dot(zero, 0..8), scale);
            _mm512_fmadd_ps(second, _mm512_set1_ps(info.scaled_sum), sum)
        }
        EIGHT => scaled(sum, dot(start(Correction::Eight), 0..8), scale),
        SIXTEEN => scaled(sum, dot(start(Correction::Sixteen), 0..8), scale),
        _ => scaled(sum, dot(start(Correction::Signed), 0..8), scale),
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
