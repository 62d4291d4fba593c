//! Mixtral: llama with experts, under llama's name in GGUF files.
//! <https://arxiv.org/abs/2401.04088>

use super::{ExpertsFamily, Family, HfTensors, llama};

pub(super) const FAMILY: Family = Family {
    name: "mixtral",
    gguf_names: &["llama"],
    hf_names: &["mixtral"],
    experts: Some(ExpertsFamily {
        normalise: true,
        ..ExpertsFamily::PLAIN
    }),
    hf_tensors: HfTensors {
        moe: "block_sparse_moe",
        expert: ["w1", "w3", "w2"],
        ..llama::FAMILY.hf_tensors
    },
    ..llama::FAMILY
};
