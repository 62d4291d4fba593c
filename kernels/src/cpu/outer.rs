//! `out += x · weights` over plain floats, with weights in the rows of the sum: what gradients multiply by.

use super::vector::{LANES, Vector};

/// See [`super::add_outer`]. An element is summed over `j` in order, and the sum added to what was there, whatever rows are
/// beside it.
#[inline(always)]
pub(super) fn add_outer<V: Vector>(
    x: &[f32],
    stride: usize,
    weights: &[f32],
    out: &mut [f32],
    width: usize,
) {
    let mut column = 0;
    // Columns before rows: a few columns of all weights stay in the first cache while the rows pass by.
    if V::MAX_SUMS >= 8 {
        while column + 2 * LANES <= width {
            add_columns::<V, 8, 2>(x, stride, weights, out, width, column);
            column += 2 * LANES;
        }
    }
    while column + LANES <= width {
        add_columns::<V, 4, 1>(x, stride, weights, out, width, column);
        column += LANES;
    }
    for (row, out) in out.chunks_exact_mut(width).enumerate() {
        for (column, out) in out.iter_mut().enumerate().skip(column) {
            let mut sum = 0.0;
            for (j, weights) in weights.chunks_exact(width).enumerate() {
                sum += x[row * stride + j] * weights[column];
            }
            *out += sum;
        }
    }
}

/// The sums of `COLUMNS` vectors from `column` on, `ROWS` rows at a time.
#[inline(always)]
fn add_columns<V: Vector, const ROWS: usize, const COLUMNS: usize>(
    x: &[f32],
    stride: usize,
    weights: &[f32],
    out: &mut [f32],
    width: usize,
    column: usize,
) {
    let num_rows = out.len() / width;
    let mut row = 0;
    while row + ROWS <= num_rows {
        let out = &mut out[row * width + column..];
        add_tile::<V, ROWS, COLUMNS>(&x[row * stride..], stride, weights, out, width, column);
        row += ROWS;
    }
    while row < num_rows {
        let out = &mut out[row * width + column..];
        add_tile::<V, 1, COLUMNS>(&x[row * stride..], stride, weights, out, width, column);
        row += 1;
    }
}

#[inline(always)]
fn add_tile<V: Vector, const ROWS: usize, const COLUMNS: usize>(
    x: &[f32],
    stride: usize,
    weights: &[f32],
    out: &mut [f32],
    width: usize,
    column: usize,
) {
    let count = weights.len() / width;
    // Slices of one length, so that no element is checked in the loop.
    let x: [&[f32]; ROWS] = std::array::from_fn(|row| &x[row * stride..][..count]);
    let mut sums = [[V::splat(0.0); COLUMNS]; ROWS];
    for (j, weights) in weights.chunks_exact(width).enumerate() {
        let (weights, _) = weights[column..column + COLUMNS * LANES].as_chunks::<LANES>();
        let weights: [V; COLUMNS] = std::array::from_fn(|index| V::load(&weights[index]));
        for row in 0..ROWS {
            let factor = V::splat(x[row][j]);
            for index in 0..COLUMNS {
                sums[row][index] = sums[row][index].add_product(factor, weights[index]);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        let (out, _) = out[row * width..][..COLUMNS * LANES].as_chunks_mut::<LANES>();
        for (out, sum) in out.iter_mut().zip(sums) {
            // `1 * out + sum` is their exact sum, rounded once.
            sum.add_product(V::splat(1.0), V::load(out)).store(out);
        }
    }
}
