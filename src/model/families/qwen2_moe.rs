//! Qwen2-MoE: Qwen2 with experts and a gated shared one. <https://arxiv.org/abs/2407.10671>

use super::{ExpertsFamily, Family, SharedWidth, qwen2};

pub(super) const FAMILY: Family = Family {
    name: "qwen2_moe",
    gguf_names: &["qwen2moe"],
    hf_names: &["qwen2_moe"],
    experts: Some(ExpertsFamily {
        shared: SharedWidth::Key("shared_expert_intermediate_size"),
        ..ExpertsFamily::PLAIN
    }),
    ..qwen2::FAMILY
};
