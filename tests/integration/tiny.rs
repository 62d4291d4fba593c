//! The smallest model that a server takes: a tokenizer of single bytes, a chat template, sizes that
//! adapters must fit, and no weights. The fuzz targets are built with this file too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ponder::model::ModelFiles;
use serde_json::{Value, json};

const EOS: &str = "<|im_end|>";
pub const TEMPLATE: &str = "{% for m in messages %}\
    <|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
/// Tokens beside those of single bytes. A judge needs words.
pub const MORE_TOKENS: [&str; 4] = ["<|im_start|>", EOS, "yes", "no"];
const HIDDEN: usize = 4;

/// GPT-2's character for each byte.
pub fn byte_character(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    match is_printable(byte) {
        true => char::from(byte),
        false => {
            let before = (0..byte).filter(|byte| !is_printable(*byte)).count();
            char::from_u32(256 + before as u32).unwrap()
        }
    }
}

/// A tokenizer of single bytes and these; those that begin with `<` are special.
pub fn tokenizer_json(more: &[&str]) -> Value {
    let mut vocab: BTreeMap<String, usize> = (0..=255_u8)
        .map(|byte| (byte_character(byte).to_string(), usize::from(byte)))
        .collect();
    let mut added = Vec::new();
    for (index, token) in more.iter().enumerate() {
        let id = 256 + index;
        vocab.insert((*token).to_owned(), id);
        if token.starts_with('<') {
            added.push(
                json!({"id": id, "content": token, "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false}),
            );
        }
    }
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
        "use_regex": false});
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []}})
}

/// A folder with a tokenizer, sizes that adapters must fit, and no weights.
pub fn model_files(folder: &Path) -> ModelFiles {
    let write = |name: &str, value: Value| {
        std::fs::write(folder.join(name), value.to_string()).unwrap();
    };
    write("tokenizer.json", tokenizer_json(&MORE_TOKENS));
    write("tokenizer_config.json", json!({"eos_token": EOS}));
    write(
        "config.json",
        json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 260,
            "hidden_size": HIDDEN, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096, "rope_theta": 10000.0}),
    );
    let tensors: [(&str, safetensors::tensor::TensorView<'_>); 0] = [];
    let weights = folder.join("model.safetensors");
    safetensors::serialize_to_file(tensors, None, &weights).unwrap();
    ModelFiles::open(folder).unwrap()
}

/// An adapter that fits the model of [`model_files`], in PEFT's format.
pub fn adapter_folder(folder: &Path) -> PathBuf {
    let path = folder.join("adapter");
    std::fs::create_dir_all(&path).unwrap();
    let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "bias": "none",
        "target_modules": ["q_proj"]});
    std::fs::write(path.join("adapter_config.json"), config.to_string()).unwrap();
    let data = [0_u8; 4 * HIDDEN];
    let tensor = |shape| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &data).unwrap()
    };
    let name =
        |part| format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight");
    let tensors = [
        (name("A"), tensor(vec![1, HIDDEN])),
        (name("B"), tensor(vec![HIDDEN, 1])),
    ];
    let file = path.join("adapter_model.safetensors");
    safetensors::serialize_to_file(tensors, None, &file).unwrap();
    path
}
