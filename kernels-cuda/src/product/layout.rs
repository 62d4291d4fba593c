//! Where a packed matrix has which bits.
//!
//! A matrix is blocks of 64 outputs (m) one after the other. Each is blocks of 64 inputs (k) one
//! after the other, so that any run of k blocks is one run of bytes; before every fourth k block
//! lies the header of a super-block, where the type has one. Outputs and inputs past the end are
//! zeros.
//!
//! A warp takes 16 outputs of a block. Lane `4 g + t` multiplies rows `g` and `g + 8` of them, and
//! of every step of 16 inputs those at `2t, 2t + 1, 2t + 8, 2t + 9`. A k block is
//!
//! | part | order | what |
//! |---|---|---|
//! | low, 16 bits | `[step][warp][lane]` 16 bytes | word `i`: row `g + 8 (i % 2)`, inputs `2t + 8 (i / 2)` and the next, as bf16 |
//! | low, 8 bits | `[step / 2][warp][lane]` 16 bytes | 8 bytes a step; byte `2 i + j`: as word `i` above, input `j`; plus 128 |
//! | low, 4 bits | `[warp][lane]` 16 bytes | a word a step; bits `4 i' + 16 j`, `i' = (i % 2) + 2 (i / 2)`: the same |
//! | upper bit | `[warp][lane]` 4 bytes | step `s`: the bits that come to `4 + 4 (i % 2) + 16 j` when turned right by `s + 8 (i / 2)` |
//! | upper 2 bits | `[warp][lane]` 8 bytes | a word for two steps; turned right by `2 (s % 2) + 8 (i / 2)` |
//! | scales | `[warp][g][sub-block][row g, row g + 8]` | f16 scale; f16 scale and offset; u8 scale and minimum; i8 scale plus 128 |
//!
//! A header is `[warp][g][row g, row g + 8]` of f16 `d` and `d_min`, of `d` alone in Q6_K.

use ponder_kernels::DType;

use crate::tensors::K_BLOCK;

/// Outputs of a block.
pub const M_BLOCK: usize = 64;
/// K blocks of a super-block, and the multiple of them that products are split at.
pub const SUPER_BLOCKS: usize = 4;
/// Inputs of one tensor core instruction.
pub(super) const K_STEP: usize = 16;
/// Outputs of one warp.
pub(super) const WARP_ROWS: usize = 16;
const WARPS: usize = M_BLOCK / WARP_ROWS;
const LANES: usize = WARPS * 32;
/// Rows `g` and `g + 8` of all warps.
const ROW_PAIRS: usize = WARPS * 8;

/// How a packed type lies in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// As `dequant.cuh` counts them; names the kernels of a type.
    pub(super) weight_type: WeightType,
    /// Of a weight, upper ones included.
    pub(super) code_bits: usize,
    /// Of one row and sub-block.
    pub(super) scale_bytes: usize,
    /// Inputs that share a scale.
    pub(super) sub_block: usize,
    /// Of one row in a header.
    pub(super) super_bytes: usize,
}

/// The types that kernels tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// The types that a device's kernels read.
pub const TYPES: [DType; 11] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
];

impl Layout {
    /// `None` for F32, which is not packed, and for types that are not of [`TYPES`].
    pub fn of(dtype: DType) -> Option<Self> {
        let (weight_type, code_bits, scale_bytes, super_bytes) = match dtype {
            DType::F16 | DType::BF16 => (WeightType::Bf16, 16, 0, 0),
            DType::Q4_0 => (WeightType::Q4_0, 4, 2, 0),
            DType::Q4_1 => (WeightType::Q4_1, 4, 4, 0),
            DType::Q5_0 => (WeightType::Q5_0, 5, 2, 0),
            DType::Q5_1 => (WeightType::Q5_1, 5, 4, 0),
            DType::Q8_0 => (WeightType::Q8_0, 8, 2, 0),
            DType::Q4K => (WeightType::Q4K, 4, 2, 4),
            DType::Q5K => (WeightType::Q5K, 5, 2, 4),
            DType::Q6K => (WeightType::Q6K, 6, 1, 2),
            _ => return None,
        };
        Some(Self {
            weight_type,
            code_bits,
            scale_bytes,
            sub_block: if dtype == DType::Q6K { 16 } else { 32 },
            super_bytes,
        })
    }

    /// As `dequant.cuh` counts the types.
    pub(super) fn number(self) -> u32 {
        self.weight_type as u32
    }

    /// Bits of a code that lie together in 16 bytes a lane; the others lie behind them.
    pub(super) fn low_bits(self) -> usize {
        match self.code_bits {
            5 | 6 => 4,
            bits => bits,
        }
    }

    pub(super) fn low_bytes(self) -> usize {
        M_BLOCK * K_BLOCK * self.low_bits() / 8
    }

    /// Where the scales of a k block begin.
    pub(super) fn scales_at(self) -> usize {
        M_BLOCK * K_BLOCK * self.code_bits / 8
    }

    /// Upper bits of one lane, in bytes.
    pub(super) fn high_bytes(self) -> usize {
        (self.scales_at() - self.low_bytes()) / LANES
    }

    /// Scales of rows `g` and `g + 8` in a k block, in bytes.
    pub(super) fn pair_scale_bytes(self) -> usize {
        2 * self.scale_bytes * (K_BLOCK / self.sub_block)
    }

    /// Bytes of 64 outputs by 64 inputs, headers apart.
    pub fn block_bytes(self) -> usize {
        self.scales_at() + ROW_PAIRS * self.pair_scale_bytes()
    }

    /// Bytes before every fourth k block.
    pub fn header_bytes(self) -> usize {
        ROW_PAIRS * 2 * self.super_bytes
    }

    /// Where k block `block` lies in a block of outputs.
    pub fn offset_of(self, block: usize) -> usize {
        match self.super_bytes {
            0 => block * self.block_bytes(),
            _ => block * self.block_bytes() + (block / SUPER_BLOCKS + 1) * self.header_bytes(),
        }
    }

    /// Bytes of 64 outputs with all inputs.
    pub fn m_block_bytes(self, in_features: usize) -> usize {
        let blocks = in_features.div_ceil(K_BLOCK);
        let headers = blocks.div_ceil(SUPER_BLOCKS) * self.header_bytes();
        blocks * self.block_bytes() + headers
    }

    /// Bytes of a matrix.
    pub fn matrix_bytes(self, out_features: usize, in_features: usize) -> usize {
        out_features.div_ceil(M_BLOCK) * self.m_block_bytes(in_features)
    }
}
