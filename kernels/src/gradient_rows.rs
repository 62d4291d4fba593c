//! The left-hand side of products with transposed weights: rows of gradients as those read them.

use crate::cpu;
use crate::matrix::PackedMatrix;
use crate::panel::PANEL_ROWS;
use crate::partition::{SharedSlice, for_rows};
use crate::pool::ThreadPool;

/// Rows of gradients by the outputs of some matrices side by side; each matrix's columns are filled
/// up to whole panels with zeros. Reused between calls: buffers only grow.
///
/// Where all matrices are quantised and the machine multiplies bf16, rows are rounded to bf16: by
/// less than the forward pass rounds what it multiplies with such weights.
#[derive(Debug, Default)]
pub struct GradientRows {
    num_rows: usize,
    /// Columns of a row.
    width: usize,
    is_bf16: bool,
    /// `[num_rows, width]`, or as bf16.
    values: Vec<f32>,
    halves: Vec<u16>,
}

impl GradientRows {
    /// Takes rows of `widths[i]` values from `x[i]`, for `weights[i]`.
    pub(crate) fn load<const N: usize>(
        &mut self,
        pool: &ThreadPool,
        x: [&[f32]; N],
        weights: [&PackedMatrix; N],
        widths: [usize; N],
    ) {
        self.num_rows = x[0].len() / widths[0];
        self.width = widths.iter().map(|width| padded(*width)).sum();
        self.is_bf16 =
            cpu::can_multiply_bf16() && weights.iter().all(|weights| weights.is_quantised());
        for (x, width) in x.iter().zip(widths) {
            assert_eq!(x.len(), self.num_rows * width, "one gradient an output");
        }
        let len = self.num_rows * self.width;
        match self.is_bf16 {
            true => self.halves.resize(len, 0),
            false => self.values.resize(len, 0.0),
        }
        let (values, halves) = (
            SharedSlice::new(&mut self.values),
            SharedSlice::new(&mut self.halves),
        );
        let (width, is_bf16) = (self.width, self.is_bf16);
        for_rows(pool, self.num_rows, width / 4, |row| {
            let mut at = row * width;
            for (x, count) in x.iter().zip(widths) {
                let x = &x[row * count..][..count];
                // SAFETY: each row is taken once.
                unsafe {
                    if is_bf16 {
                        let out = halves.slice_mut(at, padded(count));
                        cpu::round_to_bf16(x, &mut out[..count]);
                        out[count..].fill(0);
                    } else {
                        let out = values.slice_mut(at, padded(count));
                        out[..count].copy_from_slice(x);
                        out[count..].fill(0.0);
                    }
                }
                at += padded(count);
            }
        });
    }

    pub(crate) fn num_rows(&self) -> usize {
        self.num_rows
    }

    pub(crate) fn is_bf16(&self) -> bool {
        self.is_bf16
    }

    pub(crate) fn values(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..][..self.width]
    }

    /// Columns two by two.
    pub(crate) fn pairs(&self, row: usize) -> &[[u16; 2]] {
        self.halves[row * self.width..][..self.width].as_chunks().0
    }
}

/// Columns that a matrix of `width` outputs has.
pub(crate) fn padded(width: usize) -> usize {
    width.next_multiple_of(PANEL_ROWS)
}
