//! A llama of random weights as a safetensors folder, small enough to be served at once, and
//! adapters and heads that fit it.

use std::path::Path;

use ponder::model::testing::uniform;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::json;

use crate::tiny::{TEMPLATE, model_files};

pub const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 96;
/// As the tokenizer has it.
const VOCAB: usize = 260;
pub const LAYERS: usize = 2;
const KV: usize = 32;
const RANK: usize = 2;
const ALPHA: usize = 4;

/// Name, shape and values.
pub type Tensor = (String, Vec<usize>, Vec<f32>);

/// Names, shapes, and the largest value; norms are ones.
fn shapes() -> Vec<(String, Vec<usize>, Option<f32>)> {
    let mut tensors = vec![
        (
            "model.embed_tokens".to_owned(),
            vec![VOCAB, HIDDEN],
            Some(1.0),
        ),
        ("lm_head".to_owned(), vec![VOCAB, HIDDEN], Some(0.3)),
        ("model.norm".to_owned(), vec![HIDDEN], None),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KV, HIDDEN]),
            ("self_attn.v_proj", vec![KV, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ] {
            let size = (shape.len() > 1).then_some(0.2);
            tensors.push((format!("model.layers.{layer}.{name}"), shape, size));
        }
    }
    tensors
}

fn random(shape: &[usize], size: f32, state: &mut u64) -> Vec<f32> {
    let count = shape.iter().product();
    (0..count).map(|_| size * uniform(state)).collect()
}

/// The model's weights.
pub fn weights() -> Vec<Tensor> {
    let mut state = 1;
    let values = |(name, shape, size): (String, Vec<usize>, Option<f32>)| {
        let values = match size {
            Some(size) => random(&shape, size, &mut state),
            None => vec![1.0; shape.iter().product()],
        };
        (format!("{name}.weight"), shape, values)
    };
    shapes().into_iter().map(values).collect()
}

pub fn write_tensors(path: &Path, tensors: &[Tensor]) {
    let bytes = |values: &Vec<f32>| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(.., values)| bytes(values)).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (name, view)
    });
    serialize_to_file(views, None, path).unwrap();
}

/// The model as a folder, with a tokenizer of bytes.
pub fn write_model(folder: &Path) {
    write_model_of(folder, &weights());
}

/// The same model with other weights.
pub fn write_model_of(folder: &Path, weights: &[Tensor]) {
    model_files(folder);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCAB,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("chat_template.jinja"), TEMPLATE).unwrap();
    write_tensors(&folder.join("model.safetensors"), weights);
}

/// The halves of a random adapter: base name of the matrix, A and B.
fn adapter(seed: u64) -> Vec<(String, Tensor, Tensor)> {
    let mut state = seed;
    let mut half = |name: &str, part: &str, shape: Vec<usize>| {
        let values = random(&shape, 0.5, &mut state);
        let name = format!("base_model.model.{name}.lora_{part}.weight");
        (name, shape, values)
    };
    let mut halves = Vec::new();
    for (name, shape, _) in shapes() {
        if name.contains("_proj") {
            let a = half(&name, "A", vec![RANK, shape[1]]);
            let b = half(&name, "B", vec![shape[0], RANK]);
            halves.push((format!("{name}.weight"), a, b));
        }
    }
    halves
}

/// Writes an adapter that fits the model, in PEFT's format.
pub fn write_adapter(folder: &Path, seed: u64) {
    std::fs::create_dir_all(folder).unwrap();
    let config = json!({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none"});
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let halves = adapter(seed).into_iter().flat_map(|(_, a, b)| [a, b]);
    let halves: Vec<Tensor> = halves.collect();
    write_tensors(&folder.join("adapter_model.safetensors"), &halves);
}

/// The model's weights with the adapter's change in them.
pub fn merged(seed: u64) -> Vec<Tensor> {
    let mut weights = weights();
    for (name, (_, _, a), (_, _, b)) in adapter(seed) {
        let found = weights.iter_mut().find(|(other, ..)| *other == name);
        let (_, shape, values) = found.unwrap();
        let width = shape[1];
        for (row, values) in values.chunks_mut(width).enumerate() {
            for (column, value) in values.iter_mut().enumerate() {
                let products = (0..RANK).map(|k| b[row * RANK + k] * a[k * width + column]);
                *value += (ALPHA / RANK) as f32 * products.sum::<f32>();
            }
        }
    }
    weights
}

/// A head of one value.
pub fn head(seed: u64) -> [Tensor; 2] {
    let mut state = seed;
    let weight = random(&[1, HIDDEN], 0.1, &mut state);
    let bias = random(&[1], 0.5, &mut state);
    [
        ("score.weight".to_owned(), vec![1, HIDDEN], weight),
        ("score.bias".to_owned(), vec![1], bias),
    ]
}

/// A value model's folder.
pub fn write_value_model(folder: &Path, seed: u64) {
    write_adapter(folder, seed);
    write_tensors(&folder.join("value_head.safetensors"), &head(seed));
}
