//! A model's files, used as a server uses them.

use std::sync::{Arc, LazyLock};

use ponder::model::{self, ForwardBatch, LoadOptions, ModelFiles, SequenceRows};
use ponder::text::{ChatTemplate, Tokenizer, TokenizerError};
use ponder_kernels::ThreadPool;
use tempfile::TempDir;

use crate::tell;

/// Where a target writes its files.
pub static FOLDER: LazyLock<TempDir> = LazyLock::new(crate::files::folder);

static POOL: LazyLock<Arc<ThreadPool>> = LazyLock::new(|| Arc::new(ThreadPool::new(1)));

const TEXT: &str = "Hello <s>, wörld 123\n\n  x";
/// Most tokens of a text.
const MAX_TOKENS: usize = 64;
const BLOCK_SIZE: usize = 16;
const PROMPT: [u32; 3] = [0, 1, 1];

/// A text to tokens and back: ids are those of the vocabulary, and a limit holds.
pub fn read(tokenizer: &Tokenizer, text: &str) {
    for parse_special in [false, true] {
        let ids = tokenizer.encode(text, true, parse_special);
        let within = tokenizer.encode_within(text, true, parse_special, MAX_TOKENS, &|| true);
        match (&ids, within) {
            (Ok(ids), Ok(within)) => assert_eq!(*ids, within),
            (Ok(ids), Err(TokenizerError::TooLong { .. })) => assert!(ids.len() > MAX_TOKENS),
            (Ok(ids), Err(error)) => panic!("{} tokens, or {error}", ids.len()),
            (Err(_), within) => assert!(within.is_err()),
        }
        for id in ids.iter().flatten() {
            assert!((*id as usize) < tokenizer.vocab_size(), "{id}");
        }
        let _ = tokenizer.decode(&ids.unwrap_or_default(), true);
    }
}

/// Everything that a server does with a model's files, and one step of it.
pub fn use_all(files: &ModelFiles) {
    match Tokenizer::from_files(files) {
        Ok(tokenizer) => use_texts(files, &tokenizer),
        Err(error) => tell(|| error.to_string()),
    }
    let options = LoadOptions {
        pool: Some(Arc::clone(&POOL)),
        max_model_len: Some(BLOCK_SIZE),
        ..LoadOptions::default()
    };
    let mut model = match model::load(files, options) {
        Ok(model) => model,
        Err(error) => return tell(|| error.to_string()),
    };
    let vocab_size = model.info().vocab_size;
    if model
        .allocate_kv_cache(1, BLOCK_SIZE, PROMPT.len())
        .is_err()
    {
        return;
    }
    let places = [0, 1, 2];
    let rows = SequenceRows {
        block_table: &[0],
        num_rows: PROMPT.len(),
        context_len: PROMPT.len(),
        leaves: &[],
    };
    let batch = ForwardBatch {
        token_ids: &PROMPT,
        positions: &places,
        slot_mapping: &places,
        sequences: &[rows],
        adapters: &[None],
        steering: &[],
        logits_rows: &[2],
        skip: None,
    };
    let mut logits = Vec::new();
    let result = model.forward(&batch, &mut logits);
    tell(|| format!("a step: {result:?}"));
    if result.is_ok() {
        assert_eq!(logits.len(), vocab_size);
    }
}

fn use_texts(files: &ModelFiles, tokenizer: &Tokenizer) {
    read(tokenizer, TEXT);
    if let Ok(Some(template)) = ChatTemplate::from_files(files, tokenizer, None) {
        let message = serde_json::json!({"role": "user", "content": "Hi"});
        let prompt = template.render(&[message], None, true, &serde_json::Map::new());
        tell(|| format!("a prompt: {prompt:?}"));
    }
}
