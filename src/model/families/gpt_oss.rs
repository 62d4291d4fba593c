//! gpt-oss: experts of clamped gated units with biases, attention sinks, and a sliding window in
//! every other layer. <https://arxiv.org/abs/2508.10925>

use ponder_kernels::Glu;

use super::{
    AdjacentPairs, Bias, ExpertsFamily, ExpertsLayout, Family, HfTensors, LocalLayers, llama,
};

pub(super) const FAMILY: Family = Family {
    name: "gpt_oss",
    gguf_names: &["gpt-oss"],
    hf_names: &["gpt_oss"],
    adjacent_pairs: AdjacentPairs::NOWHERE,
    qkv_bias: Bias::Always,
    output_bias: true,
    attention_sinks: true,
    glu: Glu::ClampedSwish,
    local_layers: Some(LocalLayers {
        global_every: Some(2),
        rope_theta: None,
    }),
    ffn_norm: "post_attention_norm",
    // Its configuration says so, which GGUF files cannot.
    yarn_truncates: false,
    experts: Some(ExpertsFamily {
        // The softmax of the chosen alone is that of all, divided by the sum of the chosen.
        normalise: true,
        has_biases: true,
        ..ExpertsFamily::PLAIN
    }),
    hf_tensors: HfTensors {
        router: "router",
        experts_layout: ExpertsLayout::Turns,
        ..llama::FAMILY.hf_tensors
    },
    ..llama::FAMILY
};
