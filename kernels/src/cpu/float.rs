//! Products with float weights: rows are widened to f32 a piece at a time.

use std::ops::Range;

use super::vector::{LANES, Vector};
use super::widen_halves;
use crate::activations::Activations;
use crate::matrix::{PackedMatrix, Storage};
use crate::panel::PANEL_ROWS;

/// Activation rows that share a widened piece.
const TILE_ROWS: usize = 4;
/// Float weights widened to f32 at a time.
const WIDEN_CHUNK: usize = 256;

/// `out` is `[rows.len(), PANEL_ROWS]`.
#[inline(always)]
pub(super) fn float_product<V: Vector>(
    x: &Activations,
    weights: &PackedMatrix,
    panel: usize,
    rows: Range<usize>,
    out: &mut [f32],
) {
    let (out, _) = out.as_chunks_mut::<PANEL_ROWS>();
    let mut row = rows.start;
    while row + TILE_ROWS <= rows.end {
        let out = &mut out[row - rows.start..][..TILE_ROWS];
        float_tile::<V, TILE_ROWS>(x, weights, panel, row, out);
        row += TILE_ROWS;
    }
    while row < rows.end {
        float_tile::<V, 1>(x, weights, panel, row, &mut out[row - rows.start..][..1]);
        row += 1;
    }
}

#[inline(always)]
#[allow(clippy::needless_range_loop)] // `lane` numbers a weight row and a column of `out`.
fn float_tile<V: Vector, const ROWS: usize>(
    x: &Activations,
    weights: &PackedMatrix,
    panel: usize,
    first_row: usize,
    out: &mut [[f32; PANEL_ROWS]],
) {
    let k = x.in_features;
    let lanes = PANEL_ROWS.min(weights.out_features() - panel * PANEL_ROWS);
    let mut buffer = [0.0_f32; WIDEN_CHUNK];
    for lane in 0..lanes {
        let weight_row = (panel * PANEL_ROWS + lane) * k;
        let mut sums = [V::splat(0.0); ROWS];
        let mut tails = [0.0_f32; ROWS];
        for start in (0..k).step_by(WIDEN_CHUNK) {
            let len = WIDEN_CHUNK.min(k - start);
            let range = weight_row + start..weight_row + start + len;
            let chunk: &[f32] = match &weights.storage {
                Storage::F32(values) => &values[range],
                Storage::F16(values) => {
                    widen_halves(&values[range], &mut buffer[..len]);
                    &buffer[..len]
                }
                Storage::BF16(values) => {
                    for (wide, bits) in buffer.iter_mut().zip(&values[range]) {
                        *wide = f32::from_bits(u32::from(*bits) << 16);
                    }
                    &buffer[..len]
                }
                Storage::Panels { .. } => unreachable!("quantised panels have their own kernel"),
            };
            let (groups, rest) = chunk.as_chunks::<LANES>();
            for r in 0..ROWS {
                let inputs = &x.values[(first_row + r) * k + start..][..len];
                let (input_groups, input_rest) = inputs.as_chunks::<LANES>();
                for (group, inputs) in groups.iter().zip(input_groups) {
                    sums[r] = sums[r].add_product(V::load(group), V::load(inputs));
                }
                for (weight, input) in rest.iter().zip(input_rest) {
                    tails[r] += weight * input;
                }
            }
        }
        for r in 0..ROWS {
            out[r][lane] = sums[r].sum() + tails[r];
        }
    }
}
