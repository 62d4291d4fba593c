//! From the bytes of a file to the layout of the kernels ([`super::layout`]). Nothing is lost:
//! scales stay those of the file.

use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use ponder_kernels::DType;
use ponder_kernels::reference::{self, BlockParts};

use super::layout::{K_STEP, Layout, M_BLOCK, WARP_ROWS};
use crate::tensors::K_BLOCK;

/// Rows `g` and `g + 8` of a warp's 16.
const PAIR: usize = 2;
const ROWS_APART: usize = 8;
/// Lanes that share a row.
const QUAD: usize = 4;

/// Packs a matrix of row-major GGUF bytes on all processors.
///
/// # Panics
/// When the bytes are not `out_features * in_features` values, or rows are no whole blocks: who
/// loads checks that.
pub fn pack(
    dtype: DType,
    layout: Layout,
    data: &[u8],
    out_features: usize,
    in_features: usize,
) -> Vec<u8> {
    let row_bytes = dtype.byte_count(in_features).expect("rows of whole blocks");
    assert_eq!(data.len(), row_bytes * out_features, "bytes of a matrix");
    let mut packed = vec![0; layout.matrix_bytes(out_features, in_features)];
    let m_block_bytes = layout.m_block_bytes(in_features);
    let rows = data.chunks(row_bytes * M_BLOCK);
    let blocks = Mutex::new(packed.chunks_exact_mut(m_block_bytes).zip(rows));
    let num_blocks = out_features.div_ceil(M_BLOCK);
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        loop {
            let next = blocks.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((block, rows)) = next else { return };
            pack_m_block(dtype, layout, rows, row_bytes, block);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..num_threads.min(num_blocks) {
            scope.spawn(work);
        }
        work();
    });
    packed
}

/// Packs up to 64 rows; those that are missing stay zeros.
fn pack_m_block(dtype: DType, layout: Layout, rows: &[u8], row_bytes: usize, out: &mut [u8]) {
    let row = |index: usize| rows.get(index * row_bytes..(index + 1) * row_bytes);
    for warp in 0..M_BLOCK / WARP_ROWS {
        for g in 0..ROWS_APART {
            let first = warp * WARP_ROWS + g;
            let pair = [row(first), row(first + ROWS_APART)];
            let place = Place { layout, warp, g };
            match dtype {
                DType::F32 => unreachable!("F32 is not packed"),
                DType::F16 => place.pack_floats(pair, out, |x| {
                    bf16::from_f32(f16::from_bits(x).to_f32()).to_bits()
                }),
                DType::BF16 => place.pack_floats(pair, out, |x| x),
                _ => place.pack_blocks(dtype, pair, out),
            }
        }
    }
}

/// Where two rows go in a block of outputs.
#[derive(Clone, Copy)]
struct Place {
    layout: Layout,
    warp: usize,
    g: usize,
}

/// Codes of two rows in one k block.
type Codes = [[u8; K_BLOCK]; PAIR];

impl Place {
    fn pack_floats(
        self,
        pair: [Option<&[u8]>; PAIR],
        out: &mut [u8],
        convert: impl Fn(u16) -> u16,
    ) {
        for (half, row) in pair.into_iter().enumerate() {
            let Some(row) = row else { continue };
            let mut put = |k: usize, values: &[u8]| {
                let step = k % K_BLOCK / K_STEP;
                let (t, i, odd) = (k % 8 / 2, half + k % K_STEP / 8 * 2, k % 2);
                let fragment = (step * (M_BLOCK / WARP_ROWS) + self.warp) * 32 + self.g * QUAD + t;
                let at = self.layout.offset_of(k / K_BLOCK) + fragment * 16 + i * 4 + odd * 2;
                out[at..at + values.len()].copy_from_slice(values);
            };
            let converted = |a: u8, b: u8| convert(u16::from_le_bytes([a, b])).to_le_bytes();
            let (two, rest) = row.as_chunks::<4>();
            for (index, &[a, b, c, d]) in two.iter().enumerate() {
                let (low, high) = (converted(a, b), converted(c, d));
                put(2 * index, &[low[0], low[1], high[0], high[1]]);
            }
            if let [a, b] = *rest {
                put(2 * two.len(), &converted(a, b));
            }
        }
    }

    fn pack_blocks(self, dtype: DType, pair: [Option<&[u8]>; PAIR], out: &mut [u8]) {
        let (size, block_bytes) = (dtype.block_size(), dtype.block_bytes());
        let Some(num_sources) = pair[0].map(|row| row.len() / block_bytes) else {
            return;
        };
        // A source block is several k blocks, or a k block is several of them.
        let group = (K_BLOCK / size).max(1);
        let mut parts = BlockParts::default();
        for first in (0..num_sources).step_by(group) {
            let first_block = first * size / K_BLOCK;
            let mut codes = [[[0; K_BLOCK]; PAIR]; 4];
            for (half, row) in pair.into_iter().enumerate() {
                let Some(row) = row else { continue };
                for source_idx in first..(first + group).min(num_sources) {
                    let source = &row[source_idx * block_bytes..][..block_bytes];
                    reference::split_block(dtype, source, &mut parts);
                    self.pack_scales(dtype, source, source_idx * size, half, out);
                    for (k, code) in parts.codes[..size].iter().enumerate() {
                        let k = source_idx * size % (group * size) + k;
                        codes[k / K_BLOCK][half][k % K_BLOCK] = *code;
                    }
                }
            }
            for (index, codes) in codes[..size.div_ceil(K_BLOCK)].iter().enumerate() {
                let at = self.layout.offset_of(first_block + index);
                self.pack_codes(codes, &mut out[at..][..self.layout.block_bytes()]);
            }
        }
    }

    /// Scales of a source block that begins at input `k` of the row.
    fn pack_scales(self, dtype: DType, source: &[u8], k: usize, half: usize, out: &mut [u8]) {
        let layout = self.layout;
        let pair_idx = self.warp * ROWS_APART + self.g;
        for sub in 0..dtype.block_size() / layout.sub_block {
            let k = k + sub * layout.sub_block;
            let entry = k % K_BLOCK / layout.sub_block * PAIR + half;
            let at = layout.offset_of(k / K_BLOCK)
                + layout.scales_at()
                + pair_idx * layout.pair_scale_bytes()
                + entry * layout.scale_bytes;
            let entry = &mut out[at..at + layout.scale_bytes];
            match dtype {
                DType::Q4K | DType::Q5K => entry.copy_from_slice(&scale_min(&source[4..16], sub)),
                DType::Q6K => entry[0] = source[192 + sub] ^ 0x80,
                _ => entry.copy_from_slice(&source[..layout.scale_bytes]),
            }
        }
        if layout.super_bytes > 0 {
            let at = layout.offset_of(k / K_BLOCK) - layout.header_bytes();
            let at = at + (pair_idx * PAIR + half) * layout.super_bytes;
            let from = if dtype == DType::Q6K { 208 } else { 0 };
            let header = &source[from..from + layout.super_bytes];
            out[at..at + layout.super_bytes].copy_from_slice(header);
        }
    }

    fn pack_codes(self, codes: &Codes, block: &mut [u8]) {
        match self.layout.code_bits {
            4 => self.pack_codes_of::<4>(codes, block),
            5 => self.pack_codes_of::<5>(codes, block),
            6 => self.pack_codes_of::<6>(codes, block),
            _ => self.pack_codes_of::<8>(codes, block),
        }
    }

    /// Codes of a k block, all lanes of a quad.
    fn pack_codes_of<const BITS: usize>(self, codes: &Codes, block: &mut [u8]) {
        let layout = self.layout;
        let (low, rest) = block.split_at_mut(layout.low_bytes());
        let mut put = |at: usize, word: u32| {
            low[at..at + 4].copy_from_slice(&word.to_le_bytes());
        };
        for t in 0..QUAD {
            let lane = self.warp * 32 + self.g * QUAD + t;
            let mut high = [0_u32; 2];
            for step in 0..K_BLOCK / K_STEP {
                let mut words = [0_u32; 2];
                for i in 0..4 {
                    let k = step * K_STEP + i / 2 * 8 + 2 * t;
                    for odd in 0..2 {
                        let code = u32::from(codes[i % PAIR][k + odd]);
                        if BITS == 8 {
                            words[i / 2] |= (code ^ 0x80) << (i % 2 * 16 + odd * 8);
                        } else {
                            words[0] |= (code & 15) << (4 * i + 16 * odd);
                            add_high::<BITS>(&mut high, code >> 4, [step, i, odd]);
                        }
                    }
                }
                if BITS == 8 {
                    let at = (step / 2 * (M_BLOCK / WARP_ROWS) * 32 + lane) * 16 + step % 2 * 8;
                    put(at, words[0]);
                    put(at + 4, words[1]);
                } else {
                    put(lane * 16 + step * 4, words[0]);
                }
            }
            for (index, word) in high[..layout.high_bytes() / 4].iter().enumerate() {
                let at = lane * layout.high_bytes() + index * 4;
                rest[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
}

/// Puts the upper bits of a code where turning the word brings them above the nibble.
fn add_high<const BITS: usize>(high: &mut [u32; 2], bits: u32, [step, i, odd]: [usize; 3]) {
    let (word, turn) = match BITS {
        5 => (0, step + i / 2 * 8),
        6 => (step / 2, step % 2 * 2 + i / 2 * 8),
        _ => return,
    };
    let at = 4 + i % 2 * 4 + odd * 16;
    high[word] |= (bits << at).rotate_left(turn as u32);
}

/// The 6-bit scale and minimum of sub-block `index` (0..8) in a Q4_K or Q5_K block.
fn scale_min(scales: &[u8], index: usize) -> [u8; 2] {
    match index {
        0..4 => [scales[index] & 63, scales[index + 4] & 63],
        _ => [
            (scales[index + 4] & 15) | ((scales[index - 4] >> 6) << 4),
            (scales[index + 4] >> 4) | ((scales[index] >> 6) << 4),
        ],
    }
}

#[cfg(test)]
#[path = "tests/pack.rs"]
mod tests;
