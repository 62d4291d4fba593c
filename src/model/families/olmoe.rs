//! OLMoE: experts, and Q and K are normed as whole vectors before the rotation. <https://arxiv.org/abs/2409.02060>

use super::{AdjacentPairs, ArchitecturePlan, ExpertsFamily, Family, QkNorm, SharedWidth, llama};
use crate::model::config::ModelConfig;

pub(super) const FAMILY: Family = Family {
    name: "olmoe",
    gguf_names: &["olmoe"],
    hf_names: &["olmoe"],
    plan,
    adjacent_pairs: AdjacentPairs {
        gguf: false,
        hf: false,
    },
    experts: Some(ExpertsFamily {
        normalise: false,
        normalise_key_needs_sigmoid: false,
        shared: SharedWidth::None,
    }),
    ..llama::FAMILY
};

fn plan(config: &ModelConfig) -> ArchitecturePlan {
    ArchitecturePlan {
        qk_norm: QkNorm::Whole,
        ..llama::plan(config)
    }
}
