//! `out += x · weights` over plain floats, with weights in the rows of the sum: what gradients
//! multiply by.

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
    add::<V, false>(x, stride, weights, out, width);
}

/// See [`super::add_outer_exchanged`]. The sums are those of [`add_outer`].
#[inline(always)]
pub(super) fn add_outer_exchanged<V: Vector>(
    x: &[f32],
    stride: usize,
    weights: &[f32],
    out: &mut [f32],
    width: usize,
) {
    add::<V, true>(x, stride, weights, out, width);
}

/// Where row `row`'s factor of weights `j` is in `x`.
#[inline(always)]
fn place<const EXCHANGED: bool>(row: usize, j: usize, stride: usize) -> usize {
    match EXCHANGED {
        true => j * stride + row,
        false => row * stride + j,
    }
}

#[inline(always)]
fn add<V: Vector, const EXCHANGED: bool>(
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
            add_columns::<V, EXCHANGED, 8, 2>(x, stride, weights, out, width, column);
            column += 2 * LANES;
        }
    }
    while column + LANES <= width {
        add_columns::<V, EXCHANGED, 4, 1>(x, stride, weights, out, width, column);
        column += LANES;
    }
    for (row, out) in out.chunks_exact_mut(width).enumerate() {
        for (column, out) in out.iter_mut().enumerate().skip(column) {
            let mut sum = 0.0;
            for (j, weights) in weights.chunks_exact(width).enumerate() {
                sum += x[place::<EXCHANGED>(row, j, stride)] * weights[column];
            }
            *out += sum;
        }
    }
}

/// The sums of `COLUMNS` vectors from `column` on, `ROWS` rows at a time.
#[inline(always)]
fn add_columns<V: Vector, const EXCHANGED: bool, const ROWS: usize, const COLUMNS: usize>(
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
        let x = &x[place::<EXCHANGED>(row, 0, stride)..];
        add_tile::<V, EXCHANGED, ROWS, COLUMNS>(x, stride, weights, out, width, column);
        row += ROWS;
    }
    while row < num_rows {
        let out = &mut out[row * width + column..];
        let x = &x[place::<EXCHANGED>(row, 0, stride)..];
        add_tile::<V, EXCHANGED, 1, COLUMNS>(x, stride, weights, out, width, column);
        row += 1;
    }
}

#[inline(always)]
fn add_tile<V: Vector, const EXCHANGED: bool, const ROWS: usize, const COLUMNS: usize>(
    x: &[f32],
    stride: usize,
    weights: &[f32],
    out: &mut [f32],
    width: usize,
    column: usize,
) {
    let count = weights.len() / width;
    // Slices of one length, so that no element is checked in the loop.
    let rows: [&[f32]; ROWS] = std::array::from_fn(|row| match EXCHANGED {
        true => &[][..],
        false => &x[row * stride..][..count],
    });
    let mut sums = [[V::splat(0.0); COLUMNS]; ROWS];
    for (j, weights) in weights.chunks_exact(width).enumerate() {
        let (weights, _) = weights[column..column + COLUMNS * LANES].as_chunks::<LANES>();
        let weights: [V; COLUMNS] = std::array::from_fn(|index| V::load(&weights[index]));
        let factors: [f32; ROWS] = match EXCHANGED {
            true => x[j * stride..][..ROWS].try_into().expect("as many as rows"),
            false => std::array::from_fn(|row| rows[row][j]),
        };
        for row in 0..ROWS {
            let factor = V::splat(factors[row]);
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
