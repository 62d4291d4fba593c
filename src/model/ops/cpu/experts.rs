//! Products grouped by expert, and the shared expert's weight.

use std::sync::Arc;

use ponder_kernels::{Activations, Gating, Routes, ThreadPool, experts_glu, experts_matmul};

use super::super::{ExpertOps, ExpertWeights, OpsError, RowSet, Step};
use super::{CpuOps, CpuRows, GateUp, KeptUnits};
use crate::model::adapt::add_offset;
use crate::model::moe::{ExpertLoad, LayerRouting};

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

    /// Computes what the rows' experts multiply, before the activation.
    pub(in crate::model) fn fill(
        &mut self,
        pool: &ThreadPool,
        x: &Activations,
        experts: &ExpertWeights<'_, CpuOps>,
        units: &mut GateUp,
    ) {
        self.sorted.gather(pool, x, self.routes.rows());
        units.fill_experts(pool, &self.sorted, &self.routes, experts);
    }

    /// Adds what the rows' experts make of them to `out` (`[rows, hidden_size]`).
    fn add(
        &mut self,
        pool: &ThreadPool,
        x: &Activations,
        experts: &ExpertWeights<'_, CpuOps>,
        scale: f32,
        kept: Option<&mut KeptUnits>,
        out: &mut [f32],
    ) {
        if x.num_rows() == 0 {
            return;
        }
        let (routes, down) = (&self.routes, experts.down);
        self.sorted.gather(pool, x, routes.rows());
        let (sorted, gated) = (&self.sorted, &mut self.gated);
        match kept {
            Some(kept) => kept.experts(pool, sorted, routes, experts, &mut self.results, gated),
            None => {
                let [gate, up] = [experts.gate, experts.up];
                experts_glu(pool, sorted, routes, gate, up, experts.glu, gated);
            }
        }
        let num_slots = routes.rows().len();
        self.results.resize(num_slots * down.out_features(), 0.0);
        experts_matmul(pool, &self.gated, routes, down, &mut self.results);
        routes.combine(pool, &self.results, scale, out);
    }
}

impl ExpertOps for CpuOps {
    fn steer_router(
        &mut self,
        step: Step<'_, Self>,
        layer: usize,
        logits: &mut CpuRows,
    ) -> Result<(), OpsError> {
        if step.batch.steering.iter().all(Option::is_none) {
            return Ok(());
        }
        for ((rows, kept), steering) in step.batch.ranges().zip(step.batch.steering) {
            let delta = steering.and_then(|steering| steering.router_delta(layer));
            let rows = match step.rows {
                RowSet::All => rows,
                RowSet::Kept => kept,
            };
            let width = logits.width;
            add_offset(
                &mut logits.values[rows.start * width..rows.end * width],
                delta,
            );
        }
        Ok(())
    }

    fn route(
        &mut self,
        gating: &Gating,
        logits: &CpuRows,
        bias: Option<&Vec<f32>>,
        routing: &mut CpuRouting,
    ) -> Result<(), OpsError> {
        let bias = bias.map(Vec::as_slice);
        let (values, num_experts) = (&logits.values, logits.width);
        routing
            .routes
            .plan(&self.pool, gating, values, num_experts, bias);
        Ok(())
    }

    fn add_experts(
        &mut self,
        x: &Activations,
        routing: &mut CpuRouting,
        experts: &ExpertWeights<'_, Self>,
        scale: f32,
        out: &mut CpuRows,
    ) -> Result<(), OpsError> {
        let kept = self.kept.as_mut();
        routing.add(&self.pool, x, experts, scale, kept, &mut out.values);
        Ok(())
    }

    fn add_weighted(
        &mut self,
        h: &CpuRows,
        weights: &CpuRows,
        scale: f32,
        out: &mut CpuRows,
    ) -> Result<(), OpsError> {
        let rows = out.values.chunks_exact_mut(h.width);
        let rows = rows.zip(h.values.chunks_exact(h.width));
        for ((out, h), logit) in rows.zip(&weights.values) {
            let weight = scale / (1.0 + (-*logit).exp());
            for (out, value) in out.iter_mut().zip(h) {
                *out += weight * value;
            }
        }
        Ok(())
    }

    fn count_experts(
        &mut self,
        routing: &CpuRouting,
        layer: usize,
        load: &Arc<ExpertLoad>,
    ) -> Result<(), OpsError> {
        load.add(layer, |expert| routing.routes.rows_of(expert).len());
        Ok(())
    }

    fn read_routing(
        &mut self,
        layer: usize,
        logits: &CpuRows,
        routing: &CpuRouting,
    ) -> Result<LayerRouting, OpsError> {
        Ok(LayerRouting {
            layer,
            router_logits: logits.values.clone(),
            experts: routing.routes.experts().to_vec(),
            gates: routing.routes.gates().to_vec(),
        })
    }
}
