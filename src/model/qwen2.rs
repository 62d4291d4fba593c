//! Qwen2 and Qwen2.5: llama with biases on Q, K and V. <https://arxiv.org/abs/2407.10671>

use ponder_kernels::RopeKind;

use super::config::ModelConfig;
use super::layers::ArchitecturePlan;
use super::llama;

pub(super) fn plan(config: &ModelConfig) -> ArchitecturePlan {
    ArchitecturePlan {
        rope_kind: RopeKind::Neox,
        qkv_bias: true,
        ..llama::plan(config)
    }
}
