//! Qwen3-MoE: Qwen3 with experts. <https://arxiv.org/abs/2505.09388>

use super::{ExpertsFamily, Family, qwen3};

pub(super) const FAMILY: Family = Family {
    name: "qwen3_moe",
    gguf_names: &["qwen3moe"],
    hf_names: &["qwen3_moe"],
    experts: Some(ExpertsFamily {
        normalise: true,
        ..ExpertsFamily::PLAIN
    }),
    ..qwen3::FAMILY
};
