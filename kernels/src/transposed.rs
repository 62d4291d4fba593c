//! Products with the transpose of packed matrices, for gradients.
//!
//! An item of work is a block of 32 inputs: the weights that feed them are read back once, for all
//! rows, with rows and columns exchanged. Sums go over the outputs in order, so that they depend
//! neither on the rows beside them nor on the number of threads.

use std::cell::RefCell;
use std::ops::Range;

use crate::cost;
use crate::cpu::{self, BLOCK_STRIPS, PanelBlock, StripSums, TRANSPOSED_ROWS};
use crate::experts::ExpertMatrix;
use crate::float_panel::{LineBF16, LineF32};
use crate::gating::Routes;
use crate::gradient_rows::{GradientRows, padded};
use crate::matrix::PackedMatrix;
use crate::panel::{BLOCK_INPUTS, PANEL_ROWS};
use crate::partition::{SharedSlice, for_each};
use crate::pool::ThreadPool;

/// Outputs whose weights are read back at once: a thread's second cache holds them beside the rows
/// of a tile.
const LINES_AT_ONCE: usize = 1024;

/// Panels whose part of a block is asked for before it is read: such parts lie too far apart for
/// the machine to see them coming.
const PANELS_AHEAD: usize = 6;
/// Items of a thread, where an item is several blocks: the other may be slower.
const ITEMS_PER_THREAD: usize = 2;

/// Weights read back: those of some outputs by two strips of inputs.
#[repr(align(64))]
struct Strips {
    floats: [[LineF32; LINES_AT_ONCE]; BLOCK_STRIPS],
    pairs: [[LineBF16; LINES_AT_ONCE / 2]; BLOCK_STRIPS],
    /// A panel's.
    block: PanelBlock,
}

thread_local! {
    static STRIPS: RefCell<Box<Strips>> = RefCell::new(Box::new(Strips {
        floats: [[[0.0; PANEL_ROWS]; LINES_AT_ONCE]; BLOCK_STRIPS],
        pairs: [[[0; 2 * PANEL_ROWS]; LINES_AT_ONCE / 2]; BLOCK_STRIPS],
        block: [[[0.0; PANEL_ROWS]; PANEL_ROWS]; BLOCK_STRIPS],
    }));
}

/// `out[row] += sum_j x[row, j] * weights[j]`, of several matrices with the same inputs: `x[i]` is
/// `[rows, out_features of weights[i]]`, `out` is `[rows, in_features]`. `rows` is room for what is
/// read of `x`.
///
/// # Panics
/// When lengths do not fit.
pub fn matmul_transposed<const N: usize>(
    pool: &ThreadPool,
    x: [&[f32]; N],
    weights: [&PackedMatrix; N],
    rows: &mut GradientRows,
    out: &mut [f32],
) {
    let widths = weights.map(PackedMatrix::out_features);
    rows.load(pool, x, weights, widths);
    let num_rows = rows.num_rows();
    let product = Product::new(rows, weights, widths, out, num_rows);
    let work = product.cost(1, num_rows);
    for_each(pool, work, product.num_blocks(), |block| {
        // SAFETY: each block of columns is taken once.
        unsafe { product.add(0, block, 0..num_rows, Places::default()) };
    });
}

/// `out[slot] += x[row] · weights_e^T` for every slot, of its expert `e` and its row: `x` is
/// `[rows, out_features]`, `out` is `[slots, in_features]`, sorted by expert ([`Routes::rows`]).
///
/// # Panics
/// When lengths do not fit.
pub fn experts_transposed_from_rows(
    pool: &ThreadPool,
    x: &[f32],
    routes: &Routes,
    weights: &ExpertMatrix,
    rows: &mut GradientRows,
    out: &mut [f32],
) {
    let width = weights.out_features();
    rows.load(pool, [x], [weights.matrix()], [width]);
    assert_eq!(rows.num_rows(), routes.num_rows(), "a row a token");
    let num_slots = routes.rows().len();
    let product = Product::new(rows, [weights.matrix()], [width], out, num_slots);
    let places = Places {
        from: Some(routes.rows()),
        to: None,
    };
    let (busy, num_blocks) = (routes.busy_experts(), product.num_blocks());
    let work = product.cost(busy.len(), num_slots);
    for_each(pool, work, busy.len() * num_blocks, |item| {
        let expert = busy[item / num_blocks] as usize;
        let slots = routes.rows_of(expert);
        // SAFETY: an expert's slots are its own, and each of their blocks of columns is taken once.
        unsafe { product.add(expert, item % num_blocks, slots, places) };
    });
}

/// `out[row] += sum of x[slot] · weights_e^T` over the row's slots and the matrices: `x[i]` is
/// `[slots, out_features of weights[i]]`, sorted by expert, `out` is `[rows, in_features]`.
///
/// # Panics
/// When lengths do not fit.
pub fn experts_transposed_to_rows<const N: usize>(
    pool: &ThreadPool,
    x: [&[f32]; N],
    routes: &Routes,
    weights: [&ExpertMatrix; N],
    rows: &mut GradientRows,
    out: &mut [f32],
) {
    let widths = weights.map(ExpertMatrix::out_features);
    let weights = weights.map(ExpertMatrix::matrix);
    rows.load(pool, x, weights, widths);
    assert_eq!(
        rows.num_rows(),
        routes.rows().len(),
        "x is sorted by expert"
    );
    let product = Product::new(rows, weights, widths, out, routes.num_rows());
    let places = Places {
        from: None,
        to: Some(routes.rows()),
    };
    let (busy, num_blocks) = (routes.busy_experts(), product.num_blocks());
    let work = product.cost(busy.len(), rows.num_rows());
    // An expert's rows stay in the second cache while some blocks pass by.
    let num_threads = pool.team().threads_for(work, num_blocks);
    let len = num_blocks.div_ceil(ITEMS_PER_THREAD * num_threads);
    for_each(pool, work, num_blocks.div_ceil(len.max(1)), |item| {
        for expert in busy {
            let expert = *expert as usize;
            for block in item * len..((item + 1) * len).min(num_blocks) {
                let slots = routes.rows_of(expert);
                // SAFETY: each block of columns is taken once.
                unsafe { product.add(expert, block, slots, places) };
            }
        }
    });
}

/// Where rows of `x` and of the result are; in order without.
#[derive(Clone, Copy, Default)]
struct Places<'a> {
    from: Option<&'a [u32]>,
    to: Option<&'a [u32]>,
}

fn place(places: Option<&[u32]>, row: usize) -> usize {
    places.map_or(row, |places| places[row] as usize)
}

/// A product with matrices stacked on each other, or with those of many experts.
struct Product<'a, const N: usize> {
    x: &'a GradientRows,
    weights: [&'a PackedMatrix; N],
    /// Outputs, of one expert.
    widths: [usize; N],
    in_features: usize,
    /// `[rows, in_features]`
    out: SharedSlice<'a, f32>,
}

impl<'a, const N: usize> Product<'a, N> {
    fn new(
        x: &'a GradientRows,
        weights: [&'a PackedMatrix; N],
        widths: [usize; N],
        out: &'a mut [f32],
        num_rows: usize,
    ) -> Self {
        let in_features = weights[0].in_features();
        let is_as_wide = |weights: &&PackedMatrix| weights.in_features() == in_features;
        assert!(weights.iter().all(is_as_wide), "the same inputs");
        assert_eq!(out.len(), num_rows * in_features, "out is [rows, in]");
        Self {
            x,
            weights,
            widths,
            in_features,
            out: SharedSlice::new(out),
        }
    }

    fn num_blocks(&self) -> usize {
        self.in_features.div_ceil(BLOCK_INPUTS)
    }

    /// Of `num_rows` rows of so many experts together.
    fn cost(&self, num_experts: usize, num_rows: usize) -> cost::Nanoseconds {
        let num_weights = self.widths.iter().sum::<usize>() * self.in_features;
        let rows_of_expert = num_rows.div_ceil(num_experts.max(1));
        cost::transposed(rows_of_expert, num_experts * num_weights)
    }

    /// The panels of an expert's outputs, matrix by matrix.
    fn panels(&self, expert: usize) -> impl Iterator<Item = (&PackedMatrix, usize)> {
        let matrices = self.weights.into_iter().zip(self.widths);
        matrices.flat_map(move |(weights, width)| {
            let first = expert * width / PANEL_ROWS;
            (first..first + padded(width) / PANEL_ROWS).map(move |panel| (weights, panel))
        })
    }

    /// Adds the products of `rows` with one expert's weights by a block of inputs.
    ///
    /// # Safety
    /// Nobody else may use the block's columns of the rows of `out`.
    unsafe fn add(&self, expert: usize, block: usize, rows: Range<usize>, places: Places<'_>) {
        STRIPS.with_borrow_mut(|strips| {
            let (mut done, mut num_lines) = (0, 0);
            let mut ahead = self.panels(expert);
            for (weights, panel) in ahead.by_ref().take(PANELS_AHEAD) {
                weights.prefetch_block(panel, block);
            }
            for (weights, panel) in self.panels(expert) {
                if let Some((weights, panel)) = ahead.next() {
                    weights.prefetch_block(panel, block);
                }
                if num_lines == LINES_AT_ONCE {
                    // SAFETY: the caller's promise.
                    unsafe { self.add_lines(strips, done..done + num_lines, block, &rows, places) };
                    (done, num_lines) = (done + num_lines, 0);
                }
                strips.read(weights, [panel, block], num_lines, self.x.is_bf16());
                num_lines += PANEL_ROWS;
            }
            // SAFETY: the caller's promise.
            unsafe { self.add_lines(strips, done..done + num_lines, block, &rows, places) };
        });
    }

    /// Adds the products of columns `columns` of `x` with the lines that were read.
    ///
    /// # Safety
    /// That of [`Self::add`].
    unsafe fn add_lines(
        &self,
        strips: &Strips,
        columns: Range<usize>,
        block: usize,
        rows: &Range<usize>,
        places: Places<'_>,
    ) {
        let start = block * BLOCK_INPUTS;
        let width = BLOCK_INPUTS.min(self.in_features - start);
        let num_lines = columns.len();
        for first in rows.clone().step_by(TRANSPOSED_ROWS) {
            let rows = first..(first + TRANSPOSED_ROWS).min(rows.end);
            let mut sums = [StripSums::default(); TRANSPOSED_ROWS];
            // SAFETY: the caller's promise; one row's part at a time.
            let out = |row: usize| unsafe {
                let row = place(places.to, row);
                self.out.slice_mut(row * self.in_features + start, width)
            };
            for (sums, row) in sums.iter_mut().zip(rows.clone()) {
                match StripSums::try_from(out(row).as_chunks().0) {
                    Ok(whole) => *sums = whole,
                    Err(_) => sums.as_flattened_mut()[..width].copy_from_slice(out(row)),
                }
            }
            let from = |row: usize| place(places.from, row.min(rows.end - 1));
            let own = &mut sums[..rows.len()];
            if self.x.is_bf16() {
                let pairs = columns.start / 2..columns.end / 2;
                let x: [_; TRANSPOSED_ROWS] =
                    std::array::from_fn(|row| &self.x.pairs(from(first + row))[pairs.clone()]);
                let lines = strips.pairs.each_ref().map(|lines| &lines[..num_lines / 2]);
                cpu::add_transposed_pairs(&x[..rows.len()], lines, own);
            } else {
                let x: [_; TRANSPOSED_ROWS] =
                    std::array::from_fn(|row| &self.x.values(from(first + row))[columns.clone()]);
                let lines = strips.floats.each_ref().map(|lines| &lines[..num_lines]);
                cpu::add_transposed(&x[..rows.len()], lines, own);
            }
            for (sums, row) in sums.iter().zip(rows) {
                match <&mut StripSums>::try_from(out(row).as_chunks_mut().0) {
                    Ok(whole) => *whole = *sums,
                    Err(_) => out(row).copy_from_slice(&sums.as_flattened()[..width]),
                }
            }
        }
    }
}

impl Strips {
    /// Reads the weights of a panel's outputs by a block of inputs to the lines from `line` on.
    fn read(
        &mut self,
        weights: &PackedMatrix,
        [panel, block]: [usize; 2],
        line: usize,
        is_bf16: bool,
    ) {
        if is_bf16 {
            let panel = weights.panel(panel).expect("of quantised weights alone");
            let pairs = self.pairs.each_mut();
            let pairs = pairs.map(|lines| &mut lines[line / 2..][..PANEL_ROWS / 2]);
            return cpu::pair_block(&panel, block, &mut self.block, pairs);
        }
        weights.read_block(panel, block, &mut self.block);
        for (lines, rows) in self.floats.iter_mut().zip(&self.block) {
            lines[line..][..PANEL_ROWS].copy_from_slice(rows);
        }
    }
}
