//! Products with low-rank adapters (LoRA): `out[row] += up · (down · x[row])` at the rows that use one.
//!
//! All of it is part of the base product's section. The threads first share out `down · x`, one product for all matrices that
//! read `x`; each then works on tiles of the base product and adds `up` to them while they are in its cache. A thread waits
//! for `down · x` only where it needs it, after its first tile.
//!
//! **Numerics.** `down` is read as the base matrix is. Where that reads the activations' int8 codes, `down` is stored in blocks
//! of int8 as well (Q8_0): the rounding is 0.6 % of what the adapter adds, from the same codes that round the base product by
//! as large a part of itself. Beside float weights it stays f32. `up` is f16. Both are first multiplied by powers of two that
//! bring them into the middle of those types' ranges, so that small weights keep their digits.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;

use crate::activations::Activations;
use crate::cost::{self, Nanoseconds};
use crate::cpu::{self, LowRankTile, MAX_PANELS};
use crate::dtype::DType;
use crate::error::KernelError;
use crate::matmul::{self, Glu, Product, ROW_BLOCK, SCRATCH};
use crate::matrix::PackedMatrix;
use crate::memory::PageBuffer;
use crate::panel::{BLOCK_INPUTS, PANEL_ROWS};
use crate::partition::{Counter, SharedSlice};
use crate::pool::ThreadPool;

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
    /// The int8 codes, as quantised matrices do. Widths that are not whole blocks of 32 have none: there the values are read.
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
/// Exponent of the largest weight of a row of the first factor: its blocks' scales, f16 as well, are then near 1.
const DOWN_EXPONENT: i32 = 6;
/// Largest code of an int8 block.
const MAX_CODE: f32 = 127.0;

/// `n` of the largest power of two, `2^n`, that is not above the largest value; 0 when there is none.
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
    /// Packs the factors of matrices that read the same input; `None` for those that are not changed.
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
        let down = PackedMatrix::pack(pool, dtype, &bytes, ranks, in_features)?;
        scales.resize(down.num_panels() * PANEL_ROWS, 0.0);
        Ok(Self { down, scales, ups })
    }

    /// Bytes held in memory.
    pub fn nbytes(&self) -> usize {
        let ups = self.ups.iter().flatten().map(|up| up.weights.len());
        self.down.nbytes() + ups.sum::<usize>() + 4 * self.scales.len()
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

/// Neighbouring rows and some of their values between the factors: what a thread computes at a time.
#[derive(Debug)]
struct Block {
    addition: usize,
    /// Of the addition's rows the first, and their number.
    first: usize,
    num_rows: usize,
    /// Of the first factor.
    panel: usize,
    num_panels: usize,
}

/// Lines of a factor that are asked for ahead: those of rank 32 for the most panels of a tile.
const PREFETCH_LINES_MAX: usize = 128;
/// Up to here a block has the rows of a decode step, and its time is that to read its weights: one panel each.
const FEW_ROWS: usize = 8;

/// The first factors' products, made by the threads of a section, and the additions they are for.
pub(crate) struct LowSums<'a> {
    x: &'a Activations,
    additions: &'a [Addition<'a>],
    blocks: &'a [Block],
    starts: &'a [usize],
    /// `[rows, stride]` of each addition.
    low: SharedSlice<'a, f32>,
    /// Blocks that a thread has taken.
    num_taken: Counter,
    /// Blocks that are done.
    num_done: Counter,
}

/// Counts a block as done even if it panics, so that nobody waits for it.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// How many of some ascending rows are neighbours from the first on.
fn run_len(rows: &[usize]) -> usize {
    let pairs = rows.windows(2).take_while(|pair| pair[0] + 1 == pair[1]);
    (pairs.count() + 1).min(rows.len())
}

impl<'a> LowSums<'a> {
    /// # Panics
    /// When rows or shapes do not fit; `widths` are the products' outputs.
    fn new(
        x: &'a Activations,
        widths: &[usize],
        additions: &'a [Addition<'a>],
        scratch: &'a mut LowRankScratch,
    ) -> Self {
        scratch.blocks.clear();
        scratch.starts.clear();
        let mut len = 0;
        for (index, addition) in additions.iter().enumerate() {
            let Addition { rows, factors } = addition;
            matmul::check_inputs(x, &factors.down);
            let is_row = |row: &usize| *row < x.num_rows();
            assert!(rows.is_sorted_by(|a, b| a < b) && rows.last().is_none_or(is_row));
            assert_eq!(factors.ups.len(), widths.len(), "one factor a product");
            for (up, width) in factors.ups.iter().zip(widths) {
                assert!(up.as_ref().is_none_or(|up| up.out_features == *width));
            }
            scratch.starts.push(len);
            scratch.cut(index, addition);
            len += rows.len() * factors.stride();
        }
        if scratch.low.len() < len {
            scratch.low.resize(len, 0.0);
        }
        Self {
            x,
            additions,
            blocks: &scratch.blocks,
            starts: &scratch.starts,
            low: SharedSlice::new(&mut scratch.low),
            num_taken: Counter(AtomicUsize::new(0)),
            num_done: Counter(AtomicUsize::new(0)),
        }
    }

    /// What the additions cost beside the products.
    pub(crate) fn work(&self) -> Nanoseconds {
        let additions = self.additions.iter();
        additions
            .map(|addition| addition.factors.work(addition.rows.len()))
            .sum()
    }

    /// Computes blocks until all are taken.
    pub(crate) fn help(&self) {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.grow();
            while self.num_taken.0.load(Ordering::Relaxed) < self.blocks.len() {
                let index = self.num_taken.0.fetch_add(1, Ordering::Relaxed);
                let Some(block) = self.blocks.get(index) else {
                    return;
                };
                let _done = Done(&self.num_done.0);
                self.run(block, scratch);
            }
        });
    }

    fn run(&self, block: &Block, scratch: &mut matmul::Scratch) {
        let Addition { rows, factors } = self.additions[block.addition];
        let first_row = rows[block.first];
        let panels = block.panel..block.panel + block.num_panels;
        let tiles = &mut scratch.tiles[..block.num_panels * block.num_rows * PANEL_ROWS];
        let rows = first_row..first_row + block.num_rows;
        let decoded = &mut scratch.decoded;
        cpu::panels_product(self.x, &factors.down, panels.clone(), rows, decoded, tiles);
        let stride = factors.stride();
        let start = self.starts[block.addition] + block.first * stride;
        let tiles = tiles.chunks_exact(block.num_rows * PANEL_ROWS);
        for (panel, tile) in panels.zip(tiles) {
            let scales = &factors.scales[panel * PANEL_ROWS..][..PANEL_ROWS];
            for (row, values) in tile.as_chunks::<PANEL_ROWS>().0.iter().enumerate() {
                let at = start + row * stride + panel * PANEL_ROWS;
                // SAFETY: a (row, panel) cell belongs to one block, and nobody reads before all blocks are done.
                let low = unsafe { self.low.slice_mut(at, PANEL_ROWS) };
                for ((low, value), scale) in low.iter_mut().zip(values).zip(scales) {
                    *low = value * scale;
                }
            }
        }
    }

    /// Returns when all blocks are done. Each was taken by a thread that is at work on it and itself waits for nobody.
    fn wait(&self) {
        let mut rounds = 0_u32;
        while self.num_done.0.load(Ordering::Acquire) < self.blocks.len() {
            rounds += 1;
            match rounds.is_multiple_of(1024) {
                true => std::thread::yield_now(),
                false => std::hint::spin_loop(),
            }
        }
    }

    /// Asks for the factors that [`Self::add`] will read: they are too short for the processor to foresee.
    pub(crate) fn prefetch(&self, product: usize, panels: &Range<usize>) {
        let used = self.additions.iter().filter(|a| !a.rows.is_empty());
        for up in used.filter_map(|a| a.factors.ups[product].as_ref()) {
            cpu::prefetch(up.of_panels(panels), PREFETCH_LINES_MAX);
        }
    }

    /// Adds to tiles (`[panels.len(), rows.len(), PANEL_ROWS]`) of product `product` what the adapters of their rows make.
    pub(crate) fn add(
        &self,
        product: usize,
        panels: Range<usize>,
        rows: Range<usize>,
        tiles: &mut [f32],
    ) {
        self.wait();
        for (addition, start) in self.additions.iter().zip(self.starts) {
            let factors = addition.factors;
            let Some(up) = &factors.ups[product] else {
                continue;
            };
            let stride = factors.stride();
            let mut first = addition.rows.partition_point(|row| *row < rows.start);
            let end = addition.rows.partition_point(|row| *row < rows.end);
            while first < end {
                let num_rows = run_len(&addition.rows[first..end]);
                let at = start + first * stride + up.first;
                let len = (num_rows - 1) * stride + up.rank;
                // SAFETY: all blocks are done, so nobody writes.
                let low = unsafe { self.low.slice(at, len) };
                let add = LowRankTile {
                    low,
                    stride,
                    up: up.of_panels(&panels),
                    rank: up.rank,
                    first_row: addition.rows[first] - rows.start,
                    num_rows,
                };
                cpu::add_low_rank(&add, tiles, rows.len());
                first += num_rows;
            }
        }
    }
}

impl LowRankScratch {
    /// Cuts the first factor's product of an addition into blocks.
    fn cut(&mut self, index: usize, addition: &Addition<'_>) {
        let num_panels = addition.factors.down.num_panels();
        let mut first = 0;
        while first < addition.rows.len() {
            let num_rows = run_len(&addition.rows[first..]).min(ROW_BLOCK);
            let at_once = match num_rows <= FEW_ROWS {
                true => 1,
                false => MAX_PANELS,
            };
            for panel in (0..num_panels).step_by(at_once) {
                self.blocks.push(Block {
                    addition: index,
                    first,
                    num_rows,
                    panel,
                    num_panels: at_once.min(num_panels - panel),
                });
            }
            first += num_rows;
        }
    }
}

/// [`matmul::matmul_many`] with what adapters add to some rows. The other rows get the bits of the plain products.
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

/// [`matmul::matmul_glu`] with what adapters add to gate and up (in this order in their factors) at some rows. The other rows
/// get the bits of the plain products.
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
