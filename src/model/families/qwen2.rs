//! Qwen2 and Qwen2.5: llama with biases on Q, K and V. <https://arxiv.org/abs/2407.10671>

use super::{AdjacentPairs, Bias, Family, llama};

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    gguf_names: &["qwen2"],
    hf_names: &["qwen2"],
    qkv_bias: Bias::Always,
    adjacent_pairs: AdjacentPairs::NOWHERE,
    ..llama::FAMILY
};
