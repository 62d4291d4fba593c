//! Mixture-of-experts layers: each row goes through a few of many small MLPs, and through a shared one where there is one.

mod config;
mod load;
mod step;

use ponder_kernels::{ExpertMatrix, PackedMatrix};

pub use config::MoeConfig;
pub use load::ExpertLoad;
pub(super) use step::{MoeScratch, MoeStep};

use super::config::ModelConfig;
use super::layers::Linear;
use super::weights::{LoadError, WeightSource, Weights};

/// Where the rows of a step went in one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerRouting {
    pub layer: usize,
    /// `[rows, num_experts]`, steering included.
    pub router_logits: Vec<f32>,
    /// `[rows, num_experts_per_tok]`, highest score first.
    pub experts: Vec<u32>,
    /// The weights of the chosen experts' results, shaped as `experts`.
    pub gates: Vec<f32>,
}

/// One layer.
pub(super) struct Moe {
    pub norm: Vec<f32>,
    /// `[num_experts, hidden_size]`
    pub router: PackedMatrix,
    /// `[num_experts]`, counts in the choice alone (DeepSeek-V3).
    pub correction_bias: Option<Vec<f32>>,
    pub gate: ExpertMatrix,
    pub up: ExpertMatrix,
    pub down: ExpertMatrix,
    pub shared: Option<SharedExpert>,
}

/// What every row goes through beside its experts.
pub(super) struct SharedExpert {
    pub gate: PackedMatrix,
    pub up: PackedMatrix,
    pub down: Linear,
    /// `[1, hidden_size]`: the logit of the result's weight, 1 without it.
    pub weight: Option<PackedMatrix>,
}

impl Moe {
    pub(super) fn load(
        weights: &Weights<'_, impl WeightSource + ?Sized>,
        config: &ModelConfig,
        moe: &MoeConfig,
        index: usize,
    ) -> Result<Self, LoadError> {
        let (hidden, experts, inner) = (config.hidden_size, moe.num_experts, moe.intermediate_size);
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let bias = format!("blk.{index}.exp_probs_b.bias");
        let has_bias = weights.has(&bias)?;
        Ok(Self {
            norm: weights.vector(&name("ffn_norm"), hidden)?,
            router: weights.matrix(&name("ffn_gate_inp"), experts, hidden)?,
            correction_bias: has_bias
                .then(|| weights.vector(&bias, experts))
                .transpose()?,
            gate: weights.experts(&name("ffn_gate_exps"), [experts, inner, hidden])?,
            up: weights.experts(&name("ffn_up_exps"), [experts, inner, hidden])?,
            down: weights.experts(&name("ffn_down_exps"), [experts, hidden, inner])?,
            shared: (moe.shared_intermediate_size)
                .map(|inner| SharedExpert::load(weights, hidden, inner, index))
                .transpose()?,
        })
    }

    /// Matrices of the experts, the shared one included.
    pub(super) fn expert_matrices(&self) -> impl Iterator<Item = &PackedMatrix> {
        let shared = self.shared.iter();
        let shared = shared.flat_map(|shared| [&shared.gate, &shared.up, &shared.down.weights]);
        [&self.gate, &self.up, &self.down]
            .map(ExpertMatrix::matrix)
            .into_iter()
            .chain(shared)
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &PackedMatrix> {
        let weight = self.shared.iter().flat_map(|shared| &shared.weight);
        self.expert_matrices().chain([&self.router]).chain(weight)
    }
}

impl SharedExpert {
    fn load(
        weights: &Weights<'_, impl WeightSource + ?Sized>,
        hidden: usize,
        inner: usize,
        index: usize,
    ) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let gate_of = name("ffn_gate_inp_shexp");
        let has_weight = weights.has(&gate_of)?;
        Ok(Self {
            gate: weights.matrix(&name("ffn_gate_shexp"), inner, hidden)?,
            up: weights.matrix(&name("ffn_up_shexp"), inner, hidden)?,
            down: Linear {
                weights: weights.matrix(&name("ffn_down_shexp"), hidden, inner)?,
                bias: None,
            },
            weight: has_weight
                .then(|| weights.row(&gate_of, hidden))
                .transpose()?,
        })
    }
}
