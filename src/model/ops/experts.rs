//! The operations of mixtures of experts.

use std::sync::Arc;

use ponder_kernels::Gating;

use super::{Device, ExpertWeights, OpsError, Step};
use crate::model::moe::{ExpertLoad, LayerRouting};

/// Routing, and products grouped by expert.
pub trait ExpertOps: Device {
    /// Adds each steered sequence's change of a layer's router to its rows' logits, `[num_rows, num_experts]`.
    fn steer_router(
        &mut self,
        step: Step<'_, Self>,
        layer: usize,
        logits: &mut Self::Rows,
    ) -> Result<(), OpsError>;

    /// Chooses each row's experts by its router logits. `bias` (`[num_experts]`) counts in the choice but not in the weights; of
    /// equal scores the lower expert wins.
    fn route(
        &mut self,
        gating: &Gating,
        logits: &Self::Rows,
        bias: Option<&Self::Vector>,
        routing: &mut Self::Routing,
    ) -> Result<(), OpsError>;

    /// `out += scale * sum of weight * down_e(act(gate_e(x)) * up_e(x))` over each row's experts,
    /// in the order of their scores; each of the three products has its biases.
    fn add_experts(
        &mut self,
        x: &Self::Activations,
        routing: &mut Self::Routing,
        experts: &ExpertWeights<'_, Self>,
        scale: f32,
        out: &mut Self::Rows,
    ) -> Result<(), OpsError>;

    /// `out += scale * sigmoid(weight) * h`, one weight a row (`[num_rows, 1]`).
    fn add_weighted(
        &mut self,
        h: &Self::Rows,
        weights: &Self::Rows,
        scale: f32,
        out: &mut Self::Rows,
    ) -> Result<(), OpsError>;

    /// Counts where the rows of a layer went. It may count later, but before the process reads a count that should have it.
    fn count_experts(
        &mut self,
        routing: &Self::Routing,
        layer: usize,
        load: &Arc<ExpertLoad>,
    ) -> Result<(), OpsError>;

    /// Reads where the rows of a layer went.
    fn read_routing(
        &mut self,
        layer: usize,
        logits: &Self::Rows,
        routing: &Self::Routing,
    ) -> Result<LayerRouting, OpsError>;
}
