//! Qwen3 (dense): llama with RMS norms on each head of Q and K. <https://arxiv.org/abs/2505.09388>

use super::{AdjacentPairs, ArchitecturePlan, Family, QkNorm, llama};
use crate::model::config::ModelConfig;

pub(super) const FAMILY: Family = Family {
    name: "qwen3",
    gguf_names: &["qwen3"],
    hf_names: &["qwen3"],
    plan,
    adjacent_pairs: AdjacentPairs {
        gguf: false,
        hf: false,
    },
    ..llama::FAMILY
};

fn plan(config: &ModelConfig) -> ArchitecturePlan {
    ArchitecturePlan {
        qk_norm: QkNorm::Heads,
        ..llama::plan(config)
    }
}
