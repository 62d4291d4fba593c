//! Products grouped by expert, and the shared expert's weight.

use std::sync::Arc;

use ponder_kernels::Gating;
use ponder_kernels_cuda::experts::{self, ExpertCounts, RouteParams, Routing};
use ponder_kernels_cuda::product::{self, ExpertTiles};
use ponder_kernels_cuda::rows::{self, grouped_gate_up, grouped_project};
use ponder_kernels_cuda::{Activations, Buffer, CudaError, Gpu, Rows};

use super::super::{ExpertOps, ExpertWeights, OpsError, Step};
use super::{CudaExperts, CudaOps};
use crate::model::moe::{ExpertLoad, LayerRouting};

/// Where rows go, and buffers of their experts' products; they stay as the last layer left them.
#[derive(Default)]
pub struct CudaRouting {
    routes: Routing,
    /// The rows sorted by expert.
    sorted: Activations,
    gated: Activations,
    gates: [Rows; 2],
    /// `[rows sorted by expert, hidden_size]`
    results: Rows,
}

impl CudaRouting {
    pub(super) fn new(keeps_floats: bool) -> Self {
        Self {
            sorted: Activations::new(keeps_floats),
            gated: Activations::new(keeps_floats),
            ..Self::default()
        }
    }
}

/// Counts that the device adds up, for the load that they belong to.
pub(super) struct Counting {
    counts: ExpertCounts,
    load: Arc<ExpertLoad>,
    num_experts: usize,
}

impl Counting {
    fn new(gpu: &Gpu, load: &Arc<ExpertLoad>, num_experts: usize) -> Result<Self, CudaError> {
        Ok(Self {
            counts: ExpertCounts::new(gpu, load.num_layers(), num_experts)?,
            load: Arc::clone(load),
            num_experts,
        })
    }

    fn flush(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        let totals = self.counts.take(gpu)?;
        for (layer, totals) in totals.chunks_exact(self.num_experts).enumerate() {
            self.load.add(layer, |expert| totals[expert] as usize);
        }
        Ok(())
    }
}

/// Most rows of experts' products that go through the workspace.
const MAX_WORKSPACE_ROWS: usize = 1024;

/// Rows of a tile: few where experts have few rows each.
fn tile_height(num_choices: usize, num_experts: usize) -> usize {
    match num_choices / num_experts.max(1) {
        0..=8 => 8,
        9..=16 => 16,
        17..=32 => 32,
        _ => 64,
    }
}

impl CudaOps {
    /// Hands what was counted since the last call to whoever reads it.
    pub fn flush_counts(&mut self) -> Result<(), OpsError> {
        if let Some(counting) = &mut self.counting {
            counting.flush(&self.gpu)?;
        }
        Ok(())
    }
}

impl ExpertOps for CudaOps {
    fn steer_router(
        &mut self,
        step: Step<'_, Self>,
        layer: usize,
        logits: &mut Rows,
    ) -> Result<(), OpsError> {
        if let Some(offsets) = step.inputs.router(layer, step.rows) {
            rows::add_offsets(&self.gpu, logits, offsets)?;
        }
        Ok(())
    }

    fn route(
        &mut self,
        gating: &Gating,
        logits: &Rows,
        bias: Option<&Buffer<f32>>,
        routing: &mut CudaRouting,
    ) -> Result<(), OpsError> {
        let num_choices = logits.num_rows() * gating.num_experts_per_tok;
        let height = tile_height(num_choices, logits.width());
        let params = RouteParams {
            bias,
            ..RouteParams::new(gating, height)
        };
        Ok(experts::route(
            &self.gpu,
            &params,
            logits,
            &mut routing.routes,
        )?)
    }

    fn add_experts(
        &mut self,
        x: &Activations,
        routing: &mut CudaRouting,
        experts: &ExpertWeights<'_, Self>,
        scale: f32,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        if x.num_rows() == 0 {
            return Ok(());
        }
        let gpu = &self.gpu;
        let CudaRouting {
            routes,
            sorted,
            gated,
            gates: [gate, up],
            results,
        } = routing;
        experts::gather(gpu, x, routes, sorted)?;
        let glu = experts.glu;
        match (experts.gate, experts.up) {
            (CudaExperts::Packed(gates), CudaExperts::Packed(ups))
                if gates.layout() == ups.layout() =>
            {
                let matrices = [gates, ups];
                self.workspace
                    .reserve_rows(gpu, &matrices, workspace_rows(routes))?;
                let tiles = tiles(routes)?;
                let workspace = &self.workspace;
                product::expert_gate_up(gpu, workspace, sorted, tiles, matrices, glu, gated)?;
            }
            (CudaExperts::Float(gates), CudaExperts::Float(ups)) => {
                let weights = [gates, ups];
                grouped_gate_up(gpu, sorted, weights, glu, routes, [gate, up], gated)?;
            }
            (gates, ups) => {
                for (weights, out) in [(gates, &mut *gate), (ups, &mut *up)] {
                    grouped(gpu, &mut self.workspace, sorted, weights, routes, out)?;
                }
                rows::activate(gpu, gate, up, glu, gated)?;
            }
        }
        grouped(
            gpu,
            &mut self.workspace,
            gated,
            experts.down,
            routes,
            results,
        )?;
        Ok(experts::combine(gpu, routes, results, scale, out)?)
    }

    fn add_weighted(
        &mut self,
        h: &Rows,
        weights: &Rows,
        scale: f32,
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        Ok(rows::add_weighted(&self.gpu, h, weights, scale, out)?)
    }

    fn count_experts(
        &mut self,
        routing: &CudaRouting,
        layer: usize,
        load: &Arc<ExpertLoad>,
    ) -> Result<(), OpsError> {
        let num_experts = routing.routes.num_experts();
        let is_same = |counting: &Counting| Arc::ptr_eq(&counting.load, load);
        if !self.counting.as_ref().is_some_and(is_same) {
            self.flush_counts()?;
            self.counting = Some(Counting::new(&self.gpu, load, num_experts)?);
        }
        if let Some(counting) = &mut self.counting {
            counting.counts.add(&self.gpu, &routing.routes, layer)?;
        }
        match self.counts_later {
            true => Ok(()),
            false => self.flush_counts(),
        }
    }

    fn read_routing(
        &mut self,
        layer: usize,
        logits: &Rows,
        routing: &CudaRouting,
    ) -> Result<LayerRouting, OpsError> {
        let (experts, gates) = routing.routes.read(&self.gpu)?;
        let mut router_logits = Vec::new();
        super::Device::read(self, logits, &mut router_logits)?;
        Ok(LayerRouting {
            layer,
            router_logits,
            experts,
            gates,
        })
    }
}

/// Products of rows sorted by expert.
fn grouped(
    gpu: &Gpu,
    workspace: &mut product::Workspace,
    x: &Activations,
    experts: &CudaExperts,
    routes: &Routing,
    out: &mut Rows,
) -> Result<(), CudaError> {
    match experts {
        CudaExperts::Packed(matrix) => {
            workspace.reserve_rows(gpu, &[matrix], workspace_rows(routes))?;
            product::expert_project(gpu, workspace, x, tiles(routes)?, matrix, out)
        }
        CudaExperts::Float(experts) => grouped_project(gpu, x, experts, routes, out),
    }
}

/// Rows whose parts are added in a workspace: with more, units are many enough without.
fn workspace_rows(routes: &Routing) -> usize {
    routes.capacity().min(MAX_WORKSPACE_ROWS)
}

fn tiles(routes: &Routing) -> Result<ExpertTiles<'_>, CudaError> {
    let missing = || CudaError::Unsupported("experts' products before their routes".to_owned());
    Ok(ExpertTiles {
        table: routes.tiles_buffer().ok_or_else(missing)?,
        max_tiles: routes.max_tiles(),
        tile_rows: routes.tile_height(),
    })
}
