//! Root-mean-square normalisation.

use crate::partition::{Chunks, SharedSlice};
use crate::pool::ThreadPool;

/// Rows below which one thread is faster than two.
const ROWS_PARALLEL: usize = 8;

/// `out[row] = x[row] / sqrt(mean(x[row]^2) + eps) * weight`, rows of `weight.len()` values (also used
/// per head, for QK-norm).
///
/// # Panics
/// When lengths do not fit.
pub fn rms_norm(pool: &ThreadPool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "out is shaped as x");
    assert!(x.len().is_multiple_of(weight.len()), "x has whole rows");
    for_rows(pool, out, weight.len(), |row, out| {
        let x = &x[row * weight.len()..][..weight.len()];
        let scale = inverse_rms(x, eps);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    });
}

/// [`rms_norm`] in place.
pub fn rms_norm_in_place(pool: &ThreadPool, x: &mut [f32], weight: &[f32], eps: f32) {
    assert!(x.len().is_multiple_of(weight.len()), "x has whole rows");
    for_rows(pool, x, weight.len(), |_, x| {
        let scale = inverse_rms(x, eps);
        for (x, weight) in x.iter_mut().zip(weight) {
            *x *= scale * weight;
        }
    });
}

fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    // Eight partial sums vectorise; f64 keeps long rows exact.
    let mut sums = [0.0_f64; 8];
    let (groups, rest) = x.as_chunks::<8>();
    for group in groups {
        for i in 0..8 {
            sums[i] += f64::from(group[i]) * f64::from(group[i]);
        }
    }
    let tail: f64 = rest.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    let total: f64 = sums.iter().sum::<f64>() + tail;
    (1.0 / (total / x.len() as f64 + f64::from(eps)).sqrt()) as f32
}

/// Calls `body(row, out_row)` for every row, on all threads when there are enough rows.
pub(crate) fn for_rows(
    pool: &ThreadPool,
    out: &mut [f32],
    width: usize,
    body: impl Fn(usize, &mut [f32]) + Sync,
) {
    let num_rows = out.len() / width;
    if num_rows < ROWS_PARALLEL {
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            body(row, out);
        }
        return;
    }
    let shared = SharedSlice::new(out);
    let chunks = Chunks::new(num_rows);
    pool.run(&|_, _| {
        while let Some(row) = chunks.take() {
            // SAFETY: each row is taken once.
            body(row, unsafe { shared.slice_mut(row * width, width) });
        }
    });
}
