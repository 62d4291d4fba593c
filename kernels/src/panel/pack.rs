//! From GGUF blocks to panels.

use super::{BLOCK_INPUTS, Codes, LINE_BYTES, PANEL_ROWS, PanelFormat, SUPER_BLOCKS, Scales};
use crate::dtype::DType;
use crate::reference::{self, BlockParts};

/// Packs one row (GGUF bytes) into lane `lane` of a zeroed panel.
pub(crate) fn pack_row(
    dtype: DType,
    format: PanelFormat,
    row: &[u8],
    lane: usize,
    panel: &mut [u8],
) {
    let mut parts = BlockParts::default();
    let blocks = row.len() / dtype.block_bytes() * dtype.block_size() / BLOCK_INPUTS;
    let block_bytes = format.codes.block_bytes();
    let (codes, scales) = panel.split_at_mut(blocks * block_bytes);
    let blocks_per_source = dtype.block_size() / BLOCK_INPUTS;
    for (source_index, source) in row.chunks_exact(dtype.block_bytes()).enumerate() {
        reference::split_codes(dtype, source, &mut parts);
        let first = source_index * blocks_per_source;
        pack_scales(dtype, format, source, format.scale_at(first), lane, scales);
        let blocks = codes[first * block_bytes..].chunks_exact_mut(block_bytes);
        for (block, values) in blocks
            .zip(parts.codes.as_chunks::<BLOCK_INPUTS>().0)
            .take(blocks_per_source)
        {
            pack_codes(format.codes, values, lane, block);
        }
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
