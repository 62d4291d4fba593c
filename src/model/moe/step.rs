//! A mixture-of-experts sub-layer over the rows of a step.

use ponder_kernels::{
    Activations, Glu, Product, Routes, ThreadPool, experts_glu, experts_matmul, matmul, matmul_glu,
    matmul_many,
};

use super::{LayerRouting, Moe, SharedExpert};
use crate::model::causal_lm::ForwardBatch;
use crate::model::moe::MoeConfig;

/// Buffers of a step; they stay as the last mixture-of-experts layer left them.
#[derive(Default)]
pub(in crate::model) struct MoeScratch {
    /// `[rows, num_experts]`, steering included.
    pub logits: Vec<f32>,
    pub routes: Routes,
    /// The normed rows sorted by expert.
    sorted: Activations,
    gated: Activations,
    /// `[rows * chosen, hidden_size]`, sorted by expert.
    pub results: Vec<f32>,
    /// `[rows, hidden_size]`
    pub shared: Vec<f32>,
    shared_weights: Vec<f32>,
}

/// What a layer needs beside its weights.
pub(in crate::model) struct MoeStep<'a> {
    pub pool: &'a ThreadPool,
    pub config: &'a MoeConfig,
    pub glu: Glu,
    /// Multiplies what is added to the residual stream.
    pub residual_scale: f32,
}

impl MoeScratch {
    /// `keeps_values`: experts are float matrices.
    pub(in crate::model) fn new(keeps_values: bool) -> Self {
        let activations = || Activations::with_capacity(0, 0, keeps_values);
        Self {
            sorted: activations(),
            gated: activations(),
            ..Self::default()
        }
    }

    /// Router logits of normed rows.
    pub(in crate::model) fn score(&mut self, pool: &ThreadPool, layer: &Moe, x: &Activations) {
        let num_experts = layer.router.out_features();
        self.logits.resize(x.num_rows() * num_experts, 0.0);
        matmul(pool, x, &layer.router, None, &mut self.logits);
    }

    /// Adds each steered sequence's change to its rows' logits. `is_kept`: only the rows whose logits are wanted are left.
    pub(in crate::model) fn steer(
        &mut self,
        batch: &ForwardBatch<'_>,
        layer: usize,
        is_kept: bool,
    ) {
        if batch.steering.iter().all(Option::is_none) {
            return;
        }
        for ((rows, kept), steering) in batch.ranges().zip(batch.steering) {
            let Some(delta) = steering.and_then(|steering| steering.router_delta(layer)) else {
                continue;
            };
            let rows = if is_kept { kept } else { rows };
            let num_experts = delta.len();
            let logits = &mut self.logits[rows.start * num_experts..rows.end * num_experts];
            for row in logits.chunks_exact_mut(num_experts) {
                for (logit, delta) in row.iter_mut().zip(delta) {
                    *logit += delta;
                }
            }
        }
    }

    /// What the last layer did.
    pub(in crate::model) fn routing(&self, layer: usize) -> LayerRouting {
        LayerRouting {
            layer,
            router_logits: self.logits.clone(),
            experts: self.routes.experts().to_vec(),
            gates: self.routes.gates().to_vec(),
        }
    }

    /// Routes normed rows by the logits and adds what their experts and the shared one make of them to `out`
    /// (`[rows, hidden_size]`).
    pub(in crate::model) fn add(
        &mut self,
        step: &MoeStep<'_>,
        layer: &Moe,
        x: &Activations,
        out: &mut [f32],
    ) {
        let MoeStep {
            pool,
            config,
            glu,
            residual_scale,
        } = *step;
        if x.num_rows() == 0 {
            // Nobody wants logits of this chunk of a prompt.
            return;
        }
        let bias = layer.correction_bias.as_deref();
        let gating = &config.gating;
        let routes = &mut self.routes;
        routes.plan(pool, gating, &self.logits, config.num_experts, bias);
        self.sorted.gather(pool, x, routes.rows());
        let (gate, up, down) = (&layer.gate, &layer.up, &layer.down);
        experts_glu(pool, &self.sorted, routes, gate, up, glu, &mut self.gated);
        self.results
            .resize(routes.rows().len() * down.out_features(), 0.0);
        experts_matmul(pool, &self.gated, routes, down, &mut self.results);
        if let Some(shared) = &layer.shared {
            self.add_shared(step, shared, x, out);
        }
        self.routes
            .combine(pool, &self.results, residual_scale, out);
    }

    fn add_shared(
        &mut self,
        step: &MoeStep<'_>,
        layer: &SharedExpert,
        x: &Activations,
        out: &mut [f32],
    ) {
        let (pool, scale) = (step.pool, step.residual_scale);
        matmul_glu(pool, x, &layer.gate, &layer.up, step.glu, &mut self.gated);
        let is_plain = layer.weight.is_none() && scale == 1.0;
        if !is_plain {
            self.shared.resize(out.len(), 0.0);
        }
        let product = Product {
            weights: &layer.down.weights,
            bias: None,
            accumulate: is_plain,
            out: if is_plain {
                &mut *out
            } else {
                &mut self.shared
            },
        };
        matmul_many(pool, &self.gated, [product]);
        if is_plain {
            return;
        }
        let num_rows = x.num_rows();
        self.shared_weights.resize(num_rows, 0.0);
        match &layer.weight {
            Some(weight) => {
                matmul(pool, x, weight, None, &mut self.shared_weights);
                for weight in &mut self.shared_weights {
                    *weight = scale / (1.0 + (-*weight).exp());
                }
            }
            None => self.shared_weights.fill(scale),
        }
        let width = out.len() / num_rows.max(1);
        let rows = out
            .chunks_exact_mut(width)
            .zip(self.shared.chunks_exact(width));
        for ((out, shared), weight) in rows.zip(&self.shared_weights) {
            for (out, value) in out.iter_mut().zip(shared) {
                *out += weight * value;
            }
        }
    }
}
