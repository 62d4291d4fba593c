//! GGUF files: any bytes are a model that runs or an error. What opens is asked for everything that
//! a server asks: sizes, a tokenizer, a chat template, weights, and one step.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ponder::model::ModelFiles;
use ponder_fuzz::{model, tell};

fuzz_target!(|data: &[u8]| {
    let folder = &*model::FOLDER;
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, data).expect("memory takes files");
    match ModelFiles::open(&path) {
        Ok(files) => model::use_all(&files),
        Err(error) => tell(|| error.to_string()),
    }
});
