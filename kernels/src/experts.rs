//! Products of rows with the experts that they chose: rows sorted by expert, all experts in one parallel section.
//!
//! An expert's panels are read once for all of its rows, as a dense product reads a matrix, so that few rows cost what their
//! experts' weights cost to read, and many rows share the unpacking.

use crate::activations::Activations;
use crate::cpu::{self, MAX_PANELS};
use crate::dtype::DType;
use crate::error::KernelError;
use crate::gating::Routes;
use crate::matmul::{Glu, GluCell, PANELS_PER_BLOCK, ROW_BLOCK, SCRATCH, check_inputs};
use crate::matrix::PackedMatrix;
use crate::panel::{BLOCK_INPUTS, PANEL_ROWS};
use crate::partition::{Chunks, SharedSlice};
use crate::pool::ThreadPool;

/// Chunks a thread gets of a product; see [`crate::matmul`].
const CHUNKS_PER_THREAD: usize = 8;

/// One matrix of every expert, `[num_experts, out_features, in_features]`.
#[derive(Debug)]
pub struct ExpertMatrix {
    /// `[num_experts * out_features, in_features]`; no panel has rows of two experts.
    matrix: PackedMatrix,
    num_experts: usize,
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
        })
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
struct Cut {
    /// Parts of one expert.
    num_parts: usize,
    /// Columns (in whatever unit was cut) of one part.
    part_len: usize,
    columns: usize,
}

impl Cut {
    fn new(pool: &ThreadPool, routes: &Routes, columns: usize) -> Self {
        let is_busy = |expert: &usize| !routes.rows_of(*expert).is_empty();
        let num_busy = (0..routes.num_experts()).filter(is_busy).count();
        let wanted = (pool.num_threads() * CHUNKS_PER_THREAD).div_ceil(num_busy.max(1));
        let part_len = columns.div_ceil(wanted.clamp(1, columns));
        Self {
            num_parts: columns.div_ceil(part_len),
            part_len,
            columns,
        }
    }

    /// The expert and columns of a chunk.
    fn part(&self, chunk: usize) -> (usize, std::ops::Range<usize>) {
        let start = chunk % self.num_parts * self.part_len;
        let end = (start + self.part_len).min(self.columns);
        (chunk / self.num_parts, start..end)
    }
}

/// Blocks of at most [`ROW_BLOCK`] rows.
fn row_blocks(rows: std::ops::Range<usize>) -> impl Iterator<Item = std::ops::Range<usize>> {
    let end = rows.end;
    rows.step_by(ROW_BLOCK)
        .map(move |start| start..(start + ROW_BLOCK).min(end))
}

/// `out = act(x · gate_e) * (x · up_e)` of each row's expert `e`. `x` has the rows sorted by expert ([`Routes::rows`]).
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
    let cut = Cut::new(pool, routes, width / BLOCK_INPUTS);
    let chunks = Chunks::new(routes.num_experts() * cut.num_parts);
    pool.run(&|_, _| {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.grow();
            while let Some(chunk) = chunks.take() {
                let (expert, blocks) = cut.part(chunk);
                for rows in row_blocks(routes.rows_of(expert)) {
                    for block in blocks.clone() {
                        let cell = GluCell {
                            weights: [&gate.matrix, &up.matrix],
                            first_panel: gate.first_panel(expert),
                            block,
                            rows: rows.clone(),
                        };
                        cell.run(x, glu, scratch, &shared);
                    }
                }
            }
        });
    });
}

/// `out = x · weights_e` of each row's expert `e`; `x` and `out` (`[rows, out_features]`) are sorted by expert.
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
    let cut = Cut::new(pool, routes, width / PANEL_ROWS);
    let chunks = Chunks::new(routes.num_experts() * cut.num_parts);
    pool.run(&|_, _| {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.grow();
            while let Some(chunk) = chunks.take() {
                let (expert, columns) = cut.part(chunk);
                let first_panel = weights.first_panel(expert);
                for rows in row_blocks(routes.rows_of(expert)) {
                    for first in columns.clone().step_by(MAX_PANELS) {
                        let last = (first + MAX_PANELS).min(columns.end);
                        let panels = first_panel + first..first_panel + last;
                        let tiles = &mut scratch.tiles[..panels.len() * rows.len() * PANEL_ROWS];
                        let decoded = &mut scratch.decoded;
                        cpu::panels_product(
                            x,
                            &weights.matrix,
                            panels,
                            rows.clone(),
                            decoded,
                            tiles,
                        );
                        let tiles = tiles.as_chunks::<PANEL_ROWS>().0;
                        for (index, row) in rows.clone().enumerate() {
                            let start = row * width + first * PANEL_ROWS;
                            // SAFETY: a (row, panel) cell is written by the one chunk that owns the panel.
                            let out = unsafe { out.slice_mut(start, (last - first) * PANEL_ROWS) };
                            let tiles = tiles.iter().skip(index).step_by(rows.len());
                            for (out, tile) in out.as_chunks_mut().0.iter_mut().zip(tiles) {
                                *out = *tile;
                            }
                        }
                    }
                }
            }
        });
    });
}

fn check_rows(x: &Activations, routes: &Routes, matrix: &ExpertMatrix) {
    assert_eq!(x.num_rows(), routes.rows().len(), "rows sorted by expert");
    assert_eq!(routes.num_experts(), matrix.num_experts, "the same experts");
}

/// Panels and blocks fit each other.
const _: () = assert!(BLOCK_INPUTS == PANELS_PER_BLOCK * PANEL_ROWS);
