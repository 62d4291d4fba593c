//! SmolLM3: llama with layers that do not rotate queries and keys, one in four.
//! <https://huggingface.co/blog/smollm3>, <https://arxiv.org/abs/2501.18795>

use super::{Family, llama};

pub(super) const FAMILY: Family = Family {
    name: "smollm3",
    gguf_names: &["smollm3"],
    hf_names: &["smollm3"],
    // llama.cpp counts the same way; its files do not say.
    unrotated_every: Some(4),
    ..llama::FAMILY
};
