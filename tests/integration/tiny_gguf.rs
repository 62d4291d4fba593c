//! A model of random weights in a GGUF file, with a tokenizer of single bytes and a chat template:
//! the real binary serves it in a moment.

use std::path::Path;

use ponder::model::testing::{GgufWriter, TinyModel, uniform};

use crate::tiny::{MORE_TOKENS, TEMPLATE, byte_character};

/// Types of tokens: of plain text, and of the model's own marks.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// The model, with a vocabulary for its tokenizer.
pub fn model() -> TinyModel {
    let mut model = TinyModel::random("llama", 1);
    model.vocab_size = 256 + MORE_TOKENS.len();
    let mut state = 7;
    for name in ["token_embd.weight", "output.weight"] {
        let count = model.hidden_size * model.vocab_size;
        let values = (0..count).map(|_| uniform(&mut state)).collect();
        let dimensions = vec![model.hidden_size, model.vocab_size];
        model.tensors.insert(name.to_owned(), (dimensions, values));
    }
    model
}

/// The metadata of the tokenizer.
pub fn put_tokenizer(writer: &mut GgufWriter) {
    let bytes: Vec<String> = (0..=255)
        .map(|byte| byte_character(byte).to_string())
        .collect();
    let tokens: Vec<&str> = bytes
        .iter()
        .map(String::as_str)
        .chain(MORE_TOKENS)
        .collect();
    let types: Vec<i32> = tokens
        .iter()
        .map(|token| match token.starts_with("<|") {
            true => CONTROL,
            false => NORMAL,
        })
        .collect();
    writer.string("tokenizer.ggml.model", "gpt2");
    writer.strings("tokenizer.ggml.tokens", &tokens);
    writer.i32s("tokenizer.ggml.token_type", &types);
    writer.strings("tokenizer.ggml.merges", &[]);
    writer.u32("tokenizer.ggml.eos_token_id", 257);
    writer.string("tokenizer.chat_template", TEMPLATE);
}

/// Writes the model.
pub fn write(path: &Path) {
    std::fs::write(path, model().to_gguf_with(put_tokenizer)).unwrap();
}
