//! OLMoE: Q and K are normed as whole vectors before the rotation. <https://arxiv.org/abs/2409.02060>

use super::config::ModelConfig;
use super::layers::{ArchitecturePlan, QkNorm};
use super::llama;

pub(super) fn plan(config: &ModelConfig) -> ArchitecturePlan {
    ArchitecturePlan {
        qk_norm: QkNorm::Whole,
        ..llama::plan(config)
    }
}
