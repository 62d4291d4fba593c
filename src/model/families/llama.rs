//! Llama and everything with its shape: pre-norm, SiLU-gated MLP, no biases.
//! <https://arxiv.org/abs/2302.13971>

use ponder_kernels::Glu;

use super::{AdjacentPairs, AttentionScale, Bias, ExpertsLayout, Family, HfTensors, QkNorm};

/// The base of the other families.
pub(super) const FAMILY: Family = Family {
    name: "llama",
    gguf_names: &["llama"],
    hf_names: &["llama"],
    // Conversion to GGUF permutes rows.
    adjacent_pairs: AdjacentPairs {
        gguf: true,
        hf: false,
    },
    attention_scale: AttentionScale {
        gguf: |sizes| by_width(sizes.head_dim),
        hf: |_, head_dim| by_width(head_dim),
    },
    qkv_bias: Bias::Never,
    output_bias: false,
    attention_sinks: false,
    ffn_norm: "ffn_norm",
    yarn_truncates: true,
    qk_norm: QkNorm::None,
    post_norms: false,
    glu: Glu::Silu,
    scales_embeddings: false,
    local_layers: None,
    unrotated_every: None,
    partial_rotary: None,
    experts: None,
    has_latent_attention: false,
    hf_tensors: HfTensors {
        norms_minus_one: false,
        ffn_norm: "post_attention_layernorm",
        post_norms: ["post_attention_layernorm", "post_feedforward_layernorm"],
        joined_qkv: None,
        joined_gate_up: None,
        moe: "mlp",
        router: "gate",
        expert: ["gate_proj", "up_proj", "down_proj"],
        joined_experts: ["experts.gate_up_proj", "experts.down_proj"],
        experts_layout: ExpertsLayout::Halves,
        shared_expert: "shared_expert",
    },
};

/// Attention's scale for heads of this width.
pub(super) fn by_width(width: usize) -> f32 {
    1.0 / (width.max(1) as f32).sqrt()
}
