//! Llama and everything with its shape: pre-norm, SiLU-gated MLP, no biases.
//! <https://arxiv.org/abs/2302.13971>

use ponder_kernels::{Glu, RopeKind};

use super::config::ModelConfig;
use super::layers::{ArchitecturePlan, QkNorm};

pub(super) fn plan(config: &ModelConfig) -> ArchitecturePlan {
    ArchitecturePlan {
        rope_kind: if config.rope_adjacent_pairs {
            RopeKind::Norm
        } else {
            RopeKind::Neox
        },
        qkv_bias: false,
        qk_norm: QkNorm::None,
        post_norms: false,
        glu: Glu::Silu,
        embedding_scale: config.embedding_scale,
        local_rope_theta: None,
        is_local: |_| false,
    }
}
