//! What the first factors make of the rows, shared out among the threads of a section, and its way
//! into tiles.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Addition, LowRankScratch};
use crate::activations::Activations;
use crate::cost::Nanoseconds;
use crate::cpu::{self, LowRankTile, MAX_PANELS};
use crate::matmul::{self, ROW_BLOCK, SCRATCH};
use crate::panel::PANEL_ROWS;
use crate::partition::{Counter, SharedSlice};
use crate::pool;

/// Neighbouring rows and some of their values between the factors: what a thread computes at a
/// time.
#[derive(Debug)]
pub(super) struct Block {
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
/// Up to here a block has the rows of a decode step, and its time is that to read its weights: one
/// panel each.
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
    pub(super) fn new(
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
                // SAFETY: a (row, panel) cell belongs to one block, and nobody reads before all
                // blocks are done.
                let low = unsafe { self.low.slice_mut(at, PANEL_ROWS) };
                for ((low, value), scale) in low.iter_mut().zip(values).zip(scales) {
                    *low = value * scale;
                }
            }
        }
    }

    /// Returns when all blocks are done. Each was taken by a thread that is at work on it and
    /// itself waits for nobody.
    fn wait(&self) {
        let mut rounds = 0;
        while self.num_done.0.load(Ordering::Acquire) < self.blocks.len() {
            pool::wait(&mut rounds);
        }
    }

    /// Asks for the factors that [`Self::add`] will read: they are too short for the processor to
    /// foresee.
    pub(crate) fn prefetch(&self, product: usize, panels: &Range<usize>) {
        let used = self.additions.iter().filter(|a| !a.rows.is_empty());
        for up in used.filter_map(|a| a.factors.ups[product].as_ref()) {
            cpu::prefetch(up.of_panels(panels), PREFETCH_LINES_MAX);
        }
    }

    /// Adds to tiles (`[panels.len(), rows.len(), PANEL_ROWS]`) of product `product` what the
    /// adapters of their rows make.
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
            let rest = &addition.rows[first..];
            let num_rows = run_len(&rest[..rest.len().min(ROW_BLOCK)]);
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
