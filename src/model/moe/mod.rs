//! Mixture-of-experts layers: each row goes through a few of many small MLPs, and through a shared
//! one where there is one.

mod config;
mod load;
mod step;

use ponder_kernels::Glu;

pub use config::MoeConfig;
pub use load::ExpertLoad;
pub(super) use step::MoeScratch;

use super::config::ModelConfig;
use super::ops::{ExpertWeights, Linear, Ops, WeightMatrix};
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
pub(super) struct Moe<O: Ops> {
    pub norm: O::Vector,
    /// `[num_experts, hidden_size]`
    pub router: Linear<O>,
    /// `[num_experts]`, counts in the choice alone (DeepSeek-V3).
    pub correction_bias: Option<O::Vector>,
    pub gate: O::Experts,
    pub up: O::Experts,
    pub down: O::Experts,
    pub shared: Option<SharedExpert<O>>,
}

/// What every row goes through beside its experts.
pub(super) struct SharedExpert<O: Ops> {
    pub gate: O::Matrix,
    pub up: O::Matrix,
    pub down: Linear<O>,
    /// `[1, hidden_size]`: the logit of the result's weight, 1 without it.
    pub weight: Option<Linear<O>>,
}

impl<O: Ops> Moe<O> {
    pub(super) fn load(
        weights: &Weights<'_, impl WeightSource + ?Sized, O>,
        config: &ModelConfig,
        moe: &MoeConfig,
        index: usize,
    ) -> Result<Self, LoadError> {
        let (hidden, experts, inner) = (config.hidden_size, moe.num_experts, moe.intermediate_size);
        let family = config.family;
        let has_biases = family.experts.is_some_and(|experts| experts.has_biases);
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let experts_of = |part: &str, [outputs, inputs]: [usize; 2]| {
            let bias = has_biases.then(|| format!("blk.{index}.{part}.bias"));
            weights.experts(&name(part), bias.as_deref(), [experts, outputs, inputs])
        };
        let router_bias = has_biases.then(|| format!("blk.{index}.ffn_gate_inp.bias"));
        let router_bias = router_bias.map(|name| weights.vector(&name, experts));
        let bias = format!("blk.{index}.exp_probs_b.bias");
        let has_bias = weights.has(&bias)?;
        Ok(Self {
            norm: weights.vector(&name(family.ffn_norm), hidden)?,
            router: Linear {
                weights: weights.matrix(&name("ffn_gate_inp"), experts, hidden)?,
                bias: router_bias.transpose()?,
            },
            correction_bias: has_bias
                .then(|| weights.vector(&bias, experts))
                .transpose()?,
            gate: experts_of("ffn_gate_exps", [inner, hidden])?,
            up: experts_of("ffn_up_exps", [inner, hidden])?,
            down: experts_of("ffn_down_exps", [hidden, inner])?,
            shared: (moe.shared_intermediate_size)
                .map(|inner| SharedExpert::load(weights, hidden, inner, index))
                .transpose()?,
        })
    }

    /// What the experts' products read.
    pub(super) fn experts(&self, glu: Glu) -> ExpertWeights<'_, O> {
        ExpertWeights {
            gate: &self.gate,
            up: &self.up,
            down: &self.down,
            glu,
        }
    }

    /// Matrices of the experts, the shared one included.
    pub(super) fn expert_matrices(&self) -> Vec<&dyn WeightMatrix> {
        let mut matrices: Vec<&dyn WeightMatrix> = vec![&self.gate, &self.up, &self.down];
        if let Some(shared) = &self.shared {
            matrices.push(&shared.gate);
            matrices.push(&shared.up);
            matrices.push(&shared.down.weights);
        }
        matrices
    }

    pub(super) fn matrices(&self) -> Vec<&dyn WeightMatrix> {
        let mut matrices = self.expert_matrices();
        matrices.push(&self.router.weights);
        for weight in self.shared.iter().flat_map(|shared| &shared.weight) {
            matrices.push(&weight.weights);
        }
        matrices
    }
}

impl<O: Ops> SharedExpert<O> {
    fn load(
        weights: &Weights<'_, impl WeightSource + ?Sized, O>,
        hidden: usize,
        inner: usize,
        index: usize,
    ) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let gate_of = name("ffn_gate_inp_shexp");
        Ok(Self {
            gate: weights.matrix(&name("ffn_gate_shexp"), inner, hidden)?,
            up: weights.matrix(&name("ffn_up_shexp"), inner, hidden)?,
            down: Linear::plain(weights.matrix(&name("ffn_down_shexp"), hidden, inner)?),
            weight: match weights.has(&gate_of)? {
                true => Some(Linear::plain(weights.row(&gate_of, hidden)?)),
                false => None,
            },
        })
    }
}
