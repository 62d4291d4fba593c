//! Qwen3 (dense): llama with RMS norms on each head of Q and K. <https://arxiv.org/abs/2505.09388>

use ponder_kernels::RopeKind;

use super::config::ModelConfig;
use super::layers::{ArchitecturePlan, QkNorm};
use super::llama;

pub(super) fn plan(config: &ModelConfig) -> ArchitecturePlan {
    ArchitecturePlan {
        rope_kind: RopeKind::Neox,
        qk_norm: QkNorm::Heads,
        ..llama::plan(config)
    }
}
