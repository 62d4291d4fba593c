//! Gradients by activations: what going back through a layer needs beside products.

use std::ops::Range;

use crate::cost;
use crate::cpu;
use crate::elementwise::Glu;
use crate::gating::Routes;
use crate::partition::{SharedSlice, for_ranges, for_rows};
use crate::pool::ThreadPool;

pub use crate::cpu::{AttentionRow, AttentionSums};

/// Values that a thread takes at once, or some times as many.
const VALUES_AT_ONCE: usize = 1024;

/// Replaces `gate` and `up` by the gradients by them; `by_result` is that by `act(gate) * up`.
///
/// # Panics
/// When lengths differ.
pub fn glu_gradient(
    pool: &ThreadPool,
    kind: Glu,
    gate: &mut [f32],
    up: &mut [f32],
    by_result: &[f32],
) {
    let len = gate.len();
    assert!(
        up.len() == len && by_result.len() == len,
        "one gradient each"
    );
    let (gate, up) = (SharedSlice::new(gate), SharedSlice::new(up));
    let num_items = len.div_ceil(VALUES_AT_ONCE);
    for_ranges(pool, cost::values(len), num_items, |items| {
        let range = items.start * VALUES_AT_ONCE..(items.end * VALUES_AT_ONCE).min(len);
        // SAFETY: each range is taken once.
        let (gate, up) = unsafe {
            (
                gate.slice_mut(range.start, range.len()),
                up.slice_mut(range.start, range.len()),
            )
        };
        match kind {
            Glu::Silu => cpu::silu_gradient(gate, up, &by_result[range]),
            Glu::GeluTanh => cpu::gelu_tanh_gradient(gate, up, &by_result[range]),
            Glu::ClampedSwish => cpu::clamped_swish_gradient(gate, up, &by_result[range]),
        }
    });
}

/// The chosen experts of a row, as places in what [`Routes`] calls slots.
fn places(routes: &Routes, row: usize) -> Range<usize> {
    let chosen = routes.num_experts_per_tok();
    row * chosen..(row + 1) * chosen
}

/// `out[slot] = gate * x[row]` for every slot: `x` is `[rows, width]`, `out` is `[slots, width]`, sorted by expert.
///
/// # Panics
/// When lengths do not fit.
pub fn spread_rows(pool: &ThreadPool, routes: &Routes, x: &[f32], out: &mut [f32]) {
    let num_rows = routes.num_rows();
    let width = x.len() / num_rows.max(1);
    assert_eq!(x.len(), num_rows * width, "whole rows");
    assert_eq!(out.len(), routes.rows().len() * width, "one row a slot");
    let out = SharedSlice::new(out);
    for_rows(
        pool,
        num_rows,
        routes.num_experts_per_tok() * width,
        |row| {
            let x = &x[row * width..][..width];
            for place in places(routes, row) {
                let slot = routes.slots()[place] as usize;
                let gate = routes.gates()[place];
                // SAFETY: a slot belongs to one row.
                let out = unsafe { out.slice_mut(slot * width, width) };
                for (out, x) in out.iter_mut().zip(x) {
                    *out = gate * x;
                }
            }
        },
    );
}

/// `out[row] += x[slot]` over the row's slots: `x` is `[slots, width]`, sorted by expert, `out` is `[rows, width]`.
///
/// # Panics
/// When lengths do not fit.
pub fn gather_rows(pool: &ThreadPool, routes: &Routes, x: &[f32], out: &mut [f32]) {
    let num_rows = routes.num_rows();
    let width = out.len() / num_rows.max(1);
    assert_eq!(out.len(), num_rows * width, "whole rows");
    assert_eq!(x.len(), routes.rows().len() * width, "one row a slot");
    let out = SharedSlice::new(out);
    for_rows(
        pool,
        num_rows,
        routes.num_experts_per_tok() * width,
        |row| {
            // SAFETY: each row is taken once.
            let out = unsafe { out.slice_mut(row * width, width) };
            for place in places(routes, row) {
                let slot = routes.slots()[place] as usize;
                cpu::add_assign(out, &x[slot * width..][..width]);
            }
        },
    );
}

/// Adds the gradients of one query's attention: with weights `w = softmax(scale * keys · query)` and slopes
/// `s = values · by_result`, that of score `i` is `w_i (s_i - sum of w s)`.
///
/// # Panics
/// When lengths do not fit.
pub fn attention_gradient(row: &AttentionRow<'_>, sums: &mut AttentionSums<'_>) {
    let dim = row.query.len();
    let num_own = (row.keys.len() / dim).saturating_sub(row.first);
    assert!(row.by_result.len() == dim && sums.by_query.len() == dim);
    assert!(row.keys.len().is_multiple_of(dim) && row.values.len() == row.keys.len());
    assert!(sums.by_keys.len() >= num_own * dim && sums.by_values.len() >= num_own * dim);
    cpu::attention_gradient(row, sums);
}
