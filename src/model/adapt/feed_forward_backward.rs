//! Back through experts and MLPs.

use std::sync::Arc;

use ponder_kernels::gradients::{glu_gradient, weighted_glu_gradient};
use ponder_kernels::{
    Activations, Gating, Glu, PackedMatrix, Routes, Scoring, ThreadPool,
    experts_transposed_from_rows, experts_transposed_to_rows, matmul, matmul_transposed,
};

use super::backward::Room;
use crate::model::causal_lm::{ForwardBatch, ForwardError};
use crate::model::decoder::Decoder;
use crate::model::layers::FeedForward;
use crate::model::moe;
use crate::model::moe::MoeScratch;
use crate::model::ops::cpu::{GateUp, KeptUnits};
use crate::model::ops::{CpuOps, ExpertOps, LayerOps, RowSet, Step};

type Moe = moe::Moe<CpuOps>;
type SharedExpert = moe::SharedExpert<CpuOps>;

/// Where a gradient starts and goes.
pub(super) struct Gradient<'a> {
    /// By what a sub-layer adds to the residual stream, `[rows, hidden_size]`.
    pub by_result: &'a [f32],
    /// That by the normed rows is added; empty unless wanted.
    pub by_normed: &'a mut [f32],
}

/// What a sub-layer read.
pub(super) struct SubLayerInput<'a> {
    /// `[rows, hidden_size]`
    pub rows: &'a [f32],
    /// What its gated units were made of; the gradients by that, afterwards.
    pub units: &'a mut KeptUnits,
}

/// Buffers of a gated unit, `[rows, inner]` or `[slots, inner]`.
#[derive(Default)]
pub(super) struct GatedRoom {
    /// The gradient by the unit's result.
    by_gated: Vec<f32>,
    /// What each result counts, and the gradient by that.
    weights: Vec<f32>,
    along: Vec<f32>,
}

impl Decoder {
    /// Back through a layer's feed-forward part: returns the gradient by the router logits,
    /// summed over rows, where the layer has a router.
    pub(super) fn back_through_feed_forward(
        &mut self,
        batch: &ForwardBatch<'_>,
        index: usize,
        at: SubLayerInput<'_>,
        gradient: Gradient<'_>,
        room: &mut Room,
    ) -> Result<Option<Vec<f32>>, ForwardError> {
        let eps = self.config.rms_norm_eps;
        match &self.layers[index].feed_forward {
            FeedForward::Mlp(mlp) => {
                if !gradient.by_normed.is_empty() {
                    let (pool, x) = (&*self.ops.pool, &mut self.scratch.activations);
                    x.load_normed(pool, at.rows, &mlp.norm, eps);
                    let [gate, up, down] =
                        [&mlp.gate, &mlp.up, &mlp.down].map(|linear| &linear.weights);
                    let unit = GatedUnit {
                        gate,
                        up,
                        down,
                        glu: self.config.family.glu,
                    };
                    let Gradient {
                        by_result,
                        by_normed,
                    } = gradient;
                    let parts = &mut at.units.dense;
                    unit.start(pool, x, by_result, parts, room);
                    let GateUp { gate, up } = parts;
                    glu_gradient(pool, unit.glu, gate, up, &room.gated.by_gated);
                    unit.finish(pool, parts, room, by_normed);
                }
                Ok(None)
            }
            FeedForward::Moe(_) => self.back_through_moe(batch, index, at, gradient, room),
        }
    }

    /// The same of a mixture of experts.
    fn back_through_moe(
        &mut self,
        batch: &ForwardBatch<'_>,
        index: usize,
        at: SubLayerInput<'_>,
        gradient: Gradient<'_>,
        room: &mut Room,
    ) -> Result<Option<Vec<f32>>, ForwardError> {
        let (Some(moe), Some(config)) = (self.layers[index].moe(), &self.config.moe) else {
            return Ok(None);
        };
        let pool = &*Arc::clone(&self.ops.pool);
        let glu = self.config.family.glu;
        let x = &mut self.scratch.activations;
        x.load_normed(pool, at.rows, &moe.norm, self.config.rms_norm_eps);
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
        let Gradient {
            by_result,
            by_normed,
        } = gradient;
        let KeptUnits { experts, dense } = at.units;
        if experts.gate.is_empty() {
            routing.fill(pool, x, &moe.experts(glu), experts);
        }
        let routes = &routing.routes;
        back_to_gates(pool, moe, routes, glu, by_result, experts, room);
        let by_logits = by_logits(routes, gating, &room.gated.along);
        if !by_normed.is_empty() {
            let rows = &mut room.rows;
            let (parts, weights) = ([&experts.gate[..], &experts.up], [&moe.gate, &moe.up]);
            experts_transposed_to_rows(pool, parts, routes, weights, rows, by_normed);
            matmul_transposed(pool, [&by_logits], [&moe.router.weights], rows, by_normed);
            if let Some(shared) = &moe.shared {
                let gradient = Gradient {
                    by_result,
                    by_normed,
                };
                back_through_shared(pool, shared, x, glu, gradient, dense, room);
            }
        }
        let mut sums = vec![0.0; config.num_experts];
        for row in by_logits.chunks_exact(config.num_experts) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
        Ok(Some(sums))
    }
}

/// Back through the experts' gated units: leaves the gradients by what they multiply, and by every
/// gate of the router.
///
/// The gradient by a gate is `<by_result, down · h>`, which is `<down^T · by_result, h>`: what goes
/// back anyway.
fn back_to_gates(
    pool: &ThreadPool,
    moe: &Moe,
    routes: &Routes,
    kind: Glu,
    by_result: &[f32],
    units: &mut GateUp,
    room: &mut Room,
) {
    let Room { gated, rows, .. } = room;
    let num_slots = routes.rows().len();
    gated.resize(num_slots, moe.gate.out_features());
    let by_gated = &mut gated.by_gated;
    experts_transposed_from_rows(pool, by_result, routes, &moe.down, rows, by_gated);
    gated.weights.resize(num_slots, 0.0);
    for (slot, gate) in routes.slots().iter().zip(routes.gates()) {
        gated.weights[*slot as usize] = *gate;
    }
    gated.back(pool, kind, units);
    let width = by_result.len() / routes.num_rows().max(1);
    for expert in routes.busy_experts() {
        let Some(bias) = moe.down.bias(*expert as usize) else {
            break;
        };
        for slot in routes.rows_of(*expert as usize) {
            let by_result = &by_result[routes.rows()[slot] as usize * width..][..width];
            gated.along[slot] += dot(by_result, bias);
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl GatedRoom {
    /// Makes room for so many rows. The gradient by the unit's results is zero.
    fn resize(&mut self, num_rows: usize, inner: usize) {
        self.by_gated.clear();
        self.by_gated.resize(num_rows * inner, 0.0);
        self.along.resize(num_rows, 0.0);
    }

    /// Back through units whose results count by `weights`.
    fn back(&mut self, pool: &ThreadPool, kind: Glu, units: &mut GateUp) {
        let parts = [&mut units.gate[..], &mut units.up, &mut self.by_gated];
        weighted_glu_gradient(pool, kind, &self.weights, parts, &mut self.along);
    }
}

/// The gradient by the router logits, `[rows, num_experts]`; `along` is that by the gates, sorted
/// by expert.
///
/// With `a_e` of a chosen expert and `m = sum of gate_e a_e` over the chosen: for softmax weights
/// without normalisation
/// `[j chosen] gate_j a_j - p_j m`, for normalised ones `[j chosen] gate_j (a_j - m / scale)`.
fn by_logits(routes: &Routes, gating: &Gating, along: &[f32]) -> Vec<f32> {
    let num_experts = routes.num_experts();
    let mut by_logits = vec![0.0; routes.num_rows() * num_experts];
    for (row, out) in by_logits.chunks_exact_mut(num_experts).enumerate() {
        row_by_logits(routes, gating, along, row, out);
    }
    by_logits
}

fn row_by_logits(routes: &Routes, gating: &Gating, along: &[f32], row: usize, out: &mut [f32]) {
    let (num_experts, chosen) = (routes.num_experts(), routes.num_experts_per_tok());
    let range = row * chosen..(row + 1) * chosen;
    let gates = &routes.gates()[range.clone()];
    let slots = routes.slots()[range.clone()].iter();
    let along = slots.map(|slot| along[*slot as usize]);
    let total: f32 = gates
        .iter()
        .zip(along.clone())
        .map(|(gate, a)| gate * a)
        .sum();
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

/// The matrices of a gated unit.
struct GatedUnit<'a> {
    gate: &'a PackedMatrix,
    up: &'a PackedMatrix,
    down: &'a PackedMatrix,
    glu: Glu,
}

impl GatedUnit<'_> {
    /// Computes the unit of rows `x` again where it was not kept, and the gradient by what it gives
    /// to `down`.
    fn start(
        &self,
        pool: &ThreadPool,
        x: &Activations,
        by_result: &[f32],
        parts: &mut GateUp,
        room: &mut Room,
    ) {
        if parts.gate.is_empty() {
            parts.fill(pool, x, [self.gate, self.up]);
        }
        let Room { gated, rows, .. } = room;
        gated.resize(x.num_rows(), self.gate.out_features());
        matmul_transposed(pool, [by_result], [self.down], rows, &mut gated.by_gated);
    }

    /// Adds the gradient by the unit's input; `parts` are those by what it multiplies.
    fn finish(&self, pool: &ThreadPool, parts: &GateUp, room: &mut Room, by_normed: &mut [f32]) {
        let x = [&parts.gate[..], &parts.up];
        matmul_transposed(pool, x, [self.gate, self.up], &mut room.rows, by_normed);
    }
}

/// Adds what goes back through a shared expert, whose result may count by a weight that depends on
/// the row.
fn back_through_shared(
    pool: &ThreadPool,
    shared: &SharedExpert,
    x: &Activations,
    glu: Glu,
    gradient: Gradient<'_>,
    parts: &mut GateUp,
    room: &mut Room,
) {
    let unit = GatedUnit {
        gate: &shared.gate,
        up: &shared.up,
        down: &shared.down.weights,
        glu,
    };
    let Gradient {
        by_result,
        by_normed,
    } = gradient;
    unit.start(pool, x, by_result, parts, room);
    let Some(weight) = &shared.weight else {
        let GateUp { gate, up } = &mut *parts;
        glu_gradient(pool, glu, gate, up, &room.gated.by_gated);
        return unit.finish(pool, parts, room, by_normed);
    };
    let gated = &mut room.gated;
    gated.weights.resize(x.num_rows(), 0.0);
    matmul(pool, x, &weight.weights, None, &mut gated.weights);
    for weight in &mut gated.weights {
        *weight = 1.0 / (1.0 + (-*weight).exp());
    }
    gated.back(pool, glu, parts);
    for (along, weight) in gated.along.iter_mut().zip(&gated.weights) {
        *along *= weight * (1.0 - weight);
    }
    let along = [&gated.along[..]];
    matmul_transposed(pool, along, [&weight.weights], &mut room.rows, by_normed);
    unit.finish(pool, parts, room, by_normed);
}
