//! GLM-4 (0414): norms after attention and MLP too, adjacent elements of half a head rotate
//! together, gate and up are joined. <https://arxiv.org/abs/2406.12793>

use super::{AdjacentPairs, Bias, Family, HfTensors, llama};

pub(super) const FAMILY: Family = Family {
    name: "glm4",
    gguf_names: &["glm4"],
    hf_names: &["glm4"],
    // Its own files have them that way, and conversion leaves them so.
    adjacent_pairs: AdjacentPairs {
        gguf: true,
        hf: true,
    },
    // The 9B model has them, the 32B one does not.
    qkv_bias: Bias::Stored,
    post_norms: true,
    partial_rotary: Some(0.5),
    hf_tensors: HfTensors {
        post_norms: ["post_self_attn_layernorm", "post_mlp_layernorm"],
        joined_gate_up: Some("mlp.gate_up_proj"),
        ..llama::FAMILY.hf_tensors
    },
    ..llama::FAMILY
};
