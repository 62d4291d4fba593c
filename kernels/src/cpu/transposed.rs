//! Tiles of products with transposed weights: `sums[row] += x[row] · lines`.
//!
//! An element is summed over its lines in order, whatever rows are beside it.

use super::widen::Widen;
use crate::float_panel::LineF32;

/// Most rows of a call: whole tiles of every instruction set.
pub(crate) const TRANSPOSED_ROWS: usize = 24;

/// A row's sums, sixteen a strip.
pub(crate) type StripSums = [LineF32; 2];

/// See [`super::add_transposed`].
#[inline(always)]
pub(super) fn add_transposed<V: Widen>(
    x: &[&[f32]],
    lines: [&[LineF32]; 2],
    sums: &mut [StripSums],
) {
    for (x, sums) in x.chunks(V::TILE_ROWS).zip(sums.chunks_mut(V::TILE_ROWS)) {
        if V::TILE_PANELS == 2 {
            add_rows::<V, 2>(x, lines, sums, 0);
        } else {
            add_rows::<V, 1>(x, [lines[0]], sums, 0);
            add_rows::<V, 1>(x, [lines[1]], sums, 1);
        }
    }
}

#[inline(always)]
fn add_rows<V: Widen, const STRIPS: usize>(
    x: &[&[f32]],
    lines: [&[LineF32]; STRIPS],
    sums: &mut [StripSums],
    first: usize,
) {
    match x.len() {
        8 => add_tile::<V, 8, STRIPS>(x, lines, sums, first),
        6 => add_tile::<V, 6, STRIPS>(x, lines, sums, first),
        4 => add_tile::<V, 4, STRIPS>(x, lines, sums, first),
        _ => {
            for (x, sums) in x.chunks(1).zip(sums.chunks_mut(1)) {
                add_tile::<V, 1, STRIPS>(x, lines, sums, first);
            }
        }
    }
}

#[inline(always)]
fn add_tile<V: Widen, const ROWS: usize, const STRIPS: usize>(
    x: &[&[f32]],
    lines: [&[LineF32]; STRIPS],
    out: &mut [StripSums],
    first: usize,
) {
    let count = lines[0].len();
    // Slices of one length, so that no element is checked in the loop.
    let lines = lines.map(|lines| &lines[..count]);
    let x: [&[f32]; ROWS] = std::array::from_fn(|row| &x[row][..count]);
    let mut sums: [[V; STRIPS]; ROWS] =
        std::array::from_fn(|row| std::array::from_fn(|strip| V::load(&out[row][first + strip])));
    for j in 0..count {
        let weights: [V; STRIPS] = std::array::from_fn(|strip| V::load(&lines[strip][j]));
        for row in 0..ROWS {
            let factor = V::splat(x[row][j]);
            for strip in 0..STRIPS {
                sums[row][strip] = sums[row][strip].add_product(factor, weights[strip]);
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        for (strip, sum) in sums.into_iter().enumerate() {
            sum.store(&mut out[first + strip]);
        }
    }
}
