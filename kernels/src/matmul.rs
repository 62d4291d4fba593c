//! Products of activations with packed matrices.

use std::cell::RefCell;
use std::ops::Range;

use crate::activations::{Activations, SharedRows};
use crate::cost;
use crate::cpu::{self, DecodedPanel, MAX_PANELS};
use crate::elementwise::{self, Glu};
use crate::low_rank::LowSums;
use crate::matrix::PackedMatrix;
use crate::panel::{BLOCK_INPUTS, PANEL_ROWS};
use crate::partition::{SharedSlice, for_ranges_after};
use crate::pool::ThreadPool;

/// Activation rows that one pass over a panel works on: their codes stay in the second-level cache.
pub(crate) const ROW_BLOCK: usize = 64;
/// Panels whose outputs form one block of the next product's activations.
pub(crate) const PANELS_PER_BLOCK: usize = BLOCK_INPUTS / PANEL_ROWS;

/// One product of a [`matmul_many`] call.
pub struct Product<'a> {
    pub weights: &'a PackedMatrix,
    /// `[out_features]`
    pub bias: Option<&'a [f32]>,
    /// `[num_rows, out_features]`
    pub out: &'a mut [f32],
    /// Add to `out` (a residual) instead of overwriting it.
    pub accumulate: bool,
}

/// A thread's buffers.
#[derive(Default)]
pub(crate) struct Scratch {
    pub decoded: DecodedPanel,
    /// `[MAX_PANELS, ROW_BLOCK, PANEL_ROWS]`
    pub tiles: Vec<f32>,
    /// `[ROW_BLOCK, BLOCK_INPUTS]`
    gate: Vec<f32>,
    up: Vec<f32>,
}

impl Scratch {
    /// Room for the largest pass over a panel.
    pub(crate) fn grow(&mut self) {
        self.tiles.resize(MAX_PANELS * ROW_BLOCK * PANEL_ROWS, 0.0);
        self.gate.resize(ROW_BLOCK * BLOCK_INPUTS, 0.0);
        self.up.resize(ROW_BLOCK * BLOCK_INPUTS, 0.0);
    }
}

thread_local! {
    pub(crate) static SCRATCH: RefCell<Scratch> = RefCell::default();
}

struct Plan<'a> {
    weights: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    out: SharedSlice<'a, f32>,
    accumulate: bool,
    /// What adapters add, and the product's number among theirs.
    sums: Option<(&'a LowSums<'a>, usize)>,
}

/// `out[row, j] = sum_k x[row, k] * weights[j, k] + bias[j]`.
///
/// # Panics
/// When shapes do not fit.
pub fn matmul(
    pool: &ThreadPool,
    x: &Activations,
    weights: &PackedMatrix,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let product = Product {
        weights,
        bias,
        out,
        accumulate: false,
    };
    matmul_many(pool, x, [product]);
}

/// Several products of the same activations in one parallel section (Q, K and V).
///
/// # Panics
/// When shapes do not fit.
pub fn matmul_many<const N: usize>(pool: &ThreadPool, x: &Activations, products: [Product<'_>; N]) {
    self::products(pool, x, products, None);
}

/// [`matmul_many`], with what adapters add.
pub(crate) fn products<const N: usize>(
    pool: &ThreadPool,
    x: &Activations,
    products: [Product<'_>; N],
    sums: Option<&LowSums<'_>>,
) {
    let num_rows = x.num_rows();
    let works = products.each_ref();
    let works = works.map(|product| cost::product(num_rows, product.weights, 1.0));
    let work = works.into_iter().chain(sums.map(LowSums::work)).sum();
    let mut index = 0;
    let plans = products.map(|product| {
        let number = index;
        index += 1;
        let weights = product.weights;
        check_inputs(x, weights);
        assert_eq!(
            product.out.len(),
            num_rows * weights.out_features(),
            "out is [rows, out]"
        );
        if let Some(bias) = product.bias {
            assert_eq!(bias.len(), weights.out_features(), "one bias per output");
        }
        Plan {
            weights,
            bias: product.bias,
            out: SharedSlice::new(product.out),
            accumulate: product.accumulate,
            sums: sums.map(|sums| (sums, number)),
        }
    });
    if num_rows == 0 {
        return;
    }
    let num_panels = plans.iter().map(|plan| plan.weights.num_panels()).sum();
    let help = || sums.iter().for_each(|sums| sums.help());
    for_ranges_after(pool, work, num_panels, help, |panels| {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut first = 0;
            for plan in &plans {
                let end = first + plan.weights.num_panels();
                let (from, to) = (panels.start.max(first), panels.end.min(end));
                if from < to {
                    run_panels(x, plan, from - first..to - first, scratch);
                }
                first = end;
            }
        });
    });
}

pub(crate) fn check_inputs(x: &Activations, weights: &PackedMatrix) {
    assert_eq!(weights.in_features(), x.in_features(), "inner sizes differ");
    assert!(
        weights.is_quantised() || x.has_values(),
        "float weights need activations that keep their values"
    );
}

fn run_panels(x: &Activations, plan: &Plan<'_>, panels: Range<usize>, scratch: &mut Scratch) {
    scratch.grow();
    cpu::begin_at(plan.weights, panels.start);
    for row_start in (0..x.num_rows()).step_by(ROW_BLOCK) {
        let rows = row_start..(row_start + ROW_BLOCK).min(x.num_rows());
        for panel in panels.clone().step_by(MAX_PANELS) {
            let panels = panel..(panel + MAX_PANELS).min(panels.end);
            let tiles = &mut scratch.tiles[..panels.len() * rows.len() * PANEL_ROWS];
            let decoded = &mut scratch.decoded;
            if let Some((sums, product)) = plan.sums {
                sums.prefetch(product, &panels);
            }
            cpu::panels_product(
                x,
                plan.weights,
                panels.clone(),
                rows.clone(),
                decoded,
                tiles,
            );
            if let Some((sums, product)) = plan.sums {
                sums.add(product, panels.clone(), rows.clone(), tiles);
            }
            plan.take(panels, rows.clone(), tiles.as_chunks_mut::<PANEL_ROWS>().0);
        }
    }
}

impl Plan<'_> {
    /// Adds the bias to some panels' results (`[panels.len(), rows.len()]` of `tiles`) and puts them where
    /// they belong, row by row: rows of logits are so far apart that their lines share a cache set.
    fn take(&self, panels: Range<usize>, rows: Range<usize>, tiles: &mut [[f32; PANEL_ROWS]]) {
        let out_features = self.weights.out_features();
        let start = panels.start * PANEL_ROWS;
        let end = (panels.end * PANEL_ROWS).min(out_features);
        for (index, row) in rows.clone().enumerate() {
            // SAFETY: a (row, panel) cell is written by the one chunk that owns the panel.
            let out = unsafe { self.out.slice_mut(row * out_features + start, end - start) };
            let tiles = tiles.iter_mut().skip(index).step_by(rows.len());
            for (panel, (values, out)) in tiles.zip(out.chunks_mut(PANEL_ROWS)).enumerate() {
                if let Some(bias) = self.bias {
                    add(values, &bias[start + panel * PANEL_ROWS..][..out.len()]);
                }
                match (
                    self.accumulate,
                    <&mut [f32; PANEL_ROWS]>::try_from(&mut *out),
                ) {
                    (true, Ok(out)) => add(out, values),
                    (false, Ok(out)) => *out = *values,
                    // The last panel may be cut short.
                    (true, Err(_)) => add(out, &values[..out.len()]),
                    (false, Err(_)) => out.copy_from_slice(&values[..out.len()]),
                }
            }
        }
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// `out = act(x · gate) * (x · up)`, stored as the activations of the next product.
///
/// # Panics
/// When shapes do not fit.
pub fn matmul_glu(
    pool: &ThreadPool,
    x: &Activations,
    gate: &PackedMatrix,
    up: &PackedMatrix,
    glu: Glu,
    out: &mut Activations,
) {
    gated(pool, x, [gate, up], glu, out, None);
}

/// [`matmul_glu`], with what adapters add before the gate.
pub(crate) fn gated(
    pool: &ThreadPool,
    x: &Activations,
    [gate, up]: [&PackedMatrix; 2],
    glu: Glu,
    out: &mut Activations,
    sums: Option<&LowSums<'_>>,
) {
    for weights in [gate, up] {
        check_inputs(x, weights);
    }
    let width = gate.out_features();
    assert_eq!(
        up.out_features(),
        width,
        "gate and up have the same outputs"
    );
    if !width.is_multiple_of(BLOCK_INPUTS) {
        return gated_ragged(pool, x, [gate, up], glu, out, sums);
    }
    let num_blocks = width / BLOCK_INPUTS;
    let num_rows = x.num_rows();
    let works = [gate, up].map(|weights| cost::product(num_rows, weights, 1.0));
    let work = works.into_iter().chain(sums.map(LowSums::work)).sum();
    let shared = out.start(num_rows, width);
    let help = || sums.iter().for_each(|sums| sums.help());
    for_ranges_after(pool, work, num_blocks, help, |blocks| {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.grow();
            for weights in [gate, up] {
                cpu::begin_at(weights, blocks.start * PANELS_PER_BLOCK);
            }
            for row_start in (0..num_rows).step_by(ROW_BLOCK) {
                let rows = row_start..(row_start + ROW_BLOCK).min(num_rows);
                for blocks in GluCell::runs(blocks.clone(), rows.len()) {
                    let cell = GluCell {
                        weights: [gate, up],
                        biases: [None, None],
                        first_panel: 0,
                        blocks,
                        rows: rows.clone(),
                        sums,
                    };
                    cell.run(x, glu, scratch, &shared);
                }
            }
        });
    });
}

/// A few blocks of 32 outputs of a gated product over at most [`ROW_BLOCK`] rows.
pub(crate) struct GluCell<'a> {
    /// Gate and up.
    pub weights: [&'a PackedMatrix; 2],
    /// Biases of the blocks' outputs, `[blocks.len() * BLOCK_INPUTS]` each.
    pub biases: [Option<&'a [f32]>; 2],
    /// Where the matrices' outputs begin: those of an expert among others.
    pub first_panel: usize,
    /// Of [`GluCell::runs`].
    pub blocks: Range<usize>,
    pub rows: Range<usize>,
    /// What adapters add.
    pub sums: Option<&'a LowSums<'a>>,
}

impl GluCell<'_> {
    /// Divides a thread's blocks into those of cells. Few rows wait for weights, which come from
    /// memory fastest in long runs of one matrix; of many rows the results have no room for more.
    pub(crate) fn runs(
        blocks: Range<usize>,
        num_rows: usize,
    ) -> impl Iterator<Item = Range<usize>> {
        let len = (ROW_BLOCK / num_rows.max(1)).clamp(1, MAX_PANELS / PANELS_PER_BLOCK);
        let end = blocks.end;
        blocks
            .step_by(len)
            .map(move |start| start..(start + len).min(end))
    }

    pub(crate) fn run(
        self,
        x: &Activations,
        glu: Glu,
        scratch: &mut Scratch,
        out: &SharedRows<'_>,
    ) {
        let rows = self.rows;
        let num_panels = self.blocks.len() * PANELS_PER_BLOCK;
        let first = self.first_panel + self.blocks.start * PANELS_PER_BLOCK;
        let outs = [&mut scratch.gate, &mut scratch.up];
        let products = self.weights.into_iter().zip(self.biases).zip(outs);
        for (product, ((weights, bias), wide)) in products.enumerate() {
            let tiles = &mut scratch.tiles[..num_panels * rows.len() * PANEL_ROWS];
            let panels = first..first + num_panels;
            let decoded = &mut scratch.decoded;
            if let Some(sums) = self.sums {
                sums.prefetch(product, &panels);
            }
            cpu::panels_product(x, weights, panels.clone(), rows.clone(), decoded, tiles);
            if let Some(sums) = self.sums {
                sums.add(product, panels, rows.clone(), tiles);
            }
            let tiles = tiles.chunks_exact(rows.len() * PANEL_ROWS);
            for (part, tile) in tiles.enumerate() {
                let (cells, _) = wide.as_chunks_mut::<PANEL_ROWS>();
                let cells = cells.iter_mut().skip(part).step_by(num_panels);
                for (cell, values) in cells.zip(tile.as_chunks::<PANEL_ROWS>().0) {
                    *cell = *values;
                }
            }
            if let Some(bias) = bias {
                let width = bias.len();
                for row in wide[..rows.len() * width].chunks_exact_mut(width) {
                    add(row, bias);
                }
            }
        }
        let width = self.blocks.len() * BLOCK_INPUTS;
        let cells = rows.len() * width;
        elementwise::glu(glu, &mut scratch.gate[..cells], &scratch.up[..cells]);
        let start = self.blocks.start * BLOCK_INPUTS;
        for (row, values) in rows.zip(scratch.gate.chunks_exact(width)) {
            // SAFETY: the blocks of a row are written by the one chunk that owns them.
            unsafe { out.store(row, start, values) };
        }
    }
}

/// Widths that aren't whole blocks: only tiny float models have them.
fn gated_ragged(
    pool: &ThreadPool,
    x: &Activations,
    [gate, up]: [&PackedMatrix; 2],
    glu: Glu,
    out: &mut Activations,
    sums: Option<&LowSums<'_>>,
) {
    let (num_rows, width) = (x.num_rows(), gate.out_features());
    let mut values = [vec![0.0; num_rows * width], vec![0.0; num_rows * width]];
    let [gate_values, up_values] = &mut values;
    let product = |weights, out| Product {
        weights,
        bias: None,
        out,
        accumulate: false,
    };
    let both = [product(gate, gate_values), product(up, up_values)];
    products(pool, x, both, sums);
    elementwise::glu(glu, gate_values, up_values);
    out.load(pool, gate_values, num_rows, width);
}
