//! Packed matrices are read back bit by bit, by the layout's description alone.

use half::{bf16, f16};
use ponder_kernels::{DType, reference};

use super::super::layout::{K_STEP, Layout, M_BLOCK, TYPES, WARP_ROWS};
use super::super::testing::{random_blocks, same_value};
use super::pack;
use crate::tensors::K_BLOCK;

struct Packed {
    layout: Layout,
    bytes: Vec<u8>,
    in_features: usize,
}

impl Packed {
    fn half(&self, at: usize) -> f32 {
        f16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]).to_f32()
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    /// The weight of output `m` and input `k`, rounded to bf16.
    fn weight(&self, m: usize, k: usize) -> bf16 {
        let layout = self.layout;
        let block =
            m / M_BLOCK * layout.m_block_bytes(self.in_features) + layout.offset_of(k / K_BLOCK);
        let (warp, g, half) = (m % 64 / WARP_ROWS, m % 8, m % 16 / 8);
        let (step, t, i, odd) = (k % 64 / K_STEP, k % 8 / 2, half + k % 16 / 8 * 2, k % 2);
        let lane = warp * 32 + g * 4 + t;
        if layout.code_bits == 16 {
            let at = block + (step * 128 + lane) * 16 + i * 4 + odd * 2;
            return bf16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]);
        }
        let code = self.code(block, lane, [step, i, odd]);
        let pair = warp * 8 + g;
        let sub = k % K_BLOCK / layout.sub_block * 2 + half;
        let at = block
            + layout.scales_at()
            + pair * layout.pair_scale_bytes()
            + sub * layout.scale_bytes;
        let super_at = block - k / K_BLOCK % 4 * layout.block_bytes();
        let header = || super_at - layout.header_bytes() + (pair * 2 + half) * layout.super_bytes;
        let (scale, offset) = match (layout.code_bits, layout.scale_bytes, layout.super_bytes) {
            (bits, 2, 0) => {
                let zero = if bits == 8 {
                    128.0
                } else {
                    f32::from(1_u8 << (bits - 1))
                };
                (self.half(at), -zero * self.half(at))
            }
            (_, 4, 0) => (self.half(at), self.half(at + 2)),
            (6, ..) => {
                let scale = self.half(header()) * (f32::from(self.bytes[at]) - 128.0);
                (scale, -32.0 * scale)
            }
            _ => {
                let scale = self.half(header()) * f32::from(self.bytes[at]);
                (
                    scale,
                    -self.half(header() + 2) * f32::from(self.bytes[at + 1]),
                )
            }
        };
        bf16::from_f32(scale * code as f32 + offset)
    }

    fn code(&self, block: usize, lane: usize, [step, i, odd]: [usize; 3]) -> u32 {
        let layout = self.layout;
        if layout.code_bits == 8 {
            let at = block + (step / 2 * 128 + lane) * 16 + step % 2 * 8 + 2 * i + odd;
            return u32::from(self.bytes[at]);
        }
        let low = self.word(block + lane * 16 + step * 4) >> (4 * i + 16 * odd) & 15;
        let high_at = block + layout.low_bytes() + lane * layout.high_bytes();
        let at = 4 + i % 2 * 4 + odd * 16;
        let turned =
            |word: usize, by: usize| self.word(high_at + 4 * word).rotate_right(by as u32) >> at;
        match layout.code_bits {
            5 => low | (turned(0, step + i / 2 * 8) & 1) << 4,
            6 => low | (turned(step / 2, step % 2 * 2 + i / 2 * 8) & 3) << 4,
            _ => low,
        }
    }
}

#[test]
fn packed_matrices_have_the_weights_of_the_file() {
    for dtype in TYPES {
        let Some(layout) = Layout::of(dtype) else {
            continue;
        };
        for (out_features, blocks) in [(1, 1), (33, 3), (64, 2), (130, 5)] {
            let in_features = blocks * dtype.block_size().max(32);
            let data = random_blocks(dtype, out_features * in_features, 7);
            let bytes = pack(dtype, layout, &data, out_features, in_features);
            let packed = Packed {
                layout,
                bytes,
                in_features,
            };
            let mut values = vec![0.0; out_features * in_features];
            reference::dequantize(dtype, &data, &mut values);
            for m in 0..out_features.next_multiple_of(M_BLOCK) {
                for k in 0..in_features.next_multiple_of(K_BLOCK) {
                    let is_inside = m < out_features && k < in_features;
                    let value = if is_inside {
                        values[m * in_features + k]
                    } else {
                        0.0
                    };
                    let (wanted, found) = (bf16::from_f32(value), packed.weight(m, k));
                    assert!(
                        same_value(wanted.to_f32(), found.to_f32()),
                        "{dtype:?} [{out_features}, {in_features}] at {m}, {k}: {found} is not {wanted}"
                    );
                }
            }
        }
    }
}

/// Bits of a weight, scales and headers included, of a matrix without padding.
#[test]
fn bits_of_a_weight() {
    let bits = |dtype: DType| {
        let bytes = Layout::of(dtype).unwrap().matrix_bytes(128, 512);
        bytes as f64 * 8.0 / (128.0 * 512.0)
    };
    let all = TYPES.into_iter().filter(|dtype| *dtype != DType::F32);
    let all: Vec<_> = all.map(|dtype| (dtype.name(), bits(dtype))).collect();
    let wanted = [
        ("F16", 16.0),
        ("BF16", 16.0),
        ("Q4_0", 4.5),
        ("Q4_1", 5.0),
        ("Q5_0", 5.5),
        ("Q5_1", 6.0),
        ("Q8_0", 8.5),
        ("Q4_K", 4.625),
        ("Q5_K", 5.625),
        ("Q6_K", 6.5625),
    ];
    assert_eq!(all, wanted);
}
