//! Damaged files of a model: each gets an error or is used, and neither ends the process.

use serde_json::json;

use super::tokenizer::tests::byte_level_json;
use super::{ChatTemplate, Tokenizer};
use crate::model::gguf;
use crate::model::lora::LoraAdapter;
use crate::model::safetensors::check_header;
use crate::model::testing::{TinyModel, uniform};
use crate::model::{ModelConfig, gguf::GgufError};

/// What damage puts into a file beside single bytes.
const WORDS: [&[u8]; 20] = [
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\0\0\0\0\0\0\0\0",
    b"1e999",
    b"-1",
    b"1000000000",
    b"null",
    b"{}",
    b"[[[[",
    b"\"",
    b"{%",
    b"%}",
    b"{{",
    b"}}",
    b" not ",
    b"|tojson",
    b"{% set ns.a = ns %}",
    b"(",
    b")",
    b"'",
    b"\xf0\x9f\x99\x82",
];

fn below(state: &mut u64, limit: usize) -> usize {
    (((uniform(state) + 1.0) / 2.0 * limit as f32) as usize).min(limit.saturating_sub(1))
}

/// Calls `check` with damaged copies of `good`.
fn damaged(good: &[u8], count: usize, check: impl Fn(&[u8])) {
    let mut state = 7;
    check(good);
    for _ in 0..count {
        let mut bytes = good.to_vec();
        for _ in 0..=below(&mut state, 3) {
            let at = below(&mut state, bytes.len());
            match below(&mut state, 5) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes[at] ^= 1 << below(&mut state, 8),
                2 => {
                    let end = (at + 1 + below(&mut state, 16)).min(bytes.len());
                    bytes.drain(at..end);
                }
                3 => {
                    let end = (at + below(&mut state, 64)).min(bytes.len());
                    let again = bytes[at..end].to_vec();
                    bytes.splice(at..at, again);
                }
                _ => {
                    let word = WORDS[below(&mut state, WORDS.len())];
                    bytes.splice(at..at, word.iter().copied());
                }
            }
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        check(&bytes);
    }
}

#[test]
fn damaged_gguf_files_with_a_tokenizer_are_survived() {
    for pre in ["llama-bpe", "gpt-4o", "deepseek-llm", "tiny_aya"] {
        let good = TinyModel::random("llama", 3).to_gguf_with(|writer| {
            writer.string("tokenizer.ggml.model", "gpt2");
            writer.string("tokenizer.ggml.pre", pre);
            writer.strings("tokenizer.ggml.tokens", &["a", "b", "ab", "<x>", "<|end|>"]);
            writer.strings("tokenizer.ggml.merges", &["a b"]);
            writer.i32s("tokenizer.ggml.token_type", &[1, 1, 1, 3, 4]);
            writer.u32("tokenizer.ggml.eos_token_id", 3);
        });
        // The directory and the metadata, and room for the weights behind them.
        let header = &good[..8192];
        let weights = vec![0; good.len() - header.len()];
        damaged(header, 1000, |bytes| {
            let bytes = [bytes, &weights].concat();
            let parsed: Result<_, GgufError> = gguf::parse(&bytes);
            let Ok((metadata, _)) = parsed else { return };
            if let Ok(tokenizer) = Tokenizer::from_metadata(&metadata) {
                let _ = tokenizer.encode_within("ab <x> 123\n abc", true, true, 100, &|| true);
            }
        });
    }
}

#[test]
fn damaged_tokenizer_files_are_survived() {
    let good = byte_level_json().to_string();
    damaged(good.as_bytes(), 400, |bytes| {
        if let Ok(tokenizer) = Tokenizer::from_json(bytes) {
            let _ = tokenizer.encode_within("ab 12 <|a|> x", true, true, 100, &|| true);
        }
    });
}

#[test]
fn damaged_templates_are_survived() {
    let good = "{% set ns = namespace(a=[1], s='x') %}{%- for m in messages -%}{% if m.role == 'user' and not loop.last %}\
        {{ '<|' ~ m['role'].upper() + '|>' }}{{ m.content | trim }}{% elif m.tools is defined %}{{ m.tools | tojson(indent=2) }}\
        {% else %}{% set ns.a = ns.a + [loop.index] %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endif %}{% endfor %}\
        {% macro f(x, y=1) %}{{ x * 3 }}{{ caller() if caller }}{% endmacro %}{{ f([1, {'a': 2}], y=-1) }}\
        {{ messages[::-1][0:2] | length }}{{ ns.a | join(', ') }}{{ 'x' if add_generation_prompt else raise_exception('no') }}";
    let messages = [
        json!({"role": "user", "content": "hi"}),
        json!({"role": "user", "content": " there ", "tools": [{"a": [1, 2.5, null]}]}),
    ];
    damaged(good.as_bytes(), 1500, |bytes| {
        let source = String::from_utf8_lossy(bytes).into_owned();
        let template = ChatTemplate::with_fuel(source, "<s>".to_owned(), String::new(), 20_000);
        if let Ok(template) = template {
            let none = serde_json::Map::new();
            let _ = template.render_within(&messages, None, true, &none, 4096);
        }
    });
}

#[test]
fn damaged_adapters_and_configurations_are_survived() {
    let json = json!({"model_type": "qwen2", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 4,
        "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 16, "rms_norm_eps": 1e-6,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}});
    let config = ModelConfig::from_hf(&json).unwrap();
    damaged(json.to_string().as_bytes(), 3000, |bytes| {
        if let Ok(json) = serde_json::from_slice(bytes) {
            let _ = ModelConfig::from_hf(&json);
        }
    });
    let data = [0; 16];
    let view = |shape| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &data).unwrap()
    };
    let name = |half| format!("base_model.model.model.layers.0.mlp.up_proj.lora_{half}.weight");
    let tensors = [(name("A"), view(vec![1, 4])), (name("B"), view(vec![4, 1]))];
    let weights = safetensors::serialize(tensors, None).unwrap();
    let lora =
        json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1.5, "alpha_pattern": {"up_proj": 2}})
            .to_string();
    assert!(LoraAdapter::parse(lora.as_bytes(), &weights, &config).is_ok());
    damaged(&weights, 3000, |bytes| {
        let _ = check_header(bytes);
        let _ = LoraAdapter::parse(lora.as_bytes(), bytes, &config);
    });
    damaged(lora.as_bytes(), 3000, |bytes| {
        let _ = LoraAdapter::parse(bytes, &weights, &config);
    });
}
