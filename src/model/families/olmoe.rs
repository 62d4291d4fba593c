//! OLMoE: experts, and Q and K are normed as whole vectors before the rotation.
//! <https://arxiv.org/abs/2409.02060>

use super::{AdjacentPairs, ExpertsFamily, Family, QkNorm, llama};

pub(super) const FAMILY: Family = Family {
    name: "olmoe",
    gguf_names: &["olmoe"],
    hf_names: &["olmoe"],
    qk_norm: QkNorm::Whole,
    adjacent_pairs: AdjacentPairs::NOWHERE,
    experts: Some(ExpertsFamily::PLAIN),
    ..llama::FAMILY
};
