//! The layout that the kernels stream: panels of [`PANEL_ROWS`] interleaved output rows.
//!
//! A panel is its codes, one block for every 32 input features, and then its scales. A block of
//! codes is a sequence of 64-byte lines; byte `4 r + i` of a line belongs to row `r` of the panel,
//! so one line feeds sixteen rows with the same four inputs (what `vpdpbusd` and an AMX tile want):
//!
//! | lines | 2-bit | 3-bit | 4-bit | 5-bit | 6-bit | 8-bit |
//! |---|---|---|---|---|---|---|
//! | nibbles: line `p` has input `4 p + i` low, input `16 + 4 p + i` high | – | – | 4 | 4 | 4 | – |
//! | bit pairs: bits `2 g`, `2 g + 1` of line `h` belong to input `16 h + 4 g + i` | 2 | 2 | – | – | 2 | – |
//! | bits above: bit `g` belongs to input `4 g + i` | – | 1 | – | 1 | – | – |
//! | whole codes, signed: line `g` is input `4 g + i` | – | – | – | – | – | 8 |
//!
//! A 4-bit code may be a number or the index of one ([`Codebook`]). IQ2 and IQ3 blocks name entries
//! of a grid of several values; here each value has its own 4-bit code.
//!
//! The scales are those of the file, so packing loses nothing ([`Scales`]).

mod pack;
mod words;

use half::f16;

use crate::codebook::{self, Codebook};
use crate::cpu;
use crate::dtype::DType;
use crate::reference::SubBlock;

pub(crate) use pack::pack_panel;

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
    Bits2,
    Bits3,
    Bits4,
    Bits5,
    Bits6,
    /// Signed.
    Bits8,
    /// Four bits that name a signed value.
    Named(Codebook),
}

impl Codes {
    /// Bytes of one block of a panel.
    pub(crate) const fn block_bytes(self) -> usize {
        LINE_BYTES
            * match self {
                Codes::Bits2 => 2,
                Codes::Bits3 => 3,
                Codes::Bits4 | Codes::Named(_) => 4,
                Codes::Bits5 => 5,
                Codes::Bits6 => 6,
                Codes::Bits8 => 8,
            }
    }

    /// What signed integer scales are multiplied by.
    pub(crate) fn unit(self) -> f32 {
        match self {
            Codes::Named(codebook) => codebook.unit(),
            _ => 1.0,
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
    /// `value = d * scale * (code - zero)`, times the codebook's unit.
    SuperHalves { zero: i32 },
    /// Eight blocks: f16 `d`, f16 `d_min`, then for each block a byte for its first and one for its
    /// second 16 inputs: 4-bit scale low, 4-bit minimum high.
    /// `value = d * scale * code - d_min * minimum`.
    SuperHalvesOffset,
    /// Eight blocks: f16 `d`, then for each block an i8 scale. `value = d * scale * code`, times
    /// the codebook's unit.
    SuperSigned,
    /// A block: u8 exponent. `value = 2^(exponent - 128) * code`.
    Exponent,
}

impl Scales {
    /// Bytes of a super-block's header and of a block's own scales.
    const fn entry_bytes(self) -> (usize, usize) {
        match self {
            Scales::Half { .. } => (0, 2 * PANEL_ROWS),
            Scales::HalfOffset => (0, 4 * PANEL_ROWS),
            Scales::Super | Scales::SuperHalvesOffset => (4 * PANEL_ROWS, 2 * PANEL_ROWS),
            Scales::SuperHalves { .. } => (2 * PANEL_ROWS, 2 * PANEL_ROWS),
            Scales::SuperSigned => (2 * PANEL_ROWS, PANEL_ROWS),
            Scales::Exponent => (0, PANEL_ROWS),
        }
    }
}

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
            DType::Q6K => (Codes::Bits6, Scales::SuperHalves { zero: 32 }),
            DType::Q2K => (Codes::Bits2, Scales::SuperHalvesOffset),
            DType::Q3K => (Codes::Bits3, Scales::SuperHalves { zero: 4 }),
            DType::IQ2_XS | DType::IQ2_S => {
                (Codes::Named(Codebook::Iq2), Scales::SuperHalves { zero: 0 })
            }
            DType::IQ2_XXS => (Codes::Named(Codebook::Iq2), Scales::SuperSigned),
            DType::IQ3_XXS => (Codes::Named(Codebook::Iq3Xxs), Scales::SuperSigned),
            DType::IQ3_S => (Codes::Named(Codebook::Iq3S), Scales::SuperSigned),
            DType::IQ4_NL => (Codes::Named(Codebook::Iq4), Scales::Half { zero: 0 }),
            DType::IQ4_XS => (Codes::Named(Codebook::Iq4), Scales::SuperSigned),
            DType::MXFP4 => (Codes::Named(Codebook::Mxfp4), Scales::Exponent),
            DType::F32 | DType::F16 | DType::BF16 => return None,
        };
        Some(Self { codes, scales })
    }

    /// Bytes of a panel over `blocks` blocks; a multiple of a line.
    pub(crate) fn panel_bytes(self, blocks: usize) -> usize {
        let scales = self.scale_at(match self.scales.entry_bytes() {
            (0, _) => blocks,
            _ => blocks.next_multiple_of(SUPER_BLOCKS),
        });
        blocks * self.codes.block_bytes() + scales.next_multiple_of(LINE_BYTES)
    }

    /// Where block `index`'s own scales begin in the scales part of a panel, its super-block's header
    /// not counted.
    const fn scale_at(self, index: usize) -> usize {
        let (header, own) = self.scales.entry_bytes();
        header * (index / SUPER_BLOCKS) + own * index
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
        let (header_bytes, own) = self.format.scales.entry_bytes();
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
            let nibble = || (lines[group % 4][byte] >> (4 * (group / 4))) & 15;
            let pair = |first: usize| (lines[first + group / 4][byte] >> (2 * (group % 4))) & 3;
            let bit = |line: usize| (lines[line][byte] >> group) & 1;
            let code = match self.format.codes {
                Codes::Bits2 => pair(0),
                Codes::Bits3 => pair(0) | bit(2) << 2,
                Codes::Bits4 => nibble(),
                Codes::Bits5 => nibble() | bit(4) << 4,
                Codes::Bits6 => nibble() | pair(4) << 4,
                Codes::Bits8 => return i16::from(lines[group][byte] as i8),
                Codes::Named(codebook) => {
                    return i16::from(codebook.values()[usize::from(nibble())]);
                }
            };
            i16::from(code)
        });
        BlockRow {
            codes,
            subs: self.subs(index, lane),
        }
    }

    /// How the codes of block `index` are scaled, in every row: `[scale, offset]` of its first and
    /// of its second half.
    #[inline]
    pub(crate) fn scales_of_rows(&self, index: usize) -> [[[f32; PANEL_ROWS]; 2]; 2] {
        if let Scales::Half { zero } = self.format.scales {
            let (own, _) = self.scale_entries(index);
            let bits = own.as_chunks::<2>().0.iter();
            let bits = bits.map(|bytes| u16::from_le_bytes(*bytes));
            let mut halves = [0; PANEL_ROWS];
            halves
                .iter_mut()
                .zip(bits)
                .for_each(|(half, bits)| *half = bits);
            let mut scales = [0.0; PANEL_ROWS];
            cpu::widen_halves(&halves, &mut scales);
            return [[scales, scales.map(|scale| -(zero as f32) * scale)]; 2];
        }
        let rows: [_; PANEL_ROWS] = std::array::from_fn(|lane| self.subs(index, lane));
        [0, 1].map(|half| {
            [
                rows.map(|subs| subs[half].scale),
                rows.map(|subs| subs[half].offset),
            ]
        })
    }

    /// How the codes of one row of block `index` are scaled: its first and its second half.
    pub(crate) fn subs(&self, index: usize, lane: usize) -> [SubBlock; 2] {
        let (own, header) = self.scale_entries(index);
        let half = |bytes: &[u8], entry: usize| {
            let at = 2 * (PANEL_ROWS * entry + lane);
            f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
        };
        let unit = self.format.codes.unit();
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
            Scales::SuperHalves { zero } => [0, 1].map(|part| {
                let factor = f32::from(own[PANEL_ROWS * part + lane] as i8);
                let scale = half(header, 0) * factor * unit;
                SubBlock {
                    scale,
                    offset: -(zero as f32) * scale,
                }
            }),
            Scales::SuperHalvesOffset => [0, 1].map(|part| {
                let both = own[PANEL_ROWS * part + lane];
                SubBlock {
                    scale: half(header, 0) * f32::from(both & 15),
                    offset: -half(header, 1) * f32::from(both >> 4),
                }
            }),
            Scales::SuperSigned => {
                let scale = half(header, 0) * f32::from(own[lane] as i8) * unit;
                [SubBlock { scale, offset: 0.0 }; 2]
            }
            Scales::Exponent => {
                let scale = codebook::half_power(own[lane]);
                [SubBlock { scale, offset: 0.0 }; 2]
            }
        }
    }
}

/// 32 codes of one row and the scales of their halves.
pub(crate) struct BlockRow {
    pub codes: [i16; BLOCK_INPUTS],
    pub subs: [SubBlock; 2],
}
