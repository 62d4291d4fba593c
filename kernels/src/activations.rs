//! The left-hand side of a product: rows of f32, quantised once and shared by every matrix that reads
//! them.

use crate::cpu;
use crate::matrix::BLOCK_INPUTS;
use crate::partition::{Chunks, SharedSlice};
use crate::pool::ThreadPool;

/// Rows quantised to int8 in blocks of 32 inputs, with what the kernels need beside the codes.
/// Reused between calls: buffers only grow.
#[derive(Debug, Default)]
pub struct Activations {
    pub(crate) num_rows: usize,
    pub(crate) in_features: usize,
    /// `[num_rows, in_features]`
    pub(crate) values: Vec<f32>,
    /// `[num_rows, in_features]`, in -127..=127.
    pub(crate) codes: Vec<i8>,
    /// `[num_rows, in_features / 32]`: value = scale * code.
    pub(crate) scales: Vec<f32>,
    /// `[num_rows, in_features / 32]`: scale times the sum of the block's codes.
    pub(crate) sums: Vec<f32>,
    /// `[num_rows, in_features / 16]`: sums of codes.
    pub(crate) half_sums: Vec<i32>,
}

/// One row's share of the buffers.
pub(crate) struct QuantisedRow<'a> {
    pub codes: &'a mut [i8],
    pub scales: &'a mut [f32],
    pub sums: &'a mut [f32],
    pub half_sums: &'a mut [i32],
}

impl Activations {
    /// Buffers for up to `max_rows` rows of up to `max_in_features` values.
    pub fn with_capacity(max_rows: usize, max_in_features: usize) -> Self {
        let mut activations = Self::default();
        activations.resize(max_rows, max_in_features);
        activations
    }

    fn resize(&mut self, num_rows: usize, in_features: usize) {
        self.num_rows = num_rows;
        self.in_features = in_features;
        let count = num_rows * in_features;
        if self.values.len() < count {
            self.values.resize(count, 0.0);
            self.codes.resize(count, 0);
        }
        let blocks = num_rows * in_features.div_ceil(BLOCK_INPUTS);
        if self.scales.len() < blocks {
            self.scales.resize(blocks, 0.0);
            self.sums.resize(blocks, 0.0);
            self.half_sums.resize(2 * blocks, 0);
        }
    }

    /// Takes `x` (`[num_rows, in_features]`) and quantises it when its rows are whole blocks.
    ///
    /// # Panics
    /// When `x` has another length.
    pub fn load(&mut self, pool: &ThreadPool, x: &[f32], num_rows: usize, in_features: usize) {
        assert_eq!(
            x.len(),
            num_rows * in_features,
            "x is [num_rows, in_features]"
        );
        self.resize(num_rows, in_features);
        self.values[..x.len()].copy_from_slice(x);
        if !in_features.is_multiple_of(BLOCK_INPUTS) {
            return;
        }
        let blocks = in_features / BLOCK_INPUTS;
        let codes = SharedSlice::new(&mut self.codes);
        let scales = SharedSlice::new(&mut self.scales);
        let sums = SharedSlice::new(&mut self.sums);
        let half_sums = SharedSlice::new(&mut self.half_sums);
        let quantise = |row: usize| {
            // SAFETY: each row is quantised once, and rows do not overlap.
            let target = unsafe {
                QuantisedRow {
                    codes: codes.slice_mut(row * in_features, in_features),
                    scales: scales.slice_mut(row * blocks, blocks),
                    sums: sums.slice_mut(row * blocks, blocks),
                    half_sums: half_sums.slice_mut(2 * row * blocks, 2 * blocks),
                }
            };
            cpu::quantise_row(&x[row * in_features..][..in_features], target);
        };
        // A handful of rows is cheaper than waking the other threads.
        if num_rows < 4 {
            (0..num_rows).for_each(quantise);
            return;
        }
        let chunks = Chunks::new(num_rows);
        pool.run(&|_, _| {
            while let Some(row) = chunks.take() {
                quantise(row);
            }
        });
    }

    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    pub fn in_features(&self) -> usize {
        self.in_features
    }
}
