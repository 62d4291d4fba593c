//! Gemma 3 text models: norms after attention and MLP too, GELU, five sliding-window layers for each
//! global one. <https://arxiv.org/abs/2503.19786>

use ponder_kernels::Glu;
use serde_json::Value;

use super::{
    AdjacentPairs, ArchitecturePlan, AttentionScale, AttentionSizes, Family, HfTensors, QkNorm,
    llama,
};
use crate::model::config::ModelConfig;

/// Every sixth layer sees the whole context.
const GLOBAL_EVERY: usize = 6;
/// Base frequency of the sliding-window layers; global layers use the model's own.
const LOCAL_ROPE_THETA: f32 = 10_000.0;
/// How the 27B model is known, whose attention scales by the hidden size per head.
const LAYERS_OF_27B: usize = 62;

pub(super) const FAMILY: Family = Family {
    name: "gemma3",
    gguf_names: &["gemma3"],
    hf_names: &["gemma3", "gemma3_text"],
    plan,
    adjacent_pairs: AdjacentPairs {
        gguf: false,
        hf: false,
    },
    attention_scale: AttentionScale {
        gguf: gguf_attention_scale,
        hf: hf_attention_scale,
    },
    hf_tensors: HfTensors {
        norms_minus_one: true,
        ffn_norm: "pre_feedforward_layernorm",
        ..llama::FAMILY.hf_tensors
    },
    ..llama::FAMILY
};

fn plan(config: &ModelConfig) -> ArchitecturePlan {
    ArchitecturePlan {
        qk_norm: QkNorm::Heads,
        post_norms: true,
        glu: Glu::GeluTanh,
        embedding_scale: (config.hidden_size as f32).sqrt(),
        local_rope_theta: Some(LOCAL_ROPE_THETA),
        is_local: |layer| !(layer + 1).is_multiple_of(GLOBAL_EVERY),
        ..llama::plan(config)
    }
}

fn gguf_attention_scale(sizes: &AttentionSizes) -> f32 {
    llama::by_width(match sizes.num_layers {
        LAYERS_OF_27B => sizes.hidden_size / sizes.num_heads.max(1),
        _ => sizes.head_dim,
    })
}

fn hf_attention_scale(json: &Value, head_dim: usize) -> f32 {
    let scalar = json.get("query_pre_attn_scalar").and_then(Value::as_f64);
    match scalar {
        Some(scalar) => 1.0 / (scalar as f32).sqrt(),
        None => llama::by_width(head_dim),
    }
}
