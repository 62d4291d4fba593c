//! Products with float weights by fused multiply-add: weights are widened to f32, activations stay
//! f32.
//!
//! An element is summed over its inputs in order, whatever rows and panels are beside it: sums that
//! wait in `out` while other tiles pass by have the bits that they had in a register.

use std::ops::Range;

use super::prefetch::{DISTANCE, prefetch_line};
use super::vector::LANES;
use super::widen::Widen;
use crate::activations::Activations;
use crate::float_panel::{FloatPanel, FloatPanels, LineBF16, LineF16, LineF32};
use crate::panel::PANEL_ROWS;

/// Inputs of a pass: what tiles of rows read again of a panel stays in the second cache.
const INPUTS_AT_ONCE: usize = 1024;

/// A line of weights in registers.
trait Line {
    /// Inputs of a line.
    const INPUTS: usize;

    /// Input `input` of sixteen rows.
    fn widen<V: Widen>(&self, input: usize) -> V;
}

impl Line for LineF32 {
    const INPUTS: usize = 1;

    #[inline(always)]
    fn widen<V: Widen>(&self, _: usize) -> V {
        V::load(self)
    }
}

impl Line for LineF16 {
    const INPUTS: usize = 1;

    #[inline(always)]
    fn widen<V: Widen>(&self, _: usize) -> V {
        V::load_f16(self)
    }
}

impl Line for LineBF16 {
    const INPUTS: usize = 2;

    #[inline(always)]
    fn widen<V: Widen>(&self, input: usize) -> V {
        V::load_bf16_pairs(self, input)
    }
}

/// The product of some rows with panels of float weights; `out` is
/// `[panels.len(), rows.len(), PANEL_ROWS]`.
#[inline(always)]
pub(super) fn float_product<V: Widen>(
    x: &Activations,
    weights: &FloatPanels,
    panels: Range<usize>,
    rows: Range<usize>,
    out: &mut [f32],
) {
    let inputs = &x.values[rows.start * x.in_features..rows.end * x.in_features];
    out.fill(0.0);
    let panel_len = rows.len() * PANEL_ROWS;
    let mut panel = panels.start;
    while panel < panels.end {
        let is_pair = V::TILE_PANELS == 2 && panel + 2 <= panels.end;
        let count = if is_pair { 2 } else { 1 };
        let out = &mut out[(panel - panels.start) * panel_len..][..count * panel_len];
        let second = if is_pair { panel + 1 } else { panel };
        match (weights.panel(panel), weights.panel(second)) {
            (FloatPanel::F32(first), FloatPanel::F32(second)) => {
                panels_product::<V, _>(inputs, x.in_features, [first, second], is_pair, out);
            }
            (FloatPanel::F16(first), FloatPanel::F16(second)) => {
                panels_product::<V, _>(inputs, x.in_features, [first, second], is_pair, out);
            }
            (FloatPanel::BF16(first), FloatPanel::BF16(second)) => {
                panels_product::<V, _>(inputs, x.in_features, [first, second], is_pair, out);
            }
            _ => unreachable!("panels of one matrix have one type"),
        }
        panel += count;
    }
}

#[inline(always)]
fn panels_product<V: Widen, L: Line>(
    x: &[f32],
    in_features: usize,
    panels: [&[L]; 2],
    is_pair: bool,
    out: &mut [f32],
) {
    for start in (0..in_features).step_by(INPUTS_AT_ONCE) {
        let inputs = start..(start + INPUTS_AT_ONCE).min(in_features);
        if is_pair {
            tiles::<V, L, 2>(x, in_features, panels, inputs, out);
        } else {
            tiles::<V, L, 1>(x, in_features, [panels[0]], inputs, out);
        }
    }
}

/// Adds some inputs' products to all rows.
#[inline(always)]
fn tiles<V: Widen, L: Line, const PANELS: usize>(
    x: &[f32],
    in_features: usize,
    panels: [&[L]; PANELS],
    inputs: Range<usize>,
    out: &mut [f32],
) {
    let num_rows = x.len() / in_features;
    let lines = inputs.start / L::INPUTS..inputs.end.div_ceil(L::INPUTS);
    let panels = panels.map(|panel| &panel[lines.clone()]);
    let (out, _) = out.as_chunks_mut::<PANEL_ROWS>();
    let mut row = 0;
    while row < num_rows {
        let count = V::TILE_ROWS.min(num_rows - row);
        let tile = Tile {
            x: &x[row * in_features + inputs.start..],
            stride: in_features,
            num_inputs: inputs.len(),
            panels,
        };
        let out = &mut out[row..];
        match count {
            8 => tile.add::<V, 8>(out, num_rows),
            7 => tile.add::<V, 7>(out, num_rows),
            6 => tile.add::<V, 6>(out, num_rows),
            5 => tile.add::<V, 5>(out, num_rows),
            4 => tile.add::<V, 4>(out, num_rows),
            3 => tile.add::<V, 3>(out, num_rows),
            2 => tile.add::<V, 2>(out, num_rows),
            _ => tile.add::<V, 1>(out, num_rows),
        }
        row += count;
    }
}

/// A few rows and panels, whose sums are in registers.
struct Tile<'a, L, const PANELS: usize> {
    /// From the first input of the first row on.
    x: &'a [f32],
    /// From row to row.
    stride: usize,
    num_inputs: usize,
    /// Lines of the inputs.
    panels: [&'a [L]; PANELS],
}

impl<L: Line, const PANELS: usize> Tile<'_, L, PANELS> {
    /// `out` has a panel's row after the other, the next panel `panel_stride` rows further on.
    #[inline(always)]
    fn add<V: Widen, const ROWS: usize>(&self, out: &mut [[f32; LANES]], panel_stride: usize) {
        let lines = self.num_inputs.div_ceil(L::INPUTS);
        let has_lines = |panel: &&[L]| panel.len() >= lines;
        assert!(self.panels.iter().all(has_lines), "this is a bug");
        let x: [&[f32]; ROWS] =
            std::array::from_fn(|row| &self.x[row * self.stride..][..self.num_inputs]);
        let mut sums: [[V; PANELS]; ROWS] = std::array::from_fn(|row| {
            std::array::from_fn(|panel| V::load(&out[panel * panel_stride + row]))
        });
        let num_lines = self.num_inputs / L::INPUTS;
        for line in 0..num_lines {
            for input in 0..L::INPUTS {
                // SAFETY: the line is whole.
                unsafe { self.add_input(&x, &mut sums, line, input) };
            }
        }
        if !self.num_inputs.is_multiple_of(L::INPUTS) {
            // SAFETY: the last line has one input.
            unsafe { self.add_input(&x, &mut sums, num_lines, 0) };
        }
        for (row, sums) in sums.iter().enumerate() {
            for (panel, sum) in sums.iter().enumerate() {
                sum.store(&mut out[panel * panel_stride + row]);
            }
        }
    }

    /// # Safety
    /// `line * L::INPUTS + input` is below `num_inputs`, the length of each of `x`.
    #[inline(always)]
    unsafe fn add_input<V: Widen, const ROWS: usize>(
        &self,
        x: &[&[f32]; ROWS],
        sums: &mut [[V; PANELS]; ROWS],
        line: usize,
        input: usize,
    ) {
        let at = line * L::INPUTS + input;
        debug_assert!(at < self.num_inputs);
        let weights: [V; PANELS] = std::array::from_fn(|panel| {
            // SAFETY: a panel has the lines of all inputs.
            let line = unsafe { self.panels[panel].get_unchecked(line) };
            prefetch_line(std::ptr::from_ref(line).cast::<u8>().wrapping_add(DISTANCE));
            line.widen(input)
        });
        for (sums, x) in sums.iter_mut().zip(x) {
            // SAFETY: the caller's promise.
            let factor = V::splat(unsafe { *x.get_unchecked(at) });
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = sum.add_product(factor, weights);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::pool::ThreadPool;
    use crate::{Activations, DType, PackedMatrix, cpu, reference};

    /// Processors with AVX-512 and without its bf16 products widen bf16 weights, as others do.
    #[test]
    fn bf16_weights_meet_f32_activations_on_every_instruction_set() {
        let pool = ThreadPool::new(1);
        let (out_features, in_features, num_rows) = (40, 131, 11);
        let value = |i: usize| ((i * 7919) % 1021) as f32 / 510.0 - 1.0;
        let halves = (0..out_features * in_features).map(|i| half::bf16::from_f32(value(i)));
        let halves: Vec<half::bf16> = halves.collect();
        let bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
        let weights: Vec<f32> = halves.iter().map(|half| half.to_f32()).collect();
        let packed = PackedMatrix::pack(&pool, DType::BF16, &bytes, out_features, in_features);
        let packed = packed.unwrap();
        let x: Vec<f32> = (0..num_rows * in_features)
            .map(|i| value(3 * i + 1))
            .collect();
        let mut input = Activations::with_capacity(num_rows, in_features, true);
        input.load(&pool, &x, num_rows, in_features);
        let mut expected = vec![0.0; num_rows * out_features];
        reference::matmul(&x, &weights, in_features, &mut expected);
        let mut tiles = vec![f32::NAN; 3 * num_rows * 16];
        cpu::float_product(
            &input,
            packed.floats().unwrap(),
            0..3,
            0..num_rows,
            &mut tiles,
        );
        for (index, expected) in expected.iter().enumerate() {
            let (row, output) = (index / out_features, index % out_features);
            let actual = tiles[((output / 16) * num_rows + row) * 16 + output % 16];
            assert!(
                (actual - expected).abs() < 3e-5,
                "{actual} is not {expected}"
            );
        }
    }
}
