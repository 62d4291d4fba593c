//! Granite-MoE: llama with experts and four multipliers. <https://www.ibm.com/granite>

use serde_json::Value;

use super::{AttentionScale, ExpertsFamily, Family, HfTensors, llama};

pub(super) const FAMILY: Family = Family {
    name: "granitemoe",
    gguf_names: &["granitemoe"],
    hf_names: &["granitemoe"],
    attention_scale: AttentionScale {
        hf: |json, _| {
            let multiplier = json.get("attention_multiplier").and_then(Value::as_f64);
            multiplier.unwrap_or(1.0) as f32
        },
        ..llama::FAMILY.attention_scale
    },
    experts: Some(ExpertsFamily {
        normalise: true,
        ..ExpertsFamily::PLAIN
    }),
    hf_tensors: HfTensors {
        moe: "block_sparse_moe",
        router: "router.layer",
        joined_experts: ["input_linear.weight", "output_linear.weight"],
        ..llama::FAMILY.hf_tensors
    },
    ..llama::FAMILY
};
