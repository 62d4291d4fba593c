//! Gated units whose inputs are kept: gradients need them again.

use ponder_kernels::gradients::kept_glu;
use ponder_kernels::{
    Activations, Glu, PackedMatrix, Product, Routes, ThreadPool, experts_matmul, matmul_many,
};

use super::super::ExpertWeights;
use super::CpuOps;

/// What units multiply, before the activation: `[rows, inner]` each, or `[slots, inner]` sorted by
/// expert.
#[derive(Debug, Default, Clone)]
pub(in crate::model) struct GateUp {
    pub gate: Vec<f32>,
    pub up: Vec<f32>,
}

/// The units of a layer; empty where none were kept.
#[derive(Debug, Default, Clone)]
pub(in crate::model) struct KeptUnits {
    pub experts: GateUp,
    /// Of an MLP, or of a shared expert.
    pub dense: GateUp,
}

impl GateUp {
    pub fn len(&self) -> usize {
        self.gate.len() + self.up.len()
    }

    /// Makes room for rows that are overwritten.
    fn resize(&mut self, count: usize) {
        self.gate.resize(count, 0.0);
        self.up.resize(count, 0.0);
    }

    /// Computes a dense unit of rows `x`.
    pub fn fill(&mut self, pool: &ThreadPool, x: &Activations, weights: [&PackedMatrix; 2]) {
        self.resize(x.num_rows() * weights[0].out_features());
        let product = |weights, out| Product {
            weights,
            bias: None,
            out,
            accumulate: false,
        };
        let [gate, up] = weights;
        let products = [
            product(gate, &mut self.gate[..]),
            product(up, &mut self.up[..]),
        ];
        matmul_many(pool, x, products);
    }

    /// Computes the experts' units of rows that are sorted by expert.
    pub(super) fn fill_experts(
        &mut self,
        pool: &ThreadPool,
        sorted: &Activations,
        routes: &Routes,
        experts: &ExpertWeights<'_, CpuOps>,
    ) {
        self.resize(routes.rows().len() * experts.gate.out_features());
        experts_matmul(pool, sorted, routes, experts.gate, &mut self.gate);
        experts_matmul(pool, sorted, routes, experts.up, &mut self.up);
    }
}

impl KeptUnits {
    /// Values that are kept.
    pub fn len(&self) -> usize {
        self.experts.len() + self.dense.len()
    }

    /// The dense unit's result, for the next product. The values are those of
    /// [`ponder_kernels::matmul_glu`]. `room` is overwritten.
    pub(super) fn dense(
        &mut self,
        pool: &ThreadPool,
        x: &Activations,
        weights: [&PackedMatrix; 2],
        glu: Glu,
        room: &mut Vec<f32>,
        out: &mut Activations,
    ) {
        self.dense.fill(pool, x, weights);
        room.resize(self.dense.gate.len(), 0.0);
        kept_glu(pool, glu, &self.dense.gate, &self.dense.up, room);
        out.load(pool, room, x.num_rows(), weights[0].out_features());
    }

    /// The experts' results. The values are those of [`ponder_kernels::experts_glu`]. `room` is
    /// overwritten.
    pub(super) fn experts(
        &mut self,
        pool: &ThreadPool,
        sorted: &Activations,
        routes: &Routes,
        experts: &ExpertWeights<'_, CpuOps>,
        room: &mut Vec<f32>,
        out: &mut Activations,
    ) {
        let units = &mut self.experts;
        units.fill_experts(pool, sorted, routes, experts);
        room.resize(units.gate.len(), 0.0);
        kept_glu(pool, experts.glu, &units.gate, &units.up, room);
        let width = experts.gate.out_features();
        out.load(pool, room, routes.rows().len(), width);
    }
}
