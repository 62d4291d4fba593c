//! Products with bf16 weights by `vdpbf16ps`: sixteen outputs by two inputs an instruction.
//!
//! Activations are rounded to bf16, as programs that run bf16 models do; products are exact, and
//! sums are f32. An element is summed over its pairs of inputs in order, whatever is beside it.

use std::arch::x86_64::*;
use std::ops::Range;

use super::prefetch::{DISTANCE, prefetch_line};
use crate::activations::Activations;
use crate::float_panel::{FloatPanel, FloatPanels, LineBF16};
use crate::panel::{LINE_BYTES, PANEL_ROWS};

/// Rows and panels whose sums are kept in registers together.
const TILE_ROWS: usize = 8;
const TILE_PANELS: usize = 2;
/// Lines of a pass: what tiles of rows read again of a few panels stays in the second cache.
const LINES_AT_ONCE: usize = 1024;

/// `out` is `[panels.len(), rows.len(), PANEL_ROWS]`.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn product(
    x: &Activations,
    weights: &FloatPanels,
    panels: Range<usize>,
    rows: Range<usize>,
    out: &mut [f32],
) {
    let num_pairs = x.in_features.div_ceil(2);
    let pairs = &x.pairs()[rows.start * num_pairs..rows.end * num_pairs];
    out.fill(0.0);
    let panel_len = rows.len() * PANEL_ROWS;
    let lines = |panel: usize| match weights.panel(panel) {
        FloatPanel::BF16(lines) => lines,
        _ => unreachable!("the caller looked"),
    };
    for (index, out) in out.chunks_mut(TILE_PANELS * panel_len).enumerate() {
        let first = panels.start + index * TILE_PANELS;
        let inputs = Inputs { pairs, num_pairs };
        match out.len() / panel_len {
            1 => panels_product(inputs, [lines(first)], out),
            _ => panels_product(inputs, [lines(first), lines(first + 1)], out),
        }
    }
}

/// Rows of pairs.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    /// `[rows, num_pairs]`
    pairs: &'a [[u16; 2]],
    num_pairs: usize,
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn panels_product<const PANELS: usize>(
    x: Inputs<'_>,
    panels: [&[LineBF16]; PANELS],
    out: &mut [f32],
) {
    assert!(
        panels.iter().all(|panel| panel.len() == x.num_pairs),
        "this is a bug"
    );
    let num_rows = x.pairs.len() / x.num_pairs;
    let (out, _) = out.as_chunks_mut::<PANEL_ROWS>();
    assert_eq!(out.len(), PANELS * num_rows, "this is a bug");
    for first in (0..x.num_pairs).step_by(LINES_AT_ONCE) {
        let count = LINES_AT_ONCE.min(x.num_pairs - first);
        for row in (0..num_rows).step_by(TILE_ROWS) {
            let tile = Tile {
                x: x.pairs[row * x.num_pairs + first..].as_ptr().cast(),
                stride: x.num_pairs,
                panels: panels.map(|panel| panel[first..].as_ptr().cast()),
                num_lines: count,
                out: out[row..].as_mut_ptr().cast(),
                out_stride: num_rows * PANEL_ROWS,
            };
            // SAFETY: the assertions above bound `count` pairs of the tile's rows and lines of its
            // panels, and its rows of `out`.
            unsafe {
                match num_rows - row {
                    1 => tile.add::<1>(),
                    2 => tile.add::<2>(),
                    3 => tile.add::<3>(),
                    4 => tile.add::<4>(),
                    5 => tile.add::<5>(),
                    6 => tile.add::<6>(),
                    7 => tile.add::<7>(),
                    _ => tile.add::<TILE_ROWS>(),
                }
            }
        }
    }
}

/// A few rows and panels, whose sums are in registers.
struct Tile<const PANELS: usize> {
    /// The first row's pairs.
    x: *const i32,
    /// From row to row.
    stride: usize,
    panels: [*const u8; PANELS],
    num_lines: usize,
    out: *mut f32,
    /// From panel to panel.
    out_stride: usize,
}

impl<const PANELS: usize> Tile<PANELS> {
    /// # Safety
    /// `x` has `num_lines` pairs of `ROWS` rows, each panel as many lines, and `out` `ROWS` rows of
    /// each panel.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn add<const ROWS: usize>(&self) {
        // SAFETY: the caller's promise bounds every access; a prefetch reads nothing.
        unsafe {
            let place =
                |row: usize, panel: usize| self.out.add(panel * self.out_stride + row * PANEL_ROWS);
            let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
            for (row, sums) in sums.iter_mut().enumerate() {
                for (panel, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(place(row, panel));
                }
            }
            let x: [*const i32; ROWS] = std::array::from_fn(|row| self.x.add(row * self.stride));
            for line in 0..self.num_lines {
                let mut weights = [bf16s(_mm512_setzero_si512()); PANELS];
                for (weights, panel) in weights.iter_mut().zip(self.panels) {
                    let at = panel.add(line * LINE_BYTES);
                    prefetch_line(at.wrapping_add(DISTANCE));
                    *weights = bf16s(_mm512_loadu_si512(at.cast()));
                }
                for (sums, x) in sums.iter_mut().zip(x) {
                    let pair = bf16s(_mm512_set1_epi32(x.add(line).read_unaligned()));
                    for (sum, weights) in sums.iter_mut().zip(weights) {
                        *sum = _mm512_dpbf16_ps(*sum, weights, pair);
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (panel, sum) in sums.iter().enumerate() {
                    _mm512_storeu_ps(place(row, panel), *sum);
                }
            }
        }
    }
}

#[inline(always)]
pub(super) fn bf16s(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, and any bits are bf16 values.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}
