//! Llama and everything with its shape: pre-norm, SiLU-gated MLP, no biases.
//! <https://arxiv.org/abs/2302.13971>

use ponder_kernels::{Glu, RopeKind};

use super::config::ModelConfig;
use super::layers::ArchitecturePlan;

pub(super) fn plan(config: &ModelConfig) -> ArchitecturePlan {
    ArchitecturePlan {
        rope_kind: if config.rope_adjacent_pairs {
            RopeKind::Norm
        } else {
            RopeKind::Neox
        },
        qkv_bias: false,
        qk_norm: false,
        post_norms: false,
        glu: Glu::Silu,
        embedding_scale: 1.0,
        local_rope_theta: None,
        is_local: |_| false,
    }
}
