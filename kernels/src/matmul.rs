//! Products of activations with packed matrices.

use crate::activations::Activations;
use crate::cpu;
use crate::matrix::{PANEL_ROWS, PackedMatrix};
use crate::partition::{Chunks, SharedSlice};
use crate::pool::ThreadPool;

/// Activation rows that one pass over a panel works on: their codes stay in the second-level cache.
const ROW_BLOCK: usize = 64;
/// Chunks a thread gets of a product, so that a slow thread doesn't hold up the others.
const CHUNKS_PER_THREAD: usize = 8;

/// One product of a [`matmul_many`] call.
pub struct Product<'a> {
    pub weights: &'a PackedMatrix,
    /// `[out_features]`
    pub bias: Option<&'a [f32]>,
    /// `[num_rows, out_features]`, overwritten.
    pub out: &'a mut [f32],
}

struct Plan<'a> {
    weights: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    out: SharedSlice<'a, f32>,
    panels_per_chunk: usize,
    num_panels: usize,
    num_chunks: usize,
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
    matmul_many(pool, x, [Product { weights, bias, out }]);
}

/// Several products of the same activations in one parallel section (QKV, gate and up).
///
/// # Panics
/// When shapes do not fit.
pub fn matmul_many<const N: usize>(pool: &ThreadPool, x: &Activations, products: [Product<'_>; N]) {
    let num_rows = x.num_rows();
    let total_panels: usize = products
        .iter()
        .map(|product| product.weights.out_features().div_ceil(PANEL_ROWS))
        .sum();
    let panels_per_chunk = total_panels
        .div_ceil(pool.num_threads() * CHUNKS_PER_THREAD)
        .max(1);
    let plans = products.map(|product| {
        let weights = product.weights;
        assert_eq!(weights.in_features(), x.in_features(), "inner sizes differ");
        assert_eq!(
            product.out.len(),
            num_rows * weights.out_features(),
            "out is [rows, out]"
        );
        if let Some(bias) = product.bias {
            assert_eq!(bias.len(), weights.out_features(), "one bias per output");
        }
        let num_panels = weights.out_features().div_ceil(PANEL_ROWS);
        Plan {
            weights,
            bias: product.bias,
            out: SharedSlice::new(product.out),
            panels_per_chunk,
            num_panels,
            num_chunks: num_panels.div_ceil(panels_per_chunk),
        }
    });
    if num_rows == 0 {
        return;
    }
    let chunks = Chunks::new(plans.iter().map(|plan| plan.num_chunks).sum());
    pool.run(&|_, _| {
        while let Some(mut chunk) = chunks.take() {
            for plan in &plans {
                if chunk < plan.num_chunks {
                    run_chunk(x, plan, chunk);
                    break;
                }
                chunk -= plan.num_chunks;
            }
        }
    });
}

fn run_chunk(x: &Activations, plan: &Plan<'_>, chunk: usize) {
    let first = chunk * plan.panels_per_chunk;
    let last = (first + plan.panels_per_chunk).min(plan.num_panels);
    for row_start in (0..x.num_rows()).step_by(ROW_BLOCK) {
        let row_end = (row_start + ROW_BLOCK).min(x.num_rows());
        for panel in first..last {
            cpu::panel_product(
                x,
                plan.weights,
                panel,
                row_start..row_end,
                &|row, values| {
                    let out_features = plan.weights.out_features();
                    let start = panel * PANEL_ROWS;
                    let len = values.len().min(out_features - start);
                    // SAFETY: a (row, panel) cell is written by the one chunk that owns the panel.
                    let out = unsafe { plan.out.slice_mut(row * out_features + start, len) };
                    match plan.bias {
                        Some(bias) => {
                            for ((out, value), bias) in
                                out.iter_mut().zip(values).zip(&bias[start..])
                            {
                                *out = value + bias;
                            }
                        }
                        None => out.copy_from_slice(&values[..len]),
                    }
                },
            );
        }
    }
}
