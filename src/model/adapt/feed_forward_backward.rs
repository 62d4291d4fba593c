//! Back through experts and MLPs.

use std::sync::Arc;

use ponder_kernels::elementwise::glu;
use ponder_kernels::gradients::{gather_rows, glu_gradient, spread_rows};
use ponder_kernels::{
    Activations, Gating, Glu, PackedMatrix, Routes, Scoring, ThreadPool, experts_matmul,
    experts_transposed, matmul, matmul_transposed,
};

use super::parallel;
use crate::model::causal_lm::{ForwardBatch, ForwardError};
use crate::model::decoder::Decoder;
use crate::model::layers::FeedForward;
use crate::model::moe;
use crate::model::moe::MoeScratch;
use crate::model::ops::{CpuOps, ExpertOps, LayerOps, RowSet, Step};

type Moe = moe::Moe<CpuOps>;
type SharedExpert = moe::SharedExpert<CpuOps>;

impl Decoder {
    /// Back through a layer's feed-forward part at `mid` (`[rows, hidden_size]`): returns the gradient by the router logits,
    /// summed over rows, where the layer has a router, and adds that by the normed rows to `by_normed` unless that is empty.
    pub(super) fn back_through_feed_forward(
        &mut self,
        batch: &ForwardBatch<'_>,
        index: usize,
        mid: &[f32],
        gradient: &[f32],
        by_normed: &mut [f32],
    ) -> Result<Option<Vec<f32>>, ForwardError> {
        let eps = self.config.rms_norm_eps;
        let scale = self.config.residual_scale;
        let gradient: Vec<f32> = gradient.iter().map(|value| scale * value).collect();
        match &self.layers[index].feed_forward {
            FeedForward::Mlp(mlp) => {
                if !by_normed.is_empty() {
                    let (pool, x) = (&*self.ops.pool, &mut self.scratch.activations);
                    x.load_normed(pool, mid, &mlp.norm, eps);
                    let [gate, up, down] =
                        [&mlp.gate, &mlp.up, &mlp.down].map(|linear| &linear.weights);
                    let glu = self.config.family.glu;
                    back_through_glu(pool, x, [gate, up, down], glu, &gradient, by_normed);
                }
                Ok(None)
            }
            FeedForward::Moe(_) => self.back_through_moe(batch, index, mid, &gradient, by_normed),
        }
    }

    /// The same of a mixture of experts; `gradient` is that by what it adds.
    fn back_through_moe(
        &mut self,
        batch: &ForwardBatch<'_>,
        index: usize,
        mid: &[f32],
        gradient: &[f32],
        by_normed: &mut [f32],
    ) -> Result<Option<Vec<f32>>, ForwardError> {
        let (Some(moe), Some(config)) = (self.layers[index].moe(), &self.config.moe) else {
            return Ok(None);
        };
        let pool = &*Arc::clone(&self.ops.pool);
        let glu = self.config.family.glu;
        let x = &mut self.scratch.activations;
        x.load_normed(pool, mid, &moe.norm, self.config.rms_norm_eps);
        let MoeScratch {
            logits, routing, ..
        } = &mut self.scratch.moe;
        let step = Step {
            batch,
            groups: &[],
            inputs: &self.inputs,
            rows: RowSet::All,
        };
        let (ops, gating) = (&mut self.ops, &config.gating);
        ops.project(x, [&moe.router], [&mut *logits])?;
        ops.steer_router(step, index, logits)?;
        ops.route(gating, logits, moe.correction_bias.as_ref(), routing)?;
        let (routes, num_experts) = (&routing.routes, config.num_experts);
        let experts = Experts::forward(pool, moe, routes, x, glu);
        let by_logits = experts.by_logits(pool, routes, gating, gradient);
        if !by_normed.is_empty() {
            experts.back(pool, moe, routes, gradient, by_normed);
            matmul_transposed(pool, &by_logits, &moe.router.weights, by_normed);
            if let Some(shared) = &moe.shared {
                back_through_shared(pool, shared, x, glu, gradient, by_normed);
            }
        }
        let mut sums = vec![0.0; num_experts];
        for row in by_logits.chunks_exact(num_experts) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
        Ok(Some(sums))
    }
}

/// What experts made of their rows, sorted by expert.
struct Experts {
    glu: Glu,
    /// `[slots, inner]`, before the gate is applied.
    gate: Vec<f32>,
    up: Vec<f32>,
    /// `[slots, hidden_size]`
    results: Vec<f32>,
}

impl Experts {
    fn forward(pool: &ThreadPool, moe: &Moe, routes: &Routes, x: &Activations, kind: Glu) -> Self {
        let is_float = !moe.gate.matrix().is_quantised() || !moe.down.matrix().is_quantised();
        let mut sorted = Activations::with_capacity(0, 0, is_float);
        sorted.gather(pool, x, routes.rows());
        let (num_slots, inner) = (routes.rows().len(), moe.gate.out_features());
        let mut gate = vec![0.0; num_slots * inner];
        let mut up = gate.clone();
        experts_matmul(pool, &sorted, routes, &moe.gate, &mut gate);
        experts_matmul(pool, &sorted, routes, &moe.up, &mut up);
        let mut gated = gate.clone();
        glu(kind, &mut gated, &up);
        sorted.load(pool, &gated, num_slots, inner);
        let mut results = vec![0.0; num_slots * moe.down.out_features()];
        experts_matmul(pool, &sorted, routes, &moe.down, &mut results);
        Self {
            glu: kind,
            gate,
            up,
            results,
        }
    }

    /// The gradient by the router logits, `[rows, num_experts]`.
    ///
    /// With `a_e = <gradient, result_e>` and `m = sum of gate_e a_e` over the chosen: for softmax weights without normalisation
    /// `[j chosen] gate_j a_j - p_j m`, for normalised ones `[j chosen] gate_j (a_j - m / scale)`.
    fn by_logits(
        &self,
        pool: &ThreadPool,
        routes: &Routes,
        gating: &Gating,
        gradient: &[f32],
    ) -> Vec<f32> {
        let num_experts = routes.num_experts();
        let width = gradient.len() / routes.num_rows().max(1);
        let mut by_logits = vec![0.0; routes.num_rows() * num_experts];
        let rows = by_logits.chunks_exact_mut(num_experts).enumerate();
        parallel::map(pool, rows.collect(), |(row, out): (usize, &mut [f32])| {
            self.row_by_logits(routes, gating, row, &gradient[row * width..][..width], out);
        });
        by_logits
    }

    fn row_by_logits(
        &self,
        routes: &Routes,
        gating: &Gating,
        row: usize,
        gradient: &[f32],
        out: &mut [f32],
    ) {
        let (num_experts, chosen) = (routes.num_experts(), routes.num_experts_per_tok());
        let range = row * chosen..(row + 1) * chosen;
        let gates = &routes.gates()[range.clone()];
        let slots = routes.slots()[range.clone()].iter();
        let along: Vec<f32> = slots
            .map(|slot| {
                let width = gradient.len();
                let result = &self.results[*slot as usize * width..][..width];
                gradient.iter().zip(result).map(|(g, o)| g * o).sum()
            })
            .collect();
        let total: f32 = gates.iter().zip(&along).map(|(gate, a)| gate * a).sum();
        let scores = &routes.scores()[row * num_experts..][..num_experts];
        if gating.scoring == Scoring::Softmax && !gating.normalise {
            for (out, score) in out.iter_mut().zip(scores) {
                *out = -score * total;
            }
        }
        let pulled = if gating.normalise {
            total / gating.scale
        } else {
            0.0
        };
        let experts = routes.experts()[range].iter().zip(gates);
        for ((expert, gate), a) in experts.zip(along) {
            let expert = *expert as usize;
            let slope = match gating.scoring {
                Scoring::Softmax => 1.0,
                Scoring::Sigmoid => 1.0 - scores[expert],
            };
            out[expert] += gate * (a - pulled) * slope;
        }
    }

    /// Adds the gradient by the normed rows that goes through the chosen experts.
    fn back(
        mut self,
        pool: &ThreadPool,
        moe: &Moe,
        routes: &Routes,
        gradient: &[f32],
        by_normed: &mut [f32],
    ) {
        // Their results are not needed any more: the rows become what each result's gradient is.
        spread_rows(pool, routes, gradient, &mut self.results);
        let mut inner = vec![0.0; self.gate.len()];
        experts_transposed(pool, &self.results, routes, &moe.down, &mut inner);
        glu_gradient(pool, self.glu, &mut self.gate, &mut self.up, &inner);
        let by_sorted = &mut self.results;
        by_sorted.fill(0.0);
        experts_transposed(pool, &self.gate, routes, &moe.gate, by_sorted);
        experts_transposed(pool, &self.up, routes, &moe.up, by_sorted);
        gather_rows(pool, routes, by_sorted, by_normed);
    }
}

/// Adds the gradient by the input of a gated MLP to `by_normed`; returns the MLP's result.
fn back_through_glu(
    pool: &ThreadPool,
    x: &Activations,
    [gate_proj, up_proj, down_proj]: [&PackedMatrix; 3],
    kind: Glu,
    gradient: &[f32],
    by_normed: &mut [f32],
) {
    let count = x.num_rows() * gate_proj.out_features();
    let (mut gate, mut up) = (vec![0.0; count], vec![0.0; count]);
    matmul(pool, x, gate_proj, None, &mut gate);
    matmul(pool, x, up_proj, None, &mut up);
    let mut inner = vec![0.0; count];
    matmul_transposed(pool, gradient, down_proj, &mut inner);
    glu_gradient(pool, kind, &mut gate, &mut up, &inner);
    matmul_transposed(pool, &gate, gate_proj, by_normed);
    matmul_transposed(pool, &up, up_proj, by_normed);
}

/// The same of a shared expert, whose weight depends on the row too.
fn back_through_shared(
    pool: &ThreadPool,
    shared: &SharedExpert,
    x: &Activations,
    kind: Glu,
    gradient: &[f32],
    by_normed: &mut [f32],
) {
    let projections = [&shared.gate, &shared.up, &shared.down.weights];
    let Some(weight) = &shared.weight else {
        return back_through_glu(pool, x, projections, kind, gradient, by_normed);
    };
    let weight = &weight.weights;
    let num_rows = x.num_rows();
    let (inner, width) = (shared.gate.out_features(), gradient.len() / num_rows.max(1));
    let mut weights = vec![0.0; num_rows];
    matmul(pool, x, weight, None, &mut weights);
    let mut gated = vec![0.0; num_rows * inner];
    let mut up = gated.clone();
    matmul(pool, x, &shared.gate, None, &mut gated);
    matmul(pool, x, &shared.up, None, &mut up);
    glu(kind, &mut gated, &up);
    let mut activations = Activations::with_capacity(0, 0, true);
    activations.load(pool, &gated, num_rows, inner);
    let mut results = vec![0.0; gradient.len()];
    matmul(pool, &activations, &shared.down.weights, None, &mut results);
    let mut scaled = gradient.to_vec();
    let rows = scaled
        .chunks_exact_mut(width)
        .zip(results.chunks_exact(width));
    for ((scaled, result), weight) in rows.zip(&mut weights) {
        let sigmoid = 1.0 / (1.0 + (-*weight).exp());
        let along: f32 = scaled.iter().zip(result).map(|(g, h)| g * h).sum();
        *weight = along * sigmoid * (1.0 - sigmoid);
        for value in scaled {
            *value *= sigmoid;
        }
    }
    matmul_transposed(pool, &weights, weight, by_normed);
    back_through_glu(pool, x, projections, kind, &scaled, by_normed);
}
