//! Gemma 3 text models: norms after attention and MLP too, GELU, five sliding-window layers for
//! each global one. <https://arxiv.org/abs/2503.19786>

use ponder_kernels::Glu;
use serde_json::Value;

use super::{
    AdjacentPairs, AttentionScale, AttentionSizes, Family, HfTensors, LocalLayers, QkNorm, llama,
};

/// How the 27B model is known, whose attention scales by the hidden size per head.
const LAYERS_OF_27B: usize = 62;

pub(super) const FAMILY: Family = Family {
    name: "gemma3",
    gguf_names: &["gemma3"],
    hf_names: &["gemma3", "gemma3_text"],
    qk_norm: QkNorm::Heads,
    post_norms: true,
    glu: Glu::GeluTanh,
    scales_embeddings: true,
    local_layers: Some(LocalLayers {
        global_every: Some(6),
        rope_theta: Some(10_000.0),
    }),
    adjacent_pairs: AdjacentPairs::NOWHERE,
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
