//! Products of many rows with f32 matrices, and the passes of an encoder's layer around them.
//!
//! Nothing is quantised here: an encoder's vectors are compared with those of other programs. Work
//! is split by rows, and a row's sums run over its inputs in order, whatever rows are beside it.

use std::cell::RefCell;

use crate::cost::{self, Nanoseconds};
use crate::cpu;
use crate::partition::{SharedSlice, for_each};
use crate::pool::ThreadPool;

/// Outputs that are summed side by side: two vectors.
const STRIP: usize = 32;
/// Most rows that share one pass over a matrix: their hidden values stay in the second cache.
const BLOCK_ROWS_MAX: usize = 64;
/// Rows whose sums are kept in registers together.
const BLOCK_ROWS_MIN: usize = 8;
/// A multiply-add of packed f32 weights.
const DENSE_MAC: f64 = 0.02;

/// A matrix of f32 weights with its bias, in strips of [`STRIP`] outputs.
pub struct DenseMatrix {
    in_features: usize,
    out_features: usize,
    /// `[strips, in_features, STRIP]`, zeros behind the last output.
    strips: Vec<f32>,
    /// `[strips, STRIP]`
    bias: Vec<f32>,
}

/// Subtracts a row's mean, divides by the row's deviation, then scales and shifts.
pub struct LayerNorm {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    pub eps: f32,
}

/// What is between two products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// The exact form, by the error function.
    Gelu,
    GeluTanh,
    Relu,
}

/// A thread's buffers.
#[derive(Default)]
struct Scratch {
    /// `[rows, STRIP]`
    tile: Vec<f32>,
    /// `[rows, up's outputs]`
    hidden: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl DenseMatrix {
    /// Packs `[out_features, in_features]` weights.
    ///
    /// # Panics
    /// When lengths do not fit.
    pub fn pack(weights: &[f32], bias: &[f32], in_features: usize) -> Self {
        let out_features = bias.len();
        assert_eq!(weights.len(), out_features * in_features, "[out, in]");
        let num_strips = out_features.div_ceil(STRIP);
        let mut strips = vec![0.0; num_strips * in_features * STRIP];
        for (output, row) in weights.chunks_exact(in_features.max(1)).enumerate() {
            let strip = &mut strips[output / STRIP * in_features * STRIP..];
            for (input, weight) in row.iter().enumerate() {
                strip[input * STRIP + output % STRIP] = *weight;
            }
        }
        let mut padded = bias.to_vec();
        padded.resize(num_strips * STRIP, 0.0);
        Self {
            in_features,
            out_features,
            strips,
            bias: padded,
        }
    }

    pub fn in_features(&self) -> usize {
        self.in_features
    }

    pub fn out_features(&self) -> usize {
        self.out_features
    }

    fn work(&self, num_rows: usize) -> Nanoseconds {
        let macs = num_rows * self.in_features * self.out_features;
        Nanoseconds(macs as f64 * DENSE_MAC)
    }

    /// Products of whole rows, a strip of outputs after the other; `take` gets the first output and
    /// `[rows, STRIP]` values.
    fn for_strips(&self, x: &[f32], tile: &mut Vec<f32>, mut take: impl FnMut(usize, &mut [f32])) {
        let num_rows = x.len() / self.in_features;
        let len = self.in_features * STRIP;
        for (index, strip) in self.strips.chunks_exact(len).enumerate() {
            let bias = &self.bias[index * STRIP..][..STRIP];
            tile.clear();
            (0..num_rows).for_each(|_| tile.extend_from_slice(bias));
            cpu::add_outer(x, self.in_features, strip, tile, STRIP);
            take(index * STRIP, tile);
        }
    }

    /// Writes the products of whole rows to `out`, `[rows, out_features]`.
    fn run(&self, x: &[f32], tile: &mut Vec<f32>, activation: Option<Activation>, out: &mut [f32]) {
        let width = self.out_features;
        self.for_strips(x, tile, |first, values| {
            if let Some(activation) = activation {
                activation.apply(values);
            }
            let len = STRIP.min(width - first);
            let rows = out.chunks_exact_mut(width);
            for (out, values) in rows.zip(values.chunks_exact(STRIP)) {
                out[first..first + len].copy_from_slice(&values[..len]);
            }
        });
    }

    /// Adds the products of whole rows to `out`.
    fn add(&self, x: &[f32], tile: &mut Vec<f32>, out: &mut [f32]) {
        let width = self.out_features;
        self.for_strips(x, tile, |first, values| {
            let len = STRIP.min(width - first);
            let rows = out.chunks_exact_mut(width);
            for (out, values) in rows.zip(values.chunks_exact(STRIP)) {
                cpu::add_assign(&mut out[first..first + len], &values[..len]);
            }
        });
    }
}

impl LayerNorm {
    fn apply(&self, rows: &mut [f32]) {
        for row in rows.chunks_exact_mut(self.weight.len()) {
            cpu::layer_norm_row(row, &self.weight, &self.bias, self.eps);
        }
    }
}

impl Activation {
    fn apply(self, x: &mut [f32]) {
        match self {
            Activation::Gelu => cpu::gelu(x),
            Activation::GeluTanh => cpu::gelu_tanh(x),
            Activation::Relu => x.iter_mut().for_each(|x| *x = x.max(0.0)),
        }
    }
}

/// Calls `body(first_row, num_rows)` for blocks of rows, on as many threads as they are worth.
fn for_blocks(
    pool: &ThreadPool,
    work: Nanoseconds,
    num_rows: usize,
    body: impl Fn(usize, usize) + Sync,
) {
    let num_threads = pool.team().threads_for(work, num_rows);
    let at_once = num_rows
        .div_ceil(num_threads.max(1))
        .next_multiple_of(BLOCK_ROWS_MIN)
        .clamp(BLOCK_ROWS_MIN, BLOCK_ROWS_MAX);
    for_each(pool, work, num_rows.div_ceil(at_once), |block| {
        let first = block * at_once;
        body(first, at_once.min(num_rows - first));
    });
}

/// `norm` of each row, in place.
///
/// # Panics
/// When lengths do not fit.
pub fn layer_norm(pool: &ThreadPool, norm: &LayerNorm, x: &mut [f32]) {
    let width = norm.weight.len();
    let num_rows = num_rows(x, width);
    let shared = SharedSlice::new(x);
    for_blocks(
        pool,
        cost::values(num_rows * width),
        num_rows,
        |first, count| {
            // SAFETY: each row is in one block.
            norm.apply(unsafe { shared.slice_mut(first * width, count * width) });
        },
    );
}

/// `out = x · weights + bias`
///
/// # Panics
/// When lengths do not fit.
pub fn dense(pool: &ThreadPool, x: &[f32], weights: &DenseMatrix, out: &mut [f32]) {
    let (width, out_width) = (weights.in_features, weights.out_features);
    let num_rows = num_rows(x, width);
    assert_eq!(out.len(), num_rows * out_width, "out is [rows, out]");
    let out = SharedSlice::new(out);
    for_blocks(pool, weights.work(num_rows), num_rows, |first, count| {
        // SAFETY: each row is in one block.
        let out = unsafe { out.slice_mut(first * out_width, count * out_width) };
        SCRATCH.with_borrow_mut(|scratch| {
            let x = &x[first * width..][..count * width];
            weights.run(x, &mut scratch.tile, None, out);
        });
    });
}

/// `residual = norm(residual + x · weights + bias)`
///
/// # Panics
/// When lengths do not fit.
pub fn dense_add_norm(
    pool: &ThreadPool,
    x: &[f32],
    weights: &DenseMatrix,
    norm: &LayerNorm,
    residual: &mut [f32],
) {
    let (width, out_width) = (weights.in_features, weights.out_features);
    let num_rows = num_rows(x, width);
    assert_eq!(residual.len(), num_rows * out_width, "[rows, out]");
    assert_eq!(norm.weight.len(), out_width, "one weight per output");
    let residual = SharedSlice::new(residual);
    for_blocks(pool, weights.work(num_rows), num_rows, |first, count| {
        // SAFETY: each row is in one block.
        let residual = unsafe { residual.slice_mut(first * out_width, count * out_width) };
        SCRATCH.with_borrow_mut(|scratch| {
            let x = &x[first * width..][..count * width];
            weights.add(x, &mut scratch.tile, residual);
        });
        norm.apply(residual);
    });
}

/// Two products with an activation between them.
pub struct FeedForward {
    pub up: DenseMatrix,
    pub activation: Activation,
    pub down: DenseMatrix,
}

/// `x = norm(x + down(activation(up(x))))`
///
/// # Panics
/// When lengths do not fit.
pub fn feed_forward(pool: &ThreadPool, weights: &FeedForward, norm: &LayerNorm, x: &mut [f32]) {
    let FeedForward {
        up,
        activation,
        down,
    } = weights;
    let width = up.in_features;
    let num_rows = num_rows(x, width);
    assert_eq!(down.in_features, up.out_features, "inner sizes differ");
    assert_eq!(down.out_features, width, "the result is shaped as x");
    let work = Nanoseconds(up.work(num_rows).0 + down.work(num_rows).0);
    let x = SharedSlice::new(x);
    for_blocks(pool, work, num_rows, |first, count| {
        // SAFETY: each row is in one block.
        let x = unsafe { x.slice_mut(first * width, count * width) };
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { tile, hidden } = scratch;
            hidden.resize(count * up.out_features, 0.0);
            up.run(x, tile, Some(*activation), hidden);
            down.add(hidden, tile, x);
        });
        norm.apply(x);
    });
}

fn num_rows(x: &[f32], width: usize) -> usize {
    assert!(width > 0 && x.len().is_multiple_of(width), "whole rows");
    x.len() / width
}
