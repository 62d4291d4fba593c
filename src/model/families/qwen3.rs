//! Qwen3 (dense): llama with RMS norms on each head of Q and K. <https://arxiv.org/abs/2505.09388>

use super::{AdjacentPairs, Family, QkNorm, llama};

pub(super) const FAMILY: Family = Family {
    name: "qwen3",
    gguf_names: &["qwen3"],
    hf_names: &["qwen3"],
    qk_norm: QkNorm::Heads,
    adjacent_pairs: AdjacentPairs::NOWHERE,
    ..llama::FAMILY
};
