//! Qwen2 and Qwen2.5: llama with biases on Q, K and V. <https://arxiv.org/abs/2407.10671>

use super::{AdjacentPairs, ArchitecturePlan, Family, llama};
use crate::model::config::ModelConfig;

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    gguf_names: &["qwen2"],
    hf_names: &["qwen2"],
    plan,
    adjacent_pairs: AdjacentPairs {
        gguf: false,
        hf: false,
    },
    ..llama::FAMILY
};

fn plan(config: &ModelConfig) -> ArchitecturePlan {
    ArchitecturePlan {
        qkv_bias: true,
        ..llama::plan(config)
    }
}
