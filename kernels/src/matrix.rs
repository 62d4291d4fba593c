//! Weight matrices repacked at load into the layout that the kernels stream.
//!
//! Quantised rows are interleaved in panels of [`PANEL_ROWS`] output rows. A panel is a sequence of
//! blocks, one for every 32 input features; a block holds (sizes in bytes):
//!
//! | part | 4-bit | 5-bit | 6-bit | 8-bit |
//! |---|---|---|---|---|
//! | scales, f16, one a row (two for 6-bit: a scale covers 16 inputs) | 16 | 16 | 32 | 16 |
//! | offsets, f16, one a row (`value = scale * code + offset`) | 16 | 16 | – | – |
//! | low nibbles: byte `32 p + 4 r + i` has input `4 p + i` low, input `16 + 4 p + i` high | 128 | 128 | 128 | – |
//! | bit planes: bit `g` of byte `4 r + i` belongs to input `4 g + i` | – | 32 | 64 | – |
//! | whole codes, signed: byte `32 g + 4 r + i` is input `4 g + i` | – | – | – | 256 |
//!
//! where `r` is the row in the panel. So one 256-bit load feeds eight rows with the same four inputs.
//! 6-bit codes carry their offset as the constant 32.

use half::f16;

use crate::dtype::DType;
use crate::error::KernelError;
use crate::partition::{Chunks, SharedSlice};
use crate::pool::ThreadPool;
use crate::reference::{self, SubBlock};

/// Output rows interleaved in one panel.
pub const PANEL_ROWS: usize = 8;
/// Input features covered by one packed block.
pub const BLOCK_INPUTS: usize = 32;

/// The packed form of a quantised type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codes {
    Bits4,
    Bits5,
    Bits6,
    Bits8,
}

impl Codes {
    fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::Q4_0 | DType::Q4_1 | DType::Q4K => Some(Codes::Bits4),
            DType::Q5_0 | DType::Q5_1 | DType::Q5K => Some(Codes::Bits5),
            DType::Q6K => Some(Codes::Bits6),
            DType::Q8_0 => Some(Codes::Bits8),
            DType::F32 | DType::F16 | DType::BF16 => None,
        }
    }

    /// Bytes of one block of a panel.
    pub(crate) const fn block_bytes(self) -> usize {
        match self {
            Codes::Bits4 => 160,
            Codes::Bits5 => 192,
            Codes::Bits6 => 224,
            Codes::Bits8 => 272,
        }
    }

    /// Where the codes begin in a block: after scales and offsets.
    pub(crate) const fn codes_at(self) -> usize {
        match self {
            Codes::Bits8 => 16,
            _ => 32,
        }
    }

    const fn num_planes(self) -> usize {
        match self {
            Codes::Bits4 | Codes::Bits8 => 0,
            Codes::Bits5 => 1,
            Codes::Bits6 => 2,
        }
    }
}

#[derive(Debug)]
pub(crate) enum Storage {
    Panels { codes: Codes, bytes: Vec<u8> },
    F32(Vec<f32>),
    F16(Vec<u16>),
    BF16(Vec<u16>),
}

/// A weight matrix `[out_features, in_features]` in kernel layout.
#[derive(Debug)]
pub struct PackedMatrix {
    out_features: usize,
    in_features: usize,
    pub(crate) storage: Storage,
}

impl PackedMatrix {
    /// Repacks row-major GGUF bytes. Scales are rounded to f16 (relative error below 5e-4).
    pub fn pack(
        pool: &ThreadPool,
        dtype: DType,
        data: &[u8],
        out_features: usize,
        in_features: usize,
    ) -> Result<Self, KernelError> {
        check(dtype, data, out_features, in_features)?;
        let storage = match (dtype, Codes::of(dtype)) {
            (_, Some(codes)) => Storage::Panels {
                codes,
                bytes: pack_panels(pool, dtype, codes, data, out_features, in_features),
            },
            (DType::F16, None) => Storage::F16(words(data)),
            (DType::BF16, None) => Storage::BF16(words(data)),
            _ => {
                let mut values = vec![0.0; out_features * in_features];
                reference::dequantize(dtype, data, &mut values);
                Storage::F32(values)
            }
        };
        Ok(Self {
            out_features,
            in_features,
            storage,
        })
    }

    pub fn out_features(&self) -> usize {
        self.out_features
    }

    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Bytes held in memory.
    pub fn nbytes(&self) -> usize {
        match &self.storage {
            Storage::Panels { bytes, .. } => bytes.len(),
            Storage::F32(values) => values.len() * 4,
            Storage::F16(values) | Storage::BF16(values) => values.len() * 2,
        }
    }

    /// Writes row `row` (`in_features` values) as f32: an embedding lookup.
    ///
    /// # Panics
    /// When `row` or `out` do not fit the matrix.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.out_features,
            "row {row} of {}",
            self.out_features
        );
        assert_eq!(out.len(), self.in_features, "one value per input feature");
        let range = row * self.in_features..(row + 1) * self.in_features;
        match &self.storage {
            Storage::F32(values) => out.copy_from_slice(&values[range]),
            Storage::F16(values) => {
                for (out, bits) in out.iter_mut().zip(&values[range]) {
                    *out = f16::from_bits(*bits).to_f32();
                }
            }
            Storage::BF16(values) => {
                for (out, bits) in out.iter_mut().zip(&values[range]) {
                    *out = f32::from_bits(u32::from(*bits) << 16);
                }
            }
            Storage::Panels { codes, bytes } => {
                let blocks = self.in_features / BLOCK_INPUTS;
                let panel_bytes = blocks * codes.block_bytes();
                let panel = &bytes[row / PANEL_ROWS * panel_bytes..][..panel_bytes];
                let lane = row % PANEL_ROWS;
                for (block, out) in panel
                    .chunks_exact(codes.block_bytes())
                    .zip(out.chunks_exact_mut(BLOCK_INPUTS))
                {
                    let unpacked = UnpackedRow::read(*codes, block, lane);
                    for (index, value) in out.iter_mut().enumerate() {
                        let sub = unpacked.subs[index / 16];
                        *value = sub.scale * f32::from(unpacked.codes[index]) + sub.offset;
                    }
                }
            }
        }
    }
}

/// One row of one packed block, taken apart (the slow way, for lookups and the portable kernel).
pub(crate) struct UnpackedRow {
    pub codes: [i16; BLOCK_INPUTS],
    /// One a half block.
    pub subs: [SubBlock; 2],
}

impl UnpackedRow {
    pub(crate) fn read(codes: Codes, block: &[u8], lane: usize) -> Self {
        let half_at = |at: usize| {
            f16::from_le_bytes([block[at + 2 * lane], block[at + 2 * lane + 1]]).to_f32()
        };
        let scale = half_at(0);
        let subs = match codes {
            Codes::Bits4 | Codes::Bits5 => {
                let offset = half_at(16);
                [SubBlock { scale, offset }; 2]
            }
            Codes::Bits6 => [scale, half_at(16)].map(|scale| SubBlock {
                scale,
                offset: -32.0 * scale,
            }),
            Codes::Bits8 => [SubBlock { scale, offset: 0.0 }; 2],
        };
        let body = &block[codes.codes_at()..];
        let mut values = [0_i16; BLOCK_INPUTS];
        for (index, value) in values.iter_mut().enumerate() {
            let (group, within) = (index / 4, index % 4);
            let byte_in_group = 4 * lane + within;
            *value = if codes == Codes::Bits8 {
                i16::from(body[32 * group + byte_in_group] as i8)
            } else {
                let byte = body[32 * (group % 4) + byte_in_group];
                let mut code = if group < 4 { byte & 15 } else { byte >> 4 };
                for plane in 0..codes.num_planes() {
                    let bits = body[128 + 32 * plane + byte_in_group];
                    code |= ((bits >> group) & 1) << (4 + plane);
                }
                i16::from(code)
            };
        }
        Self {
            codes: values,
            subs,
        }
    }
}

fn check(
    dtype: DType,
    data: &[u8],
    out_features: usize,
    in_features: usize,
) -> Result<(), KernelError> {
    let bad_shape = KernelError::BadShape {
        out_features,
        in_features,
    };
    if out_features == 0 || in_features == 0 {
        return Err(bad_shape);
    }
    let ragged = |block_size| KernelError::RaggedBlock {
        dtype: dtype.name(),
        block_size,
        in_features,
    };
    let row_bytes = dtype
        .byte_count(in_features)
        .ok_or_else(|| ragged(dtype.block_size()))?;
    let expected = row_bytes.checked_mul(out_features).ok_or(bad_shape)?;
    if expected != data.len() {
        return Err(KernelError::WrongByteCount {
            dtype: dtype.name(),
            out_features,
            in_features,
            expected,
            actual: data.len(),
        });
    }
    Ok(())
}

fn words(data: &[u8]) -> Vec<u16> {
    data.as_chunks::<2>()
        .0
        .iter()
        .map(|bytes| u16::from_le_bytes(*bytes))
        .collect()
}

fn pack_panels(
    pool: &ThreadPool,
    dtype: DType,
    codes: Codes,
    data: &[u8],
    out_features: usize,
    in_features: usize,
) -> Vec<u8> {
    let num_panels = out_features.div_ceil(PANEL_ROWS);
    let panel_bytes = in_features / BLOCK_INPUTS * codes.block_bytes();
    let row_bytes = data.len() / out_features;
    let mut bytes = vec![0_u8; num_panels * panel_bytes];
    let shared = SharedSlice::new(&mut bytes);
    let chunks = Chunks::new(num_panels);
    pool.run(&|_, _| {
        let (mut values, mut subs) = (Vec::new(), Vec::new());
        while let Some(panel_index) = chunks.take() {
            // SAFETY: each panel is taken once.
            let panel = unsafe { shared.slice_mut(panel_index * panel_bytes, panel_bytes) };
            for lane in 0..PANEL_ROWS.min(out_features - panel_index * PANEL_ROWS) {
                let row = panel_index * PANEL_ROWS + lane;
                let row_data = &data[row * row_bytes..][..row_bytes];
                let mut block_index = 0;
                for source in row_data.chunks_exact(dtype.block_bytes()) {
                    reference::split_block(dtype, source, &mut values, &mut subs);
                    let subs_per_block = subs.len() * BLOCK_INPUTS / values.len();
                    for (block_codes, block_subs) in values
                        .chunks_exact(BLOCK_INPUTS)
                        .zip(subs.chunks_exact(subs_per_block))
                    {
                        let block =
                            &mut panel[block_index * codes.block_bytes()..][..codes.block_bytes()];
                        pack_row(codes, block, lane, block_codes, block_subs);
                        block_index += 1;
                    }
                }
            }
        }
    });
    bytes
}

fn pack_row(codes: Codes, block: &mut [u8], lane: usize, values: &[i16], subs: &[SubBlock]) {
    let mut put_half = |at: usize, value: f32| {
        block[at + 2 * lane..][..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
    };
    put_half(0, subs[0].scale);
    match codes {
        Codes::Bits4 | Codes::Bits5 => put_half(16, subs[0].offset),
        Codes::Bits6 => put_half(16, subs[1].scale),
        Codes::Bits8 => {}
    }
    let body = &mut block[codes.codes_at()..];
    for (index, value) in values.iter().enumerate() {
        let (group, within) = (index / 4, index % 4);
        let byte_in_group = 4 * lane + within;
        if codes == Codes::Bits8 {
            body[32 * group + byte_in_group] = *value as u8;
            continue;
        }
        let code = *value as u8;
        body[32 * (group % 4) + byte_in_group] |= (code & 15) << (4 * (group / 4));
        for plane in 0..codes.num_planes() {
            body[128 + 32 * plane + byte_in_group] |= ((code >> (4 + plane)) & 1) << group;
        }
    }
}
