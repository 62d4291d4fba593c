//! Products of rows with the experts that they chose: rows sorted by expert, all experts in one
//! parallel section.
//!
//! An expert's panels are read once for all of its rows, as a dense product reads a matrix, so that
//! few rows cost what their experts' weights cost to read, and many rows share the unpacking.

use std::ops::Range;

use crate::activations::Activations;
use crate::cost;
use crate::cpu::{self, MAX_PANELS};
use crate::dtype::DType;
use crate::elementwise::Glu;
use crate::error::KernelError;
use crate::gating::Routes;
use crate::matmul::{GluCell, PANELS_PER_BLOCK, ROW_BLOCK, SCRATCH, check_inputs};
use crate::matrix::PackedMatrix;
use crate::panel::{BLOCK_INPUTS, PANEL_ROWS};
use crate::partition::{Division, SharedSlice};
use crate::pool::ThreadPool;

/// One matrix of every expert, `[num_experts, out_features, in_features]`.
#[derive(Debug)]
pub struct ExpertMatrix {
    /// `[num_experts * out_features, in_features]`; no panel has rows of two experts.
    matrix: PackedMatrix,
    num_experts: usize,
    /// `[num_experts * out_features]`
    bias: Option<Vec<f32>>,
}

impl ExpertMatrix {
    /// Repacks row-major GGUF bytes. An expert's outputs must be a multiple of sixteen.
    pub fn pack(
        pool: &ThreadPool,
        dtype: DType,
        data: &[u8],
        num_experts: usize,
        out_features: usize,
        in_features: usize,
    ) -> Result<Self, KernelError> {
        let total = num_experts.checked_mul(out_features);
        let Some(total) = total.filter(|_| out_features.is_multiple_of(PANEL_ROWS)) else {
            return Err(KernelError::BadShape {
                out_features,
                in_features,
            });
        };
        let matrix = PackedMatrix::pack(pool, dtype, data, total, in_features)?;
        Ok(Self {
            matrix,
            num_experts,
            bias: None,
        })
    }

    /// The same with `bias` (`[num_experts, out_features]`) added to every product.
    ///
    /// # Panics
    /// When there is not one for each output.
    pub fn with_bias(mut self, bias: Vec<f32>) -> Self {
        assert_eq!(bias.len(), self.matrix.out_features(), "one bias an output");
        self.bias = Some(bias);
        self
    }

    /// The biases of one expert's outputs.
    pub fn bias(&self, expert: usize) -> Option<&[f32]> {
        let width = self.out_features();
        let bias = self.bias.as_ref()?;
        Some(&bias[expert * width..(expert + 1) * width])
    }

    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// Of one expert.
    pub fn out_features(&self) -> usize {
        self.matrix.out_features() / self.num_experts
    }

    /// All experts' rows, one after the other.
    pub fn matrix(&self) -> &PackedMatrix {
        &self.matrix
    }

    fn first_panel(&self, expert: usize) -> usize {
        expert * self.out_features() / PANEL_ROWS
    }
}

/// How the work on some experts is cut: an expert's columns in equal parts, so that a few busy experts keep all threads busy.
struct Cut<'a> {
    /// Experts that have rows.
    busy: &'a [u32],
    /// Parts of one expert.
    num_parts: usize,
    /// Columns (in whatever unit was cut) of one part.
    part_len: usize,
    columns: usize,
    division: Division,
}

impl<'a> Cut<'a> {
    /// Cuts the products with `matrices`.
    fn new(
        pool: &ThreadPool,
        routes: &'a Routes,
        matrices: &[&ExpertMatrix],
        columns: usize,
    ) -> Self {
        let busy = routes.busy_experts();
        let num_rows = routes.rows().len().div_ceil(busy.len().max(1));
        let work = matrices.iter().map(|matrix| {
            let share = busy.len() as f64 / matrix.num_experts as f64;
            cost::product(num_rows, &matrix.matrix, share)
        });
        let division = Division::new(pool.team(), work.sum(), busy.len() * columns);
        // Experts with a row each are alike; of more rows some have most.
        let division = match routes.rows().len() > busy.len() {
            true => division.of_uneven(),
            false => division,
        };
        let num_parts = columns.div_ceil(division.chunk_len);
        Self {
            busy,
            num_parts,
            part_len: columns.div_ceil(num_parts),
            columns,
            division,
        }
    }

    fn num_chunks(&self) -> usize {
        self.busy.len() * self.num_parts
    }

    /// The expert and columns of a chunk.
    fn part(&self, chunk: usize) -> (usize, Range<usize>) {
        let start = chunk % self.num_parts * self.part_len;
        let end = (start + self.part_len).min(self.columns);
        (self.busy[chunk / self.num_parts] as usize, start..end)
    }
}

/// Blocks of at most [`ROW_BLOCK`] rows.
fn row_blocks(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = rows.end;
    rows.step_by(ROW_BLOCK)
        .map(move |start| start..(start + ROW_BLOCK).min(end))
}

/// `out = act(x · gate_e) * (x · up_e)` of each row's expert `e`, biases included. `x` has the rows
/// sorted by expert ([`Routes::rows`]).
///
/// # Panics
/// When shapes do not fit; the width must be whole blocks of 32.
pub fn experts_glu(
    pool: &ThreadPool,
    x: &Activations,
    routes: &Routes,
    gate: &ExpertMatrix,
    up: &ExpertMatrix,
    glu: Glu,
    out: &mut Activations,
) {
    check_inputs(x, &gate.matrix);
    check_inputs(x, &up.matrix);
    let width = gate.out_features();
    assert_eq!(
        up.out_features(),
        width,
        "gate and up have the same outputs"
    );
    assert!(width.is_multiple_of(BLOCK_INPUTS), "whole blocks");
    check_rows(x, routes, gate);
    let shared = out.start(x.num_rows(), width);
    let cut = Cut::new(pool, routes, &[gate, up], width / BLOCK_INPUTS);
    cut.division.for_chunks(pool, cut.num_chunks(), |chunk| {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.grow();
            let (expert, blocks) = cut.part(chunk);
            for rows in row_blocks(routes.rows_of(expert)) {
                for blocks in GluCell::runs(blocks.clone(), rows.len()) {
                    let outputs = blocks.start * BLOCK_INPUTS..blocks.end * BLOCK_INPUTS;
                    let cell = GluCell {
                        weights: [&gate.matrix, &up.matrix],
                        biases: [gate, up].map(|m| m.bias(expert).map(|b| &b[outputs.clone()])),
                        first_panel: gate.first_panel(expert),
                        blocks,
                        rows: rows.clone(),
                        sums: None,
                    };
                    cell.run(x, glu, scratch, &shared);
                }
            }
        });
    });
}

/// `out = x · weights_e`, and its biases, of each row's expert `e`; `x` and `out` (`[rows,
/// out_features]`) are sorted by expert.
///
/// # Panics
/// When shapes do not fit.
pub fn experts_matmul(
    pool: &ThreadPool,
    x: &Activations,
    routes: &Routes,
    weights: &ExpertMatrix,
    out: &mut [f32],
) {
    check_inputs(x, &weights.matrix);
    check_rows(x, routes, weights);
    let width = weights.out_features();
    assert_eq!(out.len(), x.num_rows() * width, "out is [rows, out]");
    let out = SharedSlice::new(out);
    let cut = Cut::new(pool, routes, &[weights], width / PANEL_ROWS);
    cut.division.for_chunks(pool, cut.num_chunks(), |chunk| {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.grow();
            let (expert, columns) = cut.part(chunk);
            let first_panel = weights.first_panel(expert);
            for rows in row_blocks(routes.rows_of(expert)) {
                for first in columns.clone().step_by(MAX_PANELS) {
                    let columns = first..(first + MAX_PANELS).min(columns.end);
                    let panels = first_panel + columns.start..first_panel + columns.end;
                    let tiles = &mut scratch.tiles[..panels.len() * rows.len() * PANEL_ROWS];
                    let decoded = &mut scratch.decoded;
                    cpu::panels_product(x, &weights.matrix, panels, rows.clone(), decoded, tiles);
                    if let Some(bias) = weights.bias(expert) {
                        add_bias(&bias[columns.start * PANEL_ROWS..], rows.len(), tiles);
                    }
                    put_down(tiles.as_chunks().0, rows.clone(), columns, width, &out);
                }
            }
        });
    });
}

/// Adds the biases of some columns to their results, `[columns, num_rows, PANEL_ROWS]`.
fn add_bias(bias: &[f32], num_rows: usize, tiles: &mut [f32]) {
    let panels = tiles.chunks_exact_mut(num_rows * PANEL_ROWS);
    for (bias, panel) in bias.as_chunks::<PANEL_ROWS>().0.iter().zip(panels) {
        for tile in panel.as_chunks_mut::<PANEL_ROWS>().0 {
            for (value, bias) in tile.iter_mut().zip(bias) {
                *value += bias;
            }
        }
    }
}

/// Writes the results of some columns (in panels), `[columns.len(), rows.len()]`, to their rows of `width`
/// values.
fn put_down(
    tiles: &[[f32; PANEL_ROWS]],
    rows: Range<usize>,
    columns: Range<usize>,
    width: usize,
    out: &SharedSlice<'_, f32>,
) {
    for (index, row) in rows.clone().enumerate() {
        let start = row * width + columns.start * PANEL_ROWS;
        // SAFETY: a (row, panel) cell is written by the one chunk that owns the panel.
        let out = unsafe { out.slice_mut(start, columns.len() * PANEL_ROWS) };
        let tiles = tiles.iter().skip(index).step_by(rows.len());
        for (out, tile) in out.as_chunks_mut().0.iter_mut().zip(tiles) {
            *out = *tile;
        }
    }
}

fn check_rows(x: &Activations, routes: &Routes, matrix: &ExpertMatrix) {
    assert_eq!(x.num_rows(), routes.rows().len(), "rows sorted by expert");
    assert_eq!(routes.num_experts(), matrix.num_experts, "the same experts");
}

/// Panels and blocks fit each other.
const _: () = assert!(BLOCK_INPUTS == PANELS_PER_BLOCK * PANEL_ROWS);
