//! Products grouped by expert, and the shared expert's weight.

use ponder_kernels::{Activations, Routes, ThreadPool, experts_glu, experts_matmul};

use super::{CpuOps, CpuRows, ExpertWeights};

/// Where rows go, and buffers of their experts' products; they stay as the last layer left them.
#[derive(Default)]
pub struct CpuRouting {
    pub(in crate::model) routes: Routes,
    /// The rows sorted by expert.
    sorted: Activations,
    gated: Activations,
    /// `[rows * chosen, hidden_size]`, sorted by expert.
    results: Vec<f32>,
}

impl CpuRouting {
    pub(super) fn new(keeps_floats: bool) -> Self {
        let activations = || Activations::with_capacity(0, 0, keeps_floats);
        Self {
            sorted: activations(),
            gated: activations(),
            ..Self::default()
        }
    }

    /// Adds what the rows' experts make of them to `out` (`[rows, hidden_size]`).
    pub(super) fn add(
        &mut self,
        pool: &ThreadPool,
        x: &Activations,
        experts: &ExpertWeights<'_, CpuOps>,
        scale: f32,
        out: &mut [f32],
    ) {
        if x.num_rows() == 0 {
            return;
        }
        let (routes, down) = (&self.routes, experts.down);
        self.sorted.gather(pool, x, routes.rows());
        experts_glu(
            pool,
            &self.sorted,
            routes,
            experts.gate,
            experts.up,
            experts.glu,
            &mut self.gated,
        );
        let num_slots = routes.rows().len();
        self.results.resize(num_slots * down.out_features(), 0.0);
        experts_matmul(pool, &self.gated, routes, down, &mut self.results);
        routes.combine(pool, &self.results, scale, out);
    }
}

/// `out += scale * sigmoid(weight) * h`
pub(super) fn add_weighted(h: &CpuRows, weights: &CpuRows, scale: f32, out: &mut CpuRows) {
    let rows = out.values.chunks_exact_mut(h.width);
    let rows = rows.zip(h.values.chunks_exact(h.width));
    for ((out, h), logit) in rows.zip(&weights.values) {
        let weight = scale / (1.0 + (-*logit).exp());
        for (out, value) in out.iter_mut().zip(h) {
            *out += weight * value;
        }
    }
}
