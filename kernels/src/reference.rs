//! Plain dequantisation and products: the definition of right for the packed kernels.
//!
//! Block layouts are those of ggml's `ggml-common.h`.

use half::{bf16, f16};

use crate::dtype::DType;

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Bit `index` of the little-endian 32-bit word at `at`.
fn high_bit(block: &[u8], at: usize, index: usize) -> u8 {
    (block[at + index / 8] >> (index % 8)) & 1
}

/// The 6-bit scale and minimum of sub-block `index` (0..8) in a Q4_K or Q5_K block.
fn k_scale_min(scales: &[u8], index: usize) -> (u8, u8) {
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

/// Takes a block apart into integer codes and scales: 32 values a sub-block, 16 for Q6_K.
///
/// Codes are unsigned except Q8_0's. `codes` and `subs` are overwritten; float types are not blocks.
pub fn split_block(dtype: DType, block: &[u8], codes: &mut Vec<i16>, subs: &mut Vec<SubBlock>) {
    codes.clear();
    subs.clear();
    match dtype {
        DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 => {
            split_legacy(dtype, block, codes, subs);
        }
        DType::Q8_0 => {
            codes.extend(block[2..34].iter().map(|byte| i16::from(*byte as i8)));
            subs.push(SubBlock {
                scale: half_at(block, 0),
                offset: 0.0,
            });
        }
        DType::Q4K | DType::Q5K => split_q45k(dtype, block, codes, subs),
        DType::Q6K => split_q6k(block, codes, subs),
        DType::F32 | DType::F16 | DType::BF16 => unreachable!("float types have no blocks"),
    }
}

fn split_legacy(dtype: DType, block: &[u8], codes: &mut Vec<i16>, subs: &mut Vec<SubBlock>) {
    let scale = half_at(block, 0);
    let (offset, high, low) = match dtype {
        DType::Q4_0 => (-8.0 * scale, None, 2),
        DType::Q4_1 => (half_at(block, 2), None, 4),
        DType::Q5_0 => (-16.0 * scale, Some(2), 6),
        _ => (half_at(block, 2), Some(4), 8),
    };
    for index in 0..32 {
        let byte = block[low + index % 16];
        let nibble = if index < 16 { byte & 15 } else { byte >> 4 };
        let bit = high.map_or(0, |at| high_bit(block, at, index));
        codes.push(i16::from(nibble | (bit << 4)));
    }
    subs.push(SubBlock { scale, offset });
}

fn split_q45k(dtype: DType, block: &[u8], codes: &mut Vec<i16>, subs: &mut Vec<SubBlock>) {
    let (d, d_min) = (half_at(block, 0), half_at(block, 2));
    let scales = &block[4..16];
    let low = if dtype == DType::Q4K { 16 } else { 48 };
    for sub in 0..8 {
        let (scale, min) = k_scale_min(scales, sub);
        subs.push(SubBlock {
            scale: d * f32::from(scale),
            offset: -d_min * f32::from(min),
        });
        for index in 0..32 {
            let byte = block[low + (sub / 2) * 32 + index];
            let nibble = if sub % 2 == 0 { byte & 15 } else { byte >> 4 };
            let bit = match dtype {
                DType::Q5K => (block[16 + index] >> sub) & 1,
                _ => 0,
            };
            codes.push(i16::from(nibble | (bit << 4)));
        }
    }
}

fn split_q6k(block: &[u8], codes: &mut Vec<i16>, subs: &mut Vec<SubBlock>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for index in 0..256 {
        let (part, within) = (index / 128, index % 128);
        let (quarter, lane) = (within / 32, within % 32);
        let byte = low[part * 64 + (quarter % 2) * 32 + lane];
        let nibble = if quarter < 2 { byte & 15 } else { byte >> 4 };
        let bits = (high[part * 32 + lane] >> (2 * quarter)) & 3;
        codes.push(i16::from(nibble | (bits << 4)));
    }
    for scale in scales {
        let scale = d * f32::from(*scale as i8);
        subs.push(SubBlock {
            scale,
            offset: -32.0 * scale,
        });
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
            let (mut codes, mut subs) = (Vec::new(), Vec::new());
            let blocks = data.chunks_exact(dtype.block_bytes());
            for (values, block) in out.chunks_exact_mut(dtype.block_size()).zip(blocks) {
                split_block(dtype, block, &mut codes, &mut subs);
                let width = codes.len() / subs.len();
                for (index, value) in values.iter_mut().enumerate() {
                    let sub = subs[index / width];
                    *value = sub.scale * f32::from(codes[index]) + sub.offset;
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
