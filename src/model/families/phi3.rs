//! Phi-3, Phi-3.5 and Phi-4: llama with joined projections, long-rope and a sliding window in every
//! layer where a file names one. <https://arxiv.org/abs/2404.14219>,
//! <https://arxiv.org/abs/2402.13753>

use super::{AdjacentPairs, Family, HfTensors, LocalLayers, llama};

pub(super) const FAMILY: Family = Family {
    name: "phi3",
    gguf_names: &["phi3"],
    hf_names: &["phi3"],
    adjacent_pairs: AdjacentPairs::NOWHERE,
    local_layers: Some(LocalLayers {
        global_every: None,
        rope_theta: None,
    }),
    // Phi-4-mini rotates three quarters.
    partial_rotary: Some(1.0),
    hf_tensors: HfTensors {
        joined_qkv: Some("self_attn.qkv_proj"),
        joined_gate_up: Some("mlp.gate_up_proj"),
        ..llama::FAMILY.hf_tensors
    },
    ..llama::FAMILY
};
