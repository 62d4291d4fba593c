//! DeepSeek-V2: latent attention and experts with shared ones. <https://arxiv.org/abs/2405.04434>

use super::{AdjacentPairs, ExpertsFamily, Family, HfTensors, SharedWidth, llama};

pub(super) const FAMILY: Family = Family {
    name: "deepseek_v2",
    gguf_names: &["deepseek2"],
    hf_names: &["deepseek_v2"],
    // Its own files have them that way, and conversion leaves them so.
    adjacent_pairs: AdjacentPairs {
        gguf: true,
        hf: true,
    },
    experts: Some(ExpertsFamily {
        // Its own implementation ignores the key.
        normalise_key_needs_sigmoid: true,
        shared: SharedWidth::Experts("n_shared_experts"),
        ..ExpertsFamily::PLAIN
    }),
    has_latent_attention: true,
    hf_tensors: HfTensors {
        shared_expert: "shared_experts",
        ..llama::FAMILY.hf_tensors
    },
    ..llama::FAMILY
};
