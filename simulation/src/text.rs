//! The tokenizer of the fake model's words: letters, and a line's end now and then, so that answers
//! have steps.

use std::sync::OnceLock;

use ponder::model::ModelFiles;
use ponder::text::Tokenizer;
use serde_json::{Value, json};

use crate::setup::VOCAB_SIZE;

/// GPT-2's character for a line's end.
const LINE_END: char = 'Ċ';
/// Its space: a vocabulary that has one is known to be one of bytes.
const SPACE: char = 'Ġ';

fn tokenizer_json() -> Value {
    let others = [SPACE, LINE_END];
    let letters = ('a'..='z').take(VOCAB_SIZE - others.len());
    let tokens = letters.chain(others).enumerate();
    let vocab: serde_json::Map<String, Value> = tokens
        .map(|(id, token)| (token.to_string(), json!(id)))
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
        "use_regex": false});
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level, "model": {"type": "BPE", "vocab": vocab, "merges": []}})
}

fn load() -> anyhow::Result<Tokenizer> {
    let folder = tempfile::tempdir()?;
    let write =
        |name: &str, value: Value| std::fs::write(folder.path().join(name), value.to_string());
    write("tokenizer.json", tokenizer_json())?;
    write("tokenizer_config.json", json!({}))?;
    write(
        "config.json",
        json!({"model_type": "llama", "vocab_size": VOCAB_SIZE}),
    )?;
    // A folder of weights that has none: no more is read of them than their names.
    let header = b"{}";
    let weights = [&(header.len() as u64).to_le_bytes()[..], header].concat();
    std::fs::write(folder.path().join("model.safetensors"), weights)?;
    Ok(Tokenizer::from_files(&ModelFiles::open(folder.path())?)?)
}

/// # Errors
/// It cannot be written or read.
pub fn tokenizer() -> Result<Tokenizer, String> {
    static TOKENIZER: OnceLock<Result<Tokenizer, String>> = OnceLock::new();
    let tokenizer = TOKENIZER.get_or_init(|| load().map_err(|error| format!("{error:#}")));
    tokenizer.clone()
}
