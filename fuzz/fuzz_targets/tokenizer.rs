//! tokenizer.json and tokenizer_config.json: any contents are a tokenizer or an error, and a
//! tokenizer reads any text. An input is the two files and the text.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ponder::model::ModelFiles;
use ponder::text::Tokenizer;
use ponder_fuzz::{files, model, mutate, parts, tell, tiny, words::Words};
use tempfile::TempDir;

static WORDS: LazyLock<Words> = LazyLock::new(|| Words::of_seeds("tokenizer", 0));
static FILES: LazyLock<(TempDir, ModelFiles)> = LazyLock::new(|| {
    let folder = files::folder();
    let files = tiny::model_files(folder.path());
    (folder, files)
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::mutate(data, size, max_size, seed, 0, &WORDS)
});

// The crate that runs unknown pipelines panics on some, which is caught: only panics that nobody
// catches are to end the process.
fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |data: &[u8]| {
    let (folder, files) = &*FILES;
    let [json, config, text] = parts::first(data);
    for (name, contents) in [("tokenizer.json", json), ("tokenizer_config.json", config)] {
        std::fs::write(folder.path().join(name), contents).expect("memory takes files");
    }
    match Tokenizer::from_files(files) {
        Ok(tokenizer) => model::read(&tokenizer, &String::from_utf8_lossy(text)),
        Err(error) => tell(|| error.to_string()),
    }
});
