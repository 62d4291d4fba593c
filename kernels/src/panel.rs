//! The layout that the kernels stream: panels of [`PANEL_ROWS`] interleaved output rows.
//!
//! A panel is its codes, one block for every 32 input features, and then its scales. A block of codes is
//! a sequence of 64-byte lines; byte `4 r + i` of a line belongs to row `r` of the panel, so one line
//! feeds sixteen rows with the same four inputs (what `vpdpbusd` and an AMX tile want):
//!
//! | lines | 4-bit | 5-bit | 6-bit | 8-bit |
//! |---|---|---|---|---|
//! | nibbles: line `p` has input `4 p + i` low, input `16 + 4 p + i` high | 4 | 4 | 4 | – |
//! | bits above: bit `g` belongs to input `4 g + i` | – | 1 | – | – |
//! | bit pairs above: bits `2 g`, `2 g + 1` of line `h` belong to input `16 h + 4 g + i` | – | – | 2 | – |
//! | whole codes, signed: line `g` is input `4 g + i` | – | – | – | 8 |
//!
//! The scales are those of the file, so packing loses nothing ([`Scales`]).

use half::f16;

use crate::dtype::DType;
use crate::reference::{self, BlockParts, SubBlock};

/// Output rows interleaved in one panel.
pub const PANEL_ROWS: usize = 16;
/// Input features covered by one block.
pub const BLOCK_INPUTS: usize = 32;
/// Bytes of a line: four inputs of every row.
pub(crate) const LINE_BYTES: usize = 4 * PANEL_ROWS;
/// Blocks that share the scales of a K-quant's super-block.
pub(crate) const SUPER_BLOCKS: usize = 8;

/// How codes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codes {
    Bits4,
    Bits5,
    Bits6,
    /// Signed.
    Bits8,
}

impl Codes {
    /// Bytes of one block of a panel.
    pub(crate) const fn block_bytes(self) -> usize {
        LINE_BYTES
            * match self {
                Codes::Bits4 => 4,
                Codes::Bits5 => 5,
                Codes::Bits6 => 6,
                Codes::Bits8 => 8,
            }
    }
}

/// How scales are stored; an entry has one value for every row of the panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// A block: f16 scale. `value = scale * (code - zero)`.
    Half { zero: i32 },
    /// A block: f16 scale, f16 offset. `value = scale * code + offset`.
    HalfOffset,
    /// Eight blocks: f16 `d`, f16 `d_min`, then for each block u8 scale, u8 minimum.
    /// `value = d * scale * code - d_min * minimum`.
    Super,
    /// Eight blocks: f16 `d`, then for each block i8 scales of its first and second 16 inputs.
    /// `value = d * scale * (code - 32)`.
    SuperHalves,
}

/// What `code - zero` subtracts in a Q6_K block.
pub(crate) const Q6K_ZERO: i32 = 32;

/// The packed form of a quantised type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PanelFormat {
    pub codes: Codes,
    pub scales: Scales,
}

impl PanelFormat {
    /// `None` for float types.
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        let (codes, scales) = match dtype {
            DType::Q4_0 => (Codes::Bits4, Scales::Half { zero: 8 }),
            DType::Q4_1 => (Codes::Bits4, Scales::HalfOffset),
            DType::Q5_0 => (Codes::Bits5, Scales::Half { zero: 16 }),
            DType::Q5_1 => (Codes::Bits5, Scales::HalfOffset),
            DType::Q8_0 => (Codes::Bits8, Scales::Half { zero: 0 }),
            DType::Q4K => (Codes::Bits4, Scales::Super),
            DType::Q5K => (Codes::Bits5, Scales::Super),
            DType::Q6K => (Codes::Bits6, Scales::SuperHalves),
            DType::F32 | DType::F16 | DType::BF16 => return None,
        };
        Some(Self { codes, scales })
    }

    /// Bytes of a panel over `blocks` blocks; a multiple of a line.
    pub(crate) fn panel_bytes(self, blocks: usize) -> usize {
        let scales = self.scale_at(blocks.next_multiple_of(match self.scales {
            Scales::Super | Scales::SuperHalves => SUPER_BLOCKS,
            Scales::Half { .. } | Scales::HalfOffset => 1,
        }));
        blocks * self.codes.block_bytes() + scales.next_multiple_of(LINE_BYTES)
    }

    /// Where block `index`'s own scales begin in the scales part of a panel, its super-block's header
    /// not counted.
    const fn scale_at(self, index: usize) -> usize {
        let supers = index / SUPER_BLOCKS;
        match self.scales {
            Scales::Half { .. } => 2 * PANEL_ROWS * index,
            Scales::HalfOffset => 4 * PANEL_ROWS * index,
            Scales::Super => 4 * PANEL_ROWS * supers + 2 * PANEL_ROWS * index,
            Scales::SuperHalves => 2 * PANEL_ROWS * supers + 2 * PANEL_ROWS * index,
        }
    }
}

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
        pack_scales(format, source, first, lane, scales);
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
    if codes == Codes::Bits8 {
        for (group, bytes) in groups.iter().enumerate() {
            put(group, *bytes);
        }
        return;
    }
    for p in 0..4 {
        let (low, high) = (groups[p], groups[p + 4]);
        put(p, std::array::from_fn(|i| (low[i] & 15) | (high[i] << 4)));
    }
    match codes {
        Codes::Bits5 => put(
            4,
            std::array::from_fn(|i| {
                (0..8).fold(0, |bits, g| bits | ((groups[g][i] >> 4) & 1) << g)
            }),
        ),
        Codes::Bits6 => {
            for half in 0..2 {
                let pair = |i: usize| {
                    (0..4).fold(0, |bits, g| {
                        bits | ((groups[4 * half + g][i] >> 4) & 3) << (2 * g)
                    })
                };
                put(4 + half, std::array::from_fn(pair));
            }
        }
        Codes::Bits4 | Codes::Bits8 => {}
    }
}

/// Copies the scales of a source block whose first packed block is `first`.
fn pack_scales(format: PanelFormat, source: &[u8], first: usize, lane: usize, scales: &mut [u8]) {
    let at = format.scale_at(first);
    let mut put_half = |at: usize, from: usize| {
        scales[at + 2 * lane..][..2].copy_from_slice(&source[from..from + 2]);
    };
    match format.scales {
        Scales::Half { .. } => put_half(at, 0),
        Scales::HalfOffset => {
            put_half(at, 0);
            put_half(at + 2 * PANEL_ROWS, 2);
        }
        Scales::Super => {
            put_half(at, 0);
            put_half(at + 2 * PANEL_ROWS, 2);
            let at = at + 4 * PANEL_ROWS + lane;
            for sub in 0..SUPER_BLOCKS {
                let (scale, min) = reference::k_scale_min(&source[4..16], sub);
                scales[at + 2 * PANEL_ROWS * sub] = scale;
                scales[at + 2 * PANEL_ROWS * sub + PANEL_ROWS] = min;
            }
        }
        Scales::SuperHalves => {
            put_half(at, 208);
            let at = at + 2 * PANEL_ROWS + lane;
            for (sub, scale) in source[192..208].iter().enumerate() {
                scales[at + PANEL_ROWS * sub] = *scale;
            }
        }
    }
}

/// A panel's bytes and what they mean.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    pub format: PanelFormat,
    pub blocks: usize,
    pub codes: &'a [u8],
    pub scales: &'a [u8],
}

impl<'a> Panel<'a> {
    pub(crate) fn new(format: PanelFormat, blocks: usize, bytes: &'a [u8]) -> Self {
        assert_eq!(bytes.len(), format.panel_bytes(blocks), "this is a bug");
        let (codes, scales) = bytes.split_at(blocks * format.codes.block_bytes());
        Self {
            format,
            blocks,
            codes,
            scales,
        }
    }

    /// Bytes of the panel; the next one follows.
    pub(crate) fn bytes(&self) -> usize {
        self.codes.len() + self.scales.len()
    }

    /// The scale entries of block `index`: its own, and its super-block's header when it has one.
    pub(crate) fn scale_entries(&self, index: usize) -> (&'a [u8], &'a [u8]) {
        let (own, header_bytes) = match self.format.scales {
            Scales::Half { .. } => (2 * PANEL_ROWS, 0),
            Scales::HalfOffset => (4 * PANEL_ROWS, 0),
            Scales::Super => (2 * PANEL_ROWS, 4 * PANEL_ROWS),
            Scales::SuperHalves => (2 * PANEL_ROWS, 2 * PANEL_ROWS),
        };
        let header = self.format.scale_at(index / SUPER_BLOCKS * SUPER_BLOCKS);
        let at = self.format.scale_at(index) + header_bytes;
        (
            &self.scales[at..at + own],
            &self.scales[header..header + header_bytes],
        )
    }

    /// One row of block `index`, taken apart (the slow way, for lookups and the portable kernel).
    pub(crate) fn row(&self, index: usize, lane: usize) -> BlockRow {
        let block_bytes = self.format.codes.block_bytes();
        let (lines, _) = self.codes[index * block_bytes..][..block_bytes].as_chunks::<LINE_BYTES>();
        let codes = std::array::from_fn(|input| {
            let (group, byte) = (input / 4, 4 * lane + input % 4);
            if self.format.codes == Codes::Bits8 {
                return i16::from(lines[group][byte] as i8);
            }
            let both = lines[group % 4][byte];
            let nibble = if group < 4 { both & 15 } else { both >> 4 };
            let above = match self.format.codes {
                Codes::Bits5 => (lines[4][byte] >> group) & 1,
                Codes::Bits6 => (lines[4 + group / 4][byte] >> (2 * (group % 4))) & 3,
                Codes::Bits4 | Codes::Bits8 => 0,
            };
            i16::from(nibble | (above << 4))
        });
        BlockRow {
            codes,
            subs: self.subs(index, lane),
        }
    }

    /// How the codes of one row of block `index` are scaled: its first and its second half.
    pub(crate) fn subs(&self, index: usize, lane: usize) -> [SubBlock; 2] {
        let (own, header) = self.scale_entries(index);
        let half = |bytes: &[u8], entry: usize| {
            let at = 2 * (PANEL_ROWS * entry + lane);
            f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
        };
        match self.format.scales {
            Scales::Half { zero } => {
                let scale = half(own, 0);
                [SubBlock {
                    scale,
                    offset: -(zero as f32) * scale,
                }; 2]
            }
            Scales::HalfOffset => {
                [SubBlock {
                    scale: half(own, 0),
                    offset: half(own, 1),
                }; 2]
            }
            Scales::Super => {
                let scale = half(header, 0) * f32::from(own[lane]);
                let offset = -half(header, 1) * f32::from(own[PANEL_ROWS + lane]);
                [SubBlock { scale, offset }; 2]
            }
            Scales::SuperHalves => [0, 1].map(|part| {
                let scale = half(header, 0) * f32::from(own[PANEL_ROWS * part + lane] as i8);
                SubBlock {
                    scale,
                    offset: -(Q6K_ZERO as f32) * scale,
                }
            }),
        }
    }
}

/// 32 codes of one row and the scales of their halves.
pub(crate) struct BlockRow {
    pub codes: [i16; BLOCK_INPUTS],
    pub subs: [SubBlock; 2],
}
