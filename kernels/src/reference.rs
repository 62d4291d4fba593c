//! Plain dequantisation and products: the definition of right for the packed kernels.
//!
//! Block layouts are those of ggml's `ggml-common.h`.

mod grids;
mod low_bits;

use half::{bf16, f16};

use crate::codebook::{self, Codebook};
use crate::dtype::DType;

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Bit `index` of the little-endian 32-bit word at `at`.
fn high_bit(block: &[u8], at: usize, index: usize) -> u8 {
    (block[at + index / 8] >> (index % 8)) & 1
}

/// The 6-bit scale and minimum of sub-block `index` (0..8) in a Q4_K or Q5_K block.
pub(crate) fn k_scale_min(scales: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        (scales[index] & 63, scales[index + 4] & 63)
    } else {
        (
            (scales[index + 4] & 15) | ((scales[index - 4] >> 6) << 4),
            (scales[index + 4] >> 4) | ((scales[index] >> 6) << 4),
        )
    }
}

/// A run of quantised values that share a scale: `value = scale * code + offset`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SubBlock {
    pub scale: f32,
    pub offset: f32,
}

/// The largest block's values.
const MAX_BLOCK: usize = 256;

/// A block taken apart.
#[derive(Debug, Clone)]
pub struct BlockParts {
    /// One a value; unsigned except Q8_0's, which are two's complement. In types with a table of
    /// values they are its indices.
    pub codes: [u8; MAX_BLOCK],
    /// One for 32 values, or for 16 where scales are so fine.
    pub subs: [SubBlock; MAX_BLOCK / 16],
}

impl Default for BlockParts {
    fn default() -> Self {
        let sub = SubBlock {
            scale: 0.0,
            offset: 0.0,
        };
        Self {
            codes: [0; MAX_BLOCK],
            subs: [sub; MAX_BLOCK / 16],
        }
    }
}

/// Takes a block apart into integer codes and scales; float types are not blocks.
pub fn split_block(dtype: DType, block: &[u8], parts: &mut BlockParts) {
    split_codes(dtype, block, parts);
    split_scales(dtype, block, parts);
}

/// Values that share a scale.
fn sub_block_size(dtype: DType) -> usize {
    match dtype {
        DType::Q2K | DType::Q3K | DType::Q6K | DType::IQ2_XS | DType::IQ2_S => 16,
        _ => 32,
    }
}

/// The codes of a block.
pub(crate) fn split_codes(dtype: DType, block: &[u8], parts: &mut BlockParts) {
    let codes = &mut parts.codes;
    match dtype {
        DType::Q4_0 => split_nibbles(&block[2..18], codes),
        DType::Q4_1 => split_nibbles(&block[4..20], codes),
        DType::Q5_0 | DType::Q5_1 => {
            let high = if dtype == DType::Q5_0 { 2 } else { 4 };
            split_nibbles(&block[high + 4..high + 20], codes);
            for (index, code) in codes[..32].iter_mut().enumerate() {
                *code |= high_bit(block, high, index) << 4;
            }
        }
        DType::Q8_0 => codes[..32].copy_from_slice(&block[2..34]),
        DType::Q4K | DType::Q5K => split_k45_codes(dtype, block, codes),
        DType::Q6K => split_q6k_codes(block, codes),
        DType::Q2K | DType::Q3K => low_bits::split_k23_codes(dtype, block, codes),
        DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S => {
            low_bits::split_iq2_codes(dtype, block, codes);
        }
        DType::IQ3_XXS | DType::IQ3_S => low_bits::split_iq3_codes(dtype, block, codes),
        DType::IQ4_NL => split_nibbles(&block[2..18], codes),
        DType::MXFP4 => split_nibbles(&block[1..17], codes),
        DType::IQ4_XS => {
            for (codes, bytes) in codes.chunks_exact_mut(32).zip(block[8..].chunks_exact(16)) {
                split_nibbles(bytes, codes);
            }
        }
        DType::F32 | DType::F16 | DType::BF16 => unreachable!("float types have no blocks"),
    }
}

/// Sixteen bytes whose low nibbles are the first half of a block, high nibbles the second.
fn split_nibbles(bytes: &[u8], codes: &mut [u8]) {
    for (index, byte) in bytes.iter().enumerate() {
        codes[index] = byte & 15;
        codes[index + 16] = byte >> 4;
    }
}

fn split_k45_codes(dtype: DType, block: &[u8], codes: &mut [u8; MAX_BLOCK]) {
    let low = if dtype == DType::Q4K { 16 } else { 48 };
    for (pair, codes) in codes.chunks_exact_mut(64).enumerate() {
        let bytes = &block[low + 32 * pair..][..32];
        let (first, second) = codes.split_at_mut(32);
        for index in 0..32 {
            first[index] = bytes[index] & 15;
            second[index] = bytes[index] >> 4;
        }
        if dtype == DType::Q5K {
            for (index, bits) in block[16..48].iter().enumerate() {
                first[index] |= ((bits >> (2 * pair)) & 1) << 4;
                second[index] |= ((bits >> (2 * pair + 1)) & 1) << 4;
            }
        }
    }
}

fn split_q6k_codes(block: &[u8], codes: &mut [u8; MAX_BLOCK]) {
    let (low, high) = (&block[..128], &block[128..192]);
    for (part, codes) in codes.chunks_exact_mut(128).enumerate() {
        for (quarter, codes) in codes.chunks_exact_mut(32).enumerate() {
            let low = &low[part * 64 + (quarter % 2) * 32..][..32];
            let high = &high[part * 32..][..32];
            for ((code, low), high) in codes.iter_mut().zip(low).zip(high) {
                let nibble = if quarter < 2 { low & 15 } else { low >> 4 };
                *code = nibble | (((high >> (2 * quarter)) & 3) << 4);
            }
        }
    }
}

/// Where a block with integer scales has the f16 that they multiply.
pub(crate) fn d_at(dtype: DType) -> usize {
    match dtype {
        DType::Q2K => 80,
        DType::Q3K => 108,
        DType::Q6K => 208,
        _ => 0,
    }
}

/// The signed integer scales of a block: sixteen, or eight and zeros.
pub(crate) fn signed_factors(dtype: DType, block: &[u8]) -> [i8; 16] {
    match dtype {
        DType::Q3K => low_bits::q3k_factors(block),
        DType::Q6K => std::array::from_fn(|index| block[192 + index] as i8),
        DType::IQ4_XS => low_bits::iq4_xs_factors(block),
        _ => low_bits::grid_factors(dtype, block),
    }
}

/// The scales of a block.
fn split_scales(dtype: DType, block: &[u8], parts: &mut BlockParts) {
    let scale = half_at(block, 0);
    let with = |offset: f32| SubBlock { scale, offset };
    match dtype {
        DType::Q4_0 => parts.subs[0] = with(-8.0 * scale),
        DType::Q5_0 => parts.subs[0] = with(-16.0 * scale),
        DType::Q4_1 | DType::Q5_1 => parts.subs[0] = with(half_at(block, 2)),
        DType::Q8_0 => parts.subs[0] = with(0.0),
        DType::Q4K | DType::Q5K => {
            let d_min = half_at(block, 2);
            for (index, sub) in parts.subs[..8].iter_mut().enumerate() {
                let (factor, min) = k_scale_min(&block[4..16], index);
                *sub = SubBlock {
                    scale: scale * f32::from(factor),
                    offset: -d_min * f32::from(min),
                };
            }
        }
        DType::Q2K => {
            let (d, d_min) = (half_at(block, 80), half_at(block, 82));
            for (byte, sub) in block[..16].iter().zip(&mut parts.subs) {
                *sub = SubBlock {
                    scale: d * f32::from(byte & 15),
                    offset: -d_min * f32::from(byte >> 4),
                };
            }
        }
        DType::IQ4_NL => parts.subs[0] = with(0.0),
        DType::MXFP4 => {
            parts.subs[0] = SubBlock {
                scale: codebook::half_power(block[0]),
                offset: 0.0,
            }
        }
        DType::Q3K | DType::Q6K | DType::IQ4_XS => split_signed_scales(dtype, block, parts),
        DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S | DType::IQ3_XXS | DType::IQ3_S => {
            split_signed_scales(dtype, block, parts);
        }
        DType::F32 | DType::F16 | DType::BF16 => unreachable!("float types have no blocks"),
    }
}

fn split_signed_scales(dtype: DType, block: &[u8], parts: &mut BlockParts) {
    let d = half_at(block, d_at(dtype));
    let unit = Codebook::of(dtype).map_or(1.0, Codebook::unit);
    let zero = match dtype {
        DType::Q3K => 4.0,
        DType::Q6K => 32.0,
        _ => 0.0,
    };
    for (factor, sub) in signed_factors(dtype, block).iter().zip(&mut parts.subs) {
        let scale = d * f32::from(*factor) * unit;
        *sub = SubBlock {
            scale,
            offset: -zero * scale,
        };
    }
}

/// What a code of a quantised type stands for before it is scaled.
fn code_value(dtype: DType, code: u8) -> f32 {
    match Codebook::of(dtype) {
        Some(codebook) => f32::from(codebook.values()[usize::from(code & 15)]),
        None if dtype == DType::Q8_0 => f32::from(code as i8),
        None => f32::from(code),
    }
}

/// Dequantises `data` into `out`; `out.len()` values must fill whole blocks.
///
/// # Panics
/// When `data` is shorter than `out` needs.
pub fn dequantize(dtype: DType, data: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => {
            for (value, bytes) in out.iter_mut().zip(data.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        DType::F16 => {
            for (value, bytes) in out.iter_mut().zip(data.as_chunks::<2>().0) {
                *value = f16::from_le_bytes(*bytes).to_f32();
            }
        }
        DType::BF16 => {
            for (value, bytes) in out.iter_mut().zip(data.as_chunks::<2>().0) {
                *value = bf16::from_le_bytes(*bytes).to_f32();
            }
        }
        _ => {
            let mut parts = BlockParts::default();
            let width = sub_block_size(dtype);
            let blocks = data.chunks_exact(dtype.block_bytes());
            for (values, block) in out.chunks_exact_mut(dtype.block_size()).zip(blocks) {
                split_block(dtype, block, &mut parts);
                for (index, value) in values.iter_mut().enumerate() {
                    let sub = parts.subs[index / width];
                    *value = sub.scale * code_value(dtype, parts.codes[index]) + sub.offset;
                }
            }
        }
    }
}

/// `out[row, j] = sum_k x[row, k] * weights[j, k]`, accumulated in f64.
pub fn matmul(x: &[f32], weights: &[f32], in_features: usize, out: &mut [f32]) {
    let out_features = weights.len() / in_features;
    for (row, out) in x
        .chunks_exact(in_features)
        .zip(out.chunks_exact_mut(out_features))
    {
        for (value, weight) in out.iter_mut().zip(weights.chunks_exact(in_features)) {
            let sum: f64 = row
                .iter()
                .zip(weight)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum();
            *value = sum as f32;
        }
    }
}
