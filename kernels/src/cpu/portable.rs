//! The quantised product in plain Rust.

use std::ops::Range;

use crate::activations::{Activations, half_sums};
use crate::panel::{BLOCK_INPUTS, PANEL_ROWS, Panel, Scales};

pub(super) fn panel_product(
    x: &Activations,
    panel: Panel<'_>,
    rows: Range<usize>,
    out: &mut [f32],
) {
    out.fill(0.0);
    let blocks = panel.blocks;
    for index in 0..blocks {
        for lane in 0..PANEL_ROWS {
            let weights = panel.row(index, lane);
            let outs = out.iter_mut().skip(lane).step_by(PANEL_ROWS);
            for (row, sum) in rows.clone().zip(outs) {
                let at = row * x.in_features + index * BLOCK_INPUTS;
                let inputs = &x.codes()[at..at + BLOCK_INPUTS];
                let info = &x.infos[row * blocks + index];
                let dot = |range: Range<usize>, zero: i32| -> i32 {
                    let products =
                        range.map(|i| (i32::from(weights.codes[i]) - zero) * i32::from(inputs[i]));
                    products.sum()
                };
                let [first, second] = weights.subs;
                match panel.format.scales {
                    Scales::Half { zero } => {
                        *sum += dot(0..BLOCK_INPUTS, zero) as f32 * (first.scale * info.scale);
                    }
                    Scales::HalfOffset | Scales::Super => {
                        *sum += dot(0..BLOCK_INPUTS, 0) as f32 * (first.scale * info.scale);
                        *sum += first.offset * info.scaled_sum;
                    }
                    Scales::SuperHalves { zero } => {
                        *sum += dot(0..16, zero) as f32 * (first.scale * info.scale);
                        *sum += dot(16..32, zero) as f32 * (second.scale * info.scale);
                    }
                    Scales::SuperHalvesOffset => {
                        let sums = half_sums(&x.corrections[row * blocks + index]);
                        let parts = [(0..16, first, sums[0]), (16..32, second, sums[1])];
                        for (range, sub, input_sum) in parts {
                            *sum += dot(range, 0) as f32 * (sub.scale * info.scale);
                            *sum += sub.offset * (input_sum as f32 * info.scale);
                        }
                    }
                    Scales::SuperSigned | Scales::Exponent => {
                        *sum += dot(0..BLOCK_INPUTS, 0) as f32 * (first.scale * info.scale);
                    }
                }
            }
        }
    }
}
