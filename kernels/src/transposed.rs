//! Products with the transpose of packed matrices, for gradients: plain f32, the weights read back a panel at a time.

use std::cell::RefCell;
use std::ops::Range;

use crate::cost;
use crate::cpu;
use crate::experts::ExpertMatrix;
use crate::gating::Routes;
use crate::matrix::PackedMatrix;
use crate::panel::PANEL_ROWS;
use crate::partition::{SharedSlice, for_each};
use crate::pool::ThreadPool;

/// Outputs whose weights are read back at once: a thread's second cache holds them, and each row's sums are touched once for
/// all of them.
const OUTPUTS_AT_ONCE: usize = 4 * PANEL_ROWS;

thread_local! {
    /// `[OUTPUTS_AT_ONCE, in_features]`
    static WEIGHTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `out[row] += sum_j x[row, j] * weights[j]`: `x` is `[rows, out_features]`, `out` is `[rows, in_features]`.
///
/// # Panics
/// When lengths do not fit.
pub fn matmul_transposed(pool: &ThreadPool, x: &[f32], weights: &PackedMatrix, out: &mut [f32]) {
    let num_rows = x.len() / weights.out_features();
    assert_eq!(x.len(), num_rows * weights.out_features(), "whole rows");
    assert_eq!(
        out.len(),
        num_rows * weights.in_features(),
        "out is [rows, in]"
    );
    let out = SharedSlice::new(out);
    // Every chunk reads all weights back.
    let num_weights = weights.out_features() * weights.in_features();
    let work = cost::transposed(num_rows, num_weights);
    let at_once = num_rows.div_ceil(pool.team().threads_for(work, num_rows));
    for_each(pool, work, num_rows.div_ceil(at_once.max(1)), |chunk| {
        let rows = chunk * at_once..((chunk + 1) * at_once).min(num_rows);
        // SAFETY: each row is taken once.
        unsafe { add(x, weights, 0..weights.out_features(), rows, &out) };
    });
}

/// [`matmul_transposed`] of rows sorted by expert ([`Routes::rows`]), each with its own expert's matrix.
///
/// # Panics
/// When lengths do not fit.
pub fn experts_transposed(
    pool: &ThreadPool,
    x: &[f32],
    routes: &Routes,
    weights: &ExpertMatrix,
    out: &mut [f32],
) {
    let (num_rows, width) = (routes.rows().len(), weights.out_features());
    assert_eq!(x.len(), num_rows * width, "x is sorted by expert");
    let in_features = weights.matrix().in_features();
    assert_eq!(out.len(), num_rows * in_features, "out is [rows, in]");
    let out = SharedSlice::new(out);
    let busy = routes.busy_experts();
    let num_weights = busy.len() * width * in_features;
    let work = cost::transposed(num_rows.div_ceil(busy.len().max(1)), num_weights);
    for_each(pool, work, busy.len(), |index| {
        let expert = busy[index] as usize;
        let outputs = expert * width..(expert + 1) * width;
        // SAFETY: an expert's rows are its own.
        unsafe { add(x, weights.matrix(), outputs, routes.rows_of(expert), &out) };
    });
}

/// Adds to rows `rows` of `out` the products of those of `x` with outputs `outputs` of the matrix.
///
/// # Safety
/// Nobody else may use the rows of `out`.
unsafe fn add(
    x: &[f32],
    weights: &PackedMatrix,
    outputs: Range<usize>,
    rows: Range<usize>,
    out: &SharedSlice<'_, f32>,
) {
    if rows.is_empty() {
        return;
    }
    let (width, in_features) = (outputs.len(), weights.in_features());
    // SAFETY: the caller's promise.
    let out = unsafe { out.slice_mut(rows.start * in_features, rows.len() * in_features) };
    let x = &x[rows.start * width..rows.end * width];
    WEIGHTS.with_borrow_mut(|buffer| {
        buffer.resize(OUTPUTS_AT_ONCE * in_features, 0.0);
        for first in outputs.clone().step_by(OUTPUTS_AT_ONCE) {
            let count = OUTPUTS_AT_ONCE.min(outputs.end - first);
            let read = &mut buffer[..count * in_features];
            for (index, panel) in read.chunks_mut(PANEL_ROWS * in_features).enumerate() {
                weights.dequantize_panel(first + index * PANEL_ROWS, panel);
            }
            let x = &x[first - outputs.start..];
            cpu::add_outer(x, width, read, out, in_features);
        }
    });
}
