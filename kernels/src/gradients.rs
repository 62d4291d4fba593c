//! Gradients by activations: what going back through a layer needs beside products.

use std::cell::RefCell;

use crate::cost;
use crate::cpu;
use crate::elementwise::{Glu, glu, scale};
use crate::partition::{SharedSlice, for_ranges, for_rows};
use crate::pool::ThreadPool;

pub use crate::attention_gradient::{AttentionGradient, AttentionGradients, NO_SLOT};

/// Values that a thread takes at once, or some times as many.
const VALUES_AT_ONCE: usize = 1024;

thread_local! {
    /// A row of a gated activation's results.
    static RESULT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `out = act(gate) * up`, of which `gate` and `up` are kept.
///
/// # Panics
/// When lengths differ.
pub fn kept_glu(pool: &ThreadPool, kind: Glu, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let len = gate.len();
    assert!(up.len() == len && out.len() == len, "shaped alike");
    let out = SharedSlice::new(out);
    let num_items = len.div_ceil(VALUES_AT_ONCE);
    for_ranges(pool, cost::values(len), num_items, |items| {
        let range = items.start * VALUES_AT_ONCE..(items.end * VALUES_AT_ONCE).min(len);
        // SAFETY: each range is taken once.
        let out = unsafe { out.slice_mut(range.start, range.len()) };
        out.copy_from_slice(&gate[range.clone()]);
        glu(kind, out, &up[range]);
    });
}

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
        differentiate(kind, gate, up, &by_result[range]);
    });
}

fn differentiate(kind: Glu, gate: &mut [f32], up: &mut [f32], by_result: &[f32]) {
    match kind {
        Glu::Silu => cpu::silu_gradient(gate, up, by_result),
        Glu::GeluTanh => cpu::gelu_tanh_gradient(gate, up, by_result),
        Glu::ClampedSwish => cpu::clamped_swish_gradient(gate, up, by_result),
    }
}

/// [`glu_gradient`] of rows whose results `h = act(gate) * up` count by a weight of their own:
/// `by_result` is the gradient by
/// `weight * h`, and `along` becomes that by the weight.
///
/// # Panics
/// When lengths do not fit.
pub fn weighted_glu_gradient(
    pool: &ThreadPool,
    kind: Glu,
    weights: &[f32],
    [gate, up, by_result]: [&mut [f32]; 3],
    along: &mut [f32],
) {
    let (num_rows, len) = (weights.len(), gate.len());
    let width = len / num_rows.max(1);
    assert!(
        up.len() == len && by_result.len() == len && len == num_rows * width,
        "one gradient each"
    );
    assert_eq!(along.len(), num_rows, "one a row");
    let [gate, up, by_result, along] = [gate, up, by_result, along].map(SharedSlice::new);
    // Two passes over three rows.
    for_rows(pool, num_rows, 6 * width, |row| {
        // SAFETY: each row is taken once.
        let own =
            [&gate, &up, &by_result].map(|values| unsafe { values.slice_mut(row * width, width) });
        let [gate, up, by_result] = own;
        // SAFETY: each row is taken once.
        let along = unsafe { &mut along.slice_mut(row, 1)[0] };
        RESULT.with_borrow_mut(|result| {
            result.clear();
            result.extend_from_slice(gate);
            glu(kind, result, up);
            cpu::dot(result, by_result, along);
        });
        scale(by_result, weights[row]);
        differentiate(kind, gate, up, by_result);
    });
}

/// `out += J^T by_normed` of the RMS norm of each row of `x`, rows of `weight.len()` values.
///
/// # Panics
/// When lengths do not fit.
pub fn add_norm_gradient(
    pool: &ThreadPool,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    by_normed: &[f32],
    out: &mut [f32],
) {
    let (width, len) = (weight.len(), x.len());
    assert!(len.is_multiple_of(width), "x has whole rows");
    assert!(by_normed.len() == len && out.len() == len, "shaped as x");
    let out = SharedSlice::new(out);
    for_rows(pool, len / width, width, |row| {
        let own = row * width..(row + 1) * width;
        // SAFETY: each row is taken once.
        let out = unsafe { out.slice_mut(own.start, width) };
        cpu::rms_norm_gradient(&x[own.clone()], weight, eps, &by_normed[own], out);
    });
}
