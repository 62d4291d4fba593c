//! The softmax's sum over tiles of logits.

use super::vector::{Vector, exp};
use crate::float_panel::LineF32;

/// The sum of `exp(logit - shift)` of the logits seen so far; `shift` is the largest of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RunningSum {
    pub shift: f32,
    pub sum: f32,
}

impl RunningSum {
    pub(crate) const EMPTY: Self = Self {
        shift: f32::NEG_INFINITY,
        sum: 0.0,
    };
}

/// See [`super::weigh_tile`].
#[inline(always)]
pub(super) fn weigh_tile<V: Vector>(
    tile: &[LineF32],
    sums: &mut [RunningSum],
    largest: &mut [f32],
) {
    let num_rows = sums.len();
    for (row, (running, largest)) in sums.iter_mut().zip(largest).enumerate() {
        let places = (row..tile.len()).step_by(num_rows);
        let mut top = V::splat(f32::NEG_INFINITY);
        for place in places.clone() {
            top = top.max(V::load(&tile[place]));
        }
        *largest = top.largest();
        let shift = running.shift.max(*largest);
        if shift == f32::NEG_INFINITY {
            continue;
        }
        let mut sum = V::splat(0.0);
        for place in places {
            let weight = exp(V::load(&tile[place]).sub(V::splat(shift)));
            sum = sum.add_product(weight, V::splat(1.0));
        }
        if shift > running.shift {
            running.sum *= (running.shift - shift).exp();
            running.shift = shift;
        }
        running.sum += sum.sum();
    }
}
