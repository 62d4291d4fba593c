//! Sizes of well-known models, to measure without their weights.

use serde_json::{Value, json};

/// A shape that is measured, as `config.json` tells it.
pub(in crate::model) struct Shape {
    pub name: &'static str,
    architecture: &'static str,
    model_type: &'static str,
    pub has_bias: bool,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub vocab_size: usize,
    pub is_tied: bool,
}

/// Qwen2.5 0.5B and 1.5B, Llama 3.1 8B.
pub(in crate::model) const SHAPES: [Shape; 3] = [
    Shape {
        name: "0.5b",
        architecture: "Qwen2ForCausalLM",
        model_type: "qwen2",
        has_bias: true,
        hidden_size: 896,
        intermediate_size: 4864,
        num_layers: 24,
        num_heads: 14,
        num_kv_heads: 2,
        vocab_size: 151_936,
        is_tied: true,
    },
    Shape {
        name: "1.5b",
        architecture: "Qwen2ForCausalLM",
        model_type: "qwen2",
        has_bias: true,
        hidden_size: 1536,
        intermediate_size: 8960,
        num_layers: 28,
        num_heads: 12,
        num_kv_heads: 2,
        vocab_size: 151_936,
        is_tied: true,
    },
    Shape {
        name: "8b",
        architecture: "LlamaForCausalLM",
        model_type: "llama",
        has_bias: false,
        hidden_size: 4096,
        intermediate_size: 14_336,
        num_layers: 32,
        num_heads: 32,
        num_kv_heads: 8,
        vocab_size: 128_256,
        is_tied: false,
    },
];

impl Shape {
    /// The same as a `config.json`.
    pub fn config(&self) -> Value {
        json!({
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": 32_768,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "tie_word_embeddings": self.is_tied,
            "hidden_act": "silu",
        })
    }
}
