//! Root-mean-square normalisation.

use crate::cpu;
use crate::partition::{SharedSlice, for_rows};
use crate::pool::ThreadPool;

/// `x[row] = x[row] / sqrt(mean(x[row]^2) + eps) * weight`, rows of `weight.len()` values (also used per
/// head, for QK-norm).
///
/// # Panics
/// When lengths do not fit.
pub fn rms_norm_in_place(pool: &ThreadPool, x: &mut [f32], weight: &[f32], eps: f32) {
    let width = weight.len();
    assert!(x.len().is_multiple_of(width), "x has whole rows");
    let num_rows = x.len() / width;
    let shared = SharedSlice::new(x);
    for_rows(pool, num_rows, width, |row| {
        // SAFETY: each row is taken once.
        cpu::rms_norm_row(unsafe { shared.slice_mut(row * width, width) }, weight, eps);
    });
}

/// `x += norm(h)`, row by row: the residual of an architecture that normalises a sub-layer's output.
/// `h` is normalised in place.
///
/// # Panics
/// When lengths do not fit.
pub fn add_normed(pool: &ThreadPool, x: &mut [f32], h: &mut [f32], weight: &[f32], eps: f32) {
    let width = weight.len();
    assert_eq!(x.len(), h.len(), "h is shaped as x");
    assert!(x.len().is_multiple_of(width), "x has whole rows");
    let num_rows = x.len() / width;
    let (x, h) = (SharedSlice::new(x), SharedSlice::new(h));
    for_rows(pool, num_rows, width, |row| {
        // SAFETY: each row is taken once.
        let (x, h) = unsafe {
            (
                x.slice_mut(row * width, width),
                h.slice_mut(row * width, width),
            )
        };
        cpu::rms_norm_row(h, weight, eps);
        cpu::add_assign(x, h);
    });
}
