//! Products with low-rank adapters (LoRA): `out[row] += up · (down · x[row])` at the rows that use
//! one.
//!
//! All of it is part of the base product's section. The threads first share out `down · x`, one
//! product for all matrices that read `x`; each then works on tiles of the base product and adds
//! `up` to them while they are in its cache. A thread waits for `down · x` only where it needs it,
//! after its first tile.
//!
//! **Numerics.** `down` is read as the base matrix is. Where that reads the activations' int8
//! codes, `down` is stored in blocks of int8 as well (Q8_0): the rounding is 0.6 % of what the
//! adapter adds, from the same codes that round the base product by as large a part of itself.
//! Beside float weights it stays f32. `up` is f16. `up`, and `down` where it is int8, are first
//! multiplied by powers of two, so that small weights keep their digits.

mod sums;

use std::ops::Range;

use half::f16;

use crate::activations::Activations;
use crate::cost::{self, Nanoseconds};
use crate::dtype::DType;
use crate::elementwise::Glu;
use crate::error::KernelError;
use crate::matmul::{self, Product};
use crate::matrix::PackedMatrix;
use crate::memory::PageBuffer;
use crate::panel::{BLOCK_INPUTS, PANEL_ROWS};
use crate::pool::ThreadPool;
use sums::Block;
pub(crate) use sums::LowSums;

/// The factors of what an adapter adds to one matrix.
#[derive(Debug, Clone, Copy)]
pub struct Factors<'a> {
    pub rank: usize,
    /// `[rank, in_features]`
    pub down: &'a [f32],
    /// `[out_features, rank]`
    pub up: &'a [f32],
}

/// What of the activations the first factor reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// The int8 codes, as quantised matrices do. Widths that are not whole blocks of 32 have none:
    /// there the values are read.
    Codes,
    /// The values, as float matrices do: the activations must keep them.
    Values,
}

/// What an adapter adds to matrices that read the same input.
#[derive(Debug)]
pub struct LowRank {
    /// The first factors, one below the other: `[sum of the ranks, in_features]`.
    down: PackedMatrix,
    /// `[sum of the ranks, padded to whole panels]`: what undoes the normalisation of both factors.
    scales: Vec<f32>,
    /// One a matrix; `None` where the adapter changes nothing.
    ups: Vec<Option<Up>>,
}

/// A second factor.
#[derive(Debug)]
struct Up {
    /// Where its columns begin among those of all.
    first: usize,
    rank: usize,
    out_features: usize,
    /// `[panels, rank, PANEL_ROWS]`, f16, zeros behind the last output.
    weights: PageBuffer,
}

/// Largest exponent of an f16, less one: the largest weight of a second factor is brought there.
const UP_EXPONENT: i32 = 14;
/// Exponent of the largest weight of a row of the first factor: its blocks' scales, f16 as well,
/// are then near 1.
const DOWN_EXPONENT: i32 = 6;
/// Largest code of an int8 block.
const MAX_CODE: f32 = 127.0;

/// `n` of the largest power of two, `2^n`, that is not above the largest value; 0 when there is
/// none.
fn exponent(values: &[f32]) -> i32 {
    let largest = values.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    match largest.is_normal() {
        true => (largest.to_bits() >> 23) as i32 - 127,
        false => 0,
    }
}

fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent.clamp(-126, 127) + 127) as u32) << 23)
}

/// Appends a row in blocks of 32 int8 with an f16 scale each.
fn push_codes(row: &[f32], factor: f32, bytes: &mut Vec<u8>) {
    for block in row.as_chunks::<BLOCK_INPUTS>().0 {
        let largest = block.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        let scale = f16::from_f32(largest * factor / MAX_CODE);
        let inverse = match f32::from(scale) {
            0.0 => 0.0,
            scale => factor / scale,
        };
        bytes.extend_from_slice(&scale.to_le_bytes());
        let code = |x: &f32| (x * inverse).round().clamp(-MAX_CODE, MAX_CODE) as i8 as u8;
        bytes.extend(block.iter().map(code));
    }
}

impl LowRank {
    /// Packs the factors of matrices that read the same input; `None` for those that are not
    /// changed.
    ///
    /// # Panics
    /// When a factor has another length than its shape.
    pub fn pack(
        pool: &ThreadPool,
        parts: &[Option<Factors<'_>>],
        in_features: usize,
        reads: Reads,
    ) -> Result<Self, KernelError> {
        let ranks = parts.iter().flatten().map(|part| part.rank).sum::<usize>();
        let (mut bytes, mut ups) = (Vec::new(), Vec::with_capacity(parts.len()));
        let mut scales = Vec::with_capacity(ranks.next_multiple_of(PANEL_ROWS));
        let has_codes = reads == Reads::Codes && in_features.is_multiple_of(BLOCK_INPUTS);
        for part in parts {
            let Some(part) = part else {
                ups.push(None);
                continue;
            };
            assert_eq!(part.down.len(), part.rank * in_features, "[rank, in]");
            let up_exponent = exponent(part.up);
            ups.push(Some(Up::pack(part, scales.len(), up_exponent)?));
            for row in part.down.chunks_exact(in_features.max(1)) {
                let mut scale = power_of_two(up_exponent - UP_EXPONENT);
                if has_codes {
                    let shift = exponent(row) - DOWN_EXPONENT;
                    push_codes(row, power_of_two(-shift), &mut bytes);
                    scale *= power_of_two(shift);
                } else {
                    bytes.extend(row.iter().flat_map(|value| value.to_le_bytes()));
                }
                scales.push(scale);
            }
        }
        let dtype = match has_codes {
            true => DType::Q8_0,
            false => DType::F32,
        };
        let shape = [ranks, in_features];
        let down = PackedMatrix::pack_in(pool, dtype, &bytes, shape, PageBuffer::zeroed)?;
        scales.resize(down.num_panels() * PANEL_ROWS, 0.0);
        Ok(Self { down, scales, ups })
    }

    /// Values of a row between the factors.
    fn stride(&self) -> usize {
        self.scales.len()
    }

    fn work(&self, num_rows: usize) -> Nanoseconds {
        if num_rows == 0 {
            return Nanoseconds(0.0);
        }
        let ups = self.ups.iter().flatten();
        let values = ups.map(|up| up.rank * up.out_features).sum::<usize>();
        let ups = cost::low_rank(num_rows, values);
        [cost::product(num_rows, &self.down, 1.0), ups]
            .into_iter()
            .sum()
    }
}

impl Up {
    /// `[panels.len(), rank, PANEL_ROWS]`
    fn of_panels(&self, panels: &Range<usize>) -> &[u16] {
        let len = self.rank * PANEL_ROWS;
        &self.weights.words()[panels.start * len..panels.end * len]
    }

    fn pack(part: &Factors<'_>, first: usize, exponent: i32) -> Result<Self, KernelError> {
        let rank = part.rank;
        assert!(
            rank > 0 && part.up.len().is_multiple_of(rank),
            "[out, rank]"
        );
        let out_features = part.up.len() / rank;
        let len = out_features.next_multiple_of(PANEL_ROWS) * rank * 2;
        let mut weights = PageBuffer::zeroed(len).ok_or(KernelError::OutOfMemory { bytes: len })?;
        let factor = power_of_two(UP_EXPONENT - exponent);
        let words = weights.words_mut();
        for (output, row) in part.up.chunks_exact(rank).enumerate() {
            let panel = output / PANEL_ROWS * rank;
            for (j, value) in row.iter().enumerate() {
                let at = (panel + j) * PANEL_ROWS + output % PANEL_ROWS;
                words[at] = f16::from_f32(value * factor).to_bits();
            }
        }
        Ok(Self {
            first,
            rank,
            out_features,
            weights,
        })
    }
}

/// An adapter and the rows of a product that use it.
#[derive(Debug, Clone, Copy)]
pub struct Addition<'a> {
    /// Ascending.
    pub rows: &'a [usize],
    pub factors: &'a LowRank,
}

/// Buffers of [`matmul_adapted`] and [`glu_adapted`]; they grow to the largest step and stay.
#[derive(Debug, Default)]
pub struct LowRankScratch {
    low: Vec<f32>,
    blocks: Vec<Block>,
    /// Where the rows of an addition begin in `low`.
    starts: Vec<usize>,
}

/// [`matmul::matmul_many`] with what adapters add to some rows. The other rows get the bits of the
/// plain products.
///
/// # Panics
/// When shapes do not fit, or rows are not ascending.
pub fn matmul_adapted<const N: usize>(
    pool: &ThreadPool,
    x: &Activations,
    products: [Product<'_>; N],
    additions: &[Addition<'_>],
    scratch: &mut LowRankScratch,
) {
    let widths = products
        .each_ref()
        .map(|product| product.weights.out_features());
    let sums = LowSums::new(x, &widths, additions, scratch);
    matmul::products(pool, x, products, Some(&sums));
}

/// [`matmul::matmul_glu`] with what adapters add to gate and up (in this order in their factors) at
/// some rows. The other rows get the bits of the plain products.
///
/// # Panics
/// When shapes do not fit, or rows are not ascending.
pub fn glu_adapted(
    pool: &ThreadPool,
    x: &Activations,
    weights: [&PackedMatrix; 2],
    glu: Glu,
    out: &mut Activations,
    (additions, scratch): (&[Addition<'_>], &mut LowRankScratch),
) {
    let sums = LowSums::new(
        x,
        &weights.map(PackedMatrix::out_features),
        additions,
        scratch,
    );
    matmul::gated(pool, x, weights, glu, out, Some(&sums));
}
