//! From GGUF blocks to panels.

use super::words::{self, Lane};
use super::{BLOCK_INPUTS, Codes, LINE_BYTES, PANEL_ROWS, PanelFormat, SUPER_BLOCKS, Scales};
use crate::dtype::DType;
use crate::reference::{self, BlockParts};

/// Bytes of a panel's codes that are packed for one row after the other: they stay in the first
/// cache meanwhile.
const CODES_AT_ONCE: usize = 16 << 10;

/// Packs up to [`PANEL_ROWS`] rows (GGUF bytes, one after the other) into a zeroed panel.
pub(crate) fn pack_panel(
    dtype: DType,
    format: PanelFormat,
    rows: &[u8],
    row_bytes: usize,
    panel: &mut [u8],
) {
    // A loop for each of the usual types: the compiler then knows it.
    match dtype {
        DType::Q4_0 => pack_rows(DType::Q4_0, format, rows, row_bytes, panel),
        DType::Q4_1 => pack_rows(DType::Q4_1, format, rows, row_bytes, panel),
        DType::Q5_0 => pack_rows(DType::Q5_0, format, rows, row_bytes, panel),
        DType::Q8_0 => pack_rows(DType::Q8_0, format, rows, row_bytes, panel),
        DType::Q4K => pack_rows(DType::Q4K, format, rows, row_bytes, panel),
        DType::Q5K => pack_rows(DType::Q5K, format, rows, row_bytes, panel),
        DType::Q6K => pack_rows(DType::Q6K, format, rows, row_bytes, panel),
        other => pack_rows(other, format, rows, row_bytes, panel),
    }
}

#[inline(always)]
fn pack_rows(dtype: DType, format: PanelFormat, rows: &[u8], row_bytes: usize, panel: &mut [u8]) {
    let mut parts = BlockParts::default();
    let has_words = words::has(dtype);
    let source_bytes = dtype.block_bytes();
    let blocks_of_source = dtype.block_size() / BLOCK_INPUTS;
    let num_sources = row_bytes / source_bytes;
    let codes_bytes = blocks_of_source * format.codes.block_bytes();
    let (codes, scales) = panel.split_at_mut(num_sources * codes_bytes);
    let at_once = (CODES_AT_ONCE / codes_bytes).max(1);
    for first in (0..num_sources).step_by(at_once) {
        let sources = first..num_sources.min(first + at_once);
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            let row = &row[sources.start * source_bytes..sources.end * source_bytes];
            let codes = &mut codes[sources.start * codes_bytes..sources.end * codes_bytes];
            let blocks = row.chunks_exact(source_bytes);
            let blocks = blocks.zip(codes.chunks_exact_mut(codes_bytes));
            for (index, (source, codes)) in sources.clone().zip(blocks) {
                let at = format.scale_at(index * blocks_of_source);
                pack_scales(dtype, format, source, at, lane, scales);
                match has_words {
                    true => words::pack_block(dtype, source, &mut Lane::new(codes, lane)),
                    false => pack_parts(dtype, format, source, lane, &mut parts, codes),
                }
            }
        }
    }
}

/// Packs the codes of one source block: slowly, for any type.
fn pack_parts(
    dtype: DType,
    format: PanelFormat,
    source: &[u8],
    lane: usize,
    parts: &mut BlockParts,
    codes: &mut [u8],
) {
    reference::split_codes(dtype, source, parts);
    let blocks = codes.chunks_exact_mut(format.codes.block_bytes());
    for (block, values) in blocks.zip(parts.codes.as_chunks::<BLOCK_INPUTS>().0) {
        pack_codes(format.codes, values, lane, block);
    }
}

fn pack_codes(codes: Codes, values: &[u8; BLOCK_INPUTS], lane: usize, block: &mut [u8]) {
    let (lines, _) = block.as_chunks_mut::<LINE_BYTES>();
    let (groups, _) = values.as_chunks::<4>();
    let mut put =
        |line: usize, bytes: [u8; 4]| lines[line][4 * lane..][..4].copy_from_slice(&bytes);
    // Bit `shift` of every group's codes; bits `shift` and `shift + 1` of those of half of them.
    let bits = |shift: u32| {
        let bit = |i: usize, g: usize| ((groups[g][i] >> shift) & 1) << g;
        std::array::from_fn(|i| (0..8).fold(0, |bits, g| bits | bit(i, g)))
    };
    let pairs = |half: usize, shift: u32| {
        let pair = |i: usize, g: usize| ((groups[4 * half + g][i] >> shift) & 3) << (2 * g);
        std::array::from_fn(|i| (0..4).fold(0, |bits, g| bits | pair(i, g)))
    };
    match codes {
        Codes::Bits8 => {
            for (group, bytes) in groups.iter().enumerate() {
                put(group, *bytes);
            }
        }
        Codes::Bits2 | Codes::Bits3 => {
            for half in 0..2 {
                put(half, pairs(half, 0));
            }
            if codes == Codes::Bits3 {
                put(2, bits(2));
            }
        }
        Codes::Bits4 | Codes::Bits5 | Codes::Bits6 | Codes::Named(_) => {
            for p in 0..4 {
                let (low, high) = (groups[p], groups[p + 4]);
                put(p, std::array::from_fn(|i| (low[i] & 15) | (high[i] << 4)));
            }
            match codes {
                Codes::Bits5 => put(4, bits(4)),
                Codes::Bits6 => (0..2).for_each(|half| put(4 + half, pairs(half, 4))),
                _ => {}
            }
        }
    }
}

/// Copies the scales of a source block to `at`, where those of its first packed block begin.
#[inline(always)]
fn pack_scales(
    dtype: DType,
    format: PanelFormat,
    source: &[u8],
    at: usize,
    lane: usize,
    scales: &mut [u8],
) {
    let (header, own) = format.scales.entry_bytes();
    let mut put_half = |at: usize, from: usize| {
        scales[at + 2 * lane..][..2].copy_from_slice(&source[from..from + 2]);
    };
    let d_at = reference::d_at(dtype);
    match format.scales {
        Scales::Exponent => {}
        Scales::HalfOffset | Scales::Super | Scales::SuperHalvesOffset => {
            put_half(at, d_at);
            put_half(at + 2 * PANEL_ROWS, d_at + 2);
        }
        Scales::Half { .. } | Scales::SuperHalves { .. } | Scales::SuperSigned => {
            put_half(at, d_at);
        }
    }
    let at = at + header + lane;
    match format.scales {
        Scales::Half { .. } | Scales::HalfOffset => {}
        Scales::Exponent => scales[at] = source[0],
        Scales::Super => {
            for sub in 0..SUPER_BLOCKS {
                let (scale, min) = reference::k_scale_min(&source[4..16], sub);
                scales[at + own * sub] = scale;
                scales[at + own * sub + PANEL_ROWS] = min;
            }
        }
        Scales::SuperHalvesOffset => {
            for (sub, both) in source[..2 * SUPER_BLOCKS].iter().enumerate() {
                scales[at + PANEL_ROWS * sub] = *both;
            }
        }
        Scales::SuperHalves { .. } | Scales::SuperSigned => {
            let count = SUPER_BLOCKS * own / PANEL_ROWS;
            let factors = reference::signed_factors(dtype, source);
            for (sub, factor) in factors[..count].iter().enumerate() {
                scales[at + PANEL_ROWS * sub] = *factor as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes of blocks of any bytes, joined at once and taken apart first.
    #[test]
    fn words_are_packed_as_their_codes_are() {
        let mut state = 7_u64;
        let mut byte = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        };
        let mut num_types = 0;
        for dtype in DType::ALL.into_iter().filter(|dtype| words::has(*dtype)) {
            let format = PanelFormat::of(dtype).unwrap();
            let blocks = dtype.block_size() / BLOCK_INPUTS;
            let len = blocks * format.codes.block_bytes();
            for lane in 0..PANEL_ROWS {
                let source: Vec<u8> = (0..dtype.block_bytes()).map(|_| byte()).collect();
                let (mut words, mut parts) = (vec![0; len], vec![0; len]);
                words::pack_block(dtype, &source, &mut Lane::new(&mut words, lane));
                let mut codes = BlockParts::default();
                pack_parts(dtype, format, &source, lane, &mut codes, &mut parts);
                assert!(parts.iter().any(|byte| *byte != 0));
                assert_eq!(words, parts, "{} lane {lane}", dtype.name());
            }
            num_types += 1;
        }
        assert_eq!(num_types, 13);
    }
}
