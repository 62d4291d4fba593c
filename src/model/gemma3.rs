//! Gemma 3 text models: norms after attention and MLP too, GELU, five sliding-window layers for each
//! global one. <https://arxiv.org/abs/2503.19786>

use ponder_kernels::{Glu, RopeKind};

use super::config::ModelConfig;
use super::layers::{ArchitecturePlan, QkNorm};

/// Every sixth layer sees the whole context.
const GLOBAL_EVERY: usize = 6;
/// Base frequency of the sliding-window layers; global layers use the model's own.
const LOCAL_ROPE_THETA: f32 = 10_000.0;

pub(super) fn plan(config: &ModelConfig) -> ArchitecturePlan {
    ArchitecturePlan {
        rope_kind: RopeKind::Neox,
        qkv_bias: false,
        qk_norm: QkNorm::Heads,
        post_norms: true,
        glu: Glu::GeluTanh,
        embedding_scale: (config.hidden_size as f32).sqrt(),
        local_rope_theta: Some(LOCAL_ROPE_THETA),
        is_local: |layer| !(layer + 1).is_multiple_of(GLOBAL_EVERY),
    }
}
