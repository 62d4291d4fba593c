//! What adapters add to the products of the rows that use them.

use ponder_kernels::{Activations, Product, ThreadPool, matmul, matmul_many};

use super::super::{AdaptedInput, LowRankFactors};
use super::{CpuOps, CpuRows};

pub(super) struct Buffers {
    input: Activations,
    /// `[group's rows, in_features]`
    gathered: Vec<f32>,
    low: Vec<f32>,
    low_activations: Activations,
    delta: Vec<f32>,
}

impl Default for Buffers {
    fn default() -> Self {
        // Float matrices read values.
        let floats = || Activations::with_capacity(0, 0, true);
        Self {
            input: floats(),
            gathered: Vec::new(),
            low: Vec::new(),
            low_activations: floats(),
            delta: Vec::new(),
        }
    }
}

impl Buffers {
    /// Adds to some rows of products what their adapter's factors make of the same rows of the input.
    pub(super) fn add<const N: usize>(
        &mut self,
        pool: &ThreadPool,
        rows: &[usize],
        input: &AdaptedInput<'_, CpuOps>,
        products: [(Option<&LowRankFactors<CpuOps>>, &mut CpuRows); N],
    ) {
        if rows.is_empty() {
            return;
        }
        self.take(pool, input, rows);
        for (factors, out) in products {
            if let Some(factors) = factors {
                self.add_product(pool, factors, rows, &mut out.values);
            }
        }
    }

    fn take(&mut self, pool: &ThreadPool, input: &AdaptedInput<'_, CpuOps>, rows: &[usize]) {
        let (AdaptedInput::Plain(x) | AdaptedInput::Normed { rows: x, .. }) = input;
        self.gathered.clear();
        for row in rows {
            self.gathered
                .extend_from_slice(&x.values[row * x.width..][..x.width]);
        }
        match input {
            AdaptedInput::Plain(_) => self.input.load(pool, &self.gathered, rows.len(), x.width),
            AdaptedInput::Normed { weight, eps, .. } => {
                self.input.load_normed(pool, &self.gathered, weight, *eps);
            }
        }
    }

    fn add_product(
        &mut self,
        pool: &ThreadPool,
        factors: &LowRankFactors<CpuOps>,
        rows: &[usize],
        out: &mut [f32],
    ) {
        let (rank, width) = (factors.down.out_features(), factors.up.out_features());
        // Every value is overwritten.
        self.low.resize(rows.len() * rank, 0.0);
        matmul(pool, &self.input, &factors.down, None, &mut self.low);
        let low = &mut self.low_activations;
        low.load(pool, &self.low, rows.len(), rank);
        if rows.len() * width == out.len() {
            let product = Product {
                weights: &factors.up,
                bias: None,
                out,
                accumulate: true,
            };
            return matmul_many(pool, low, [product]);
        }
        self.delta.resize(rows.len() * width, 0.0);
        matmul(pool, low, &factors.up, None, &mut self.delta);
        for (row, delta) in rows.iter().zip(self.delta.chunks_exact(width)) {
            let out = &mut out[row * width..][..width];
            for (out, delta) in out.iter_mut().zip(delta) {
                *out += delta;
            }
        }
    }
}
