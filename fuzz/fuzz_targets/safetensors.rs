//! Folders of safetensors: any config.json and any header of a weights file are a model that runs
//! or an error. An input is the two; tensors are zeros, as many bytes as the header says or fewer.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ponder::model::ModelFiles;
use ponder_fuzz::{files, model, mutate, parts, tell, words::Words};

static WORDS: LazyLock<Words> = LazyLock::new(|| Words::of_seeds("safetensors", 0));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::mutate(data, size, max_size, seed, 0, &WORDS)
});

fuzz_target!(|data: &[u8]| {
    let folder = model::FOLDER.path();
    let [config, header] = parts::first(data);
    let value = serde_json::from_slice(header).unwrap_or_default();
    let zeros = vec![0; files::data_bytes(&value).unwrap_or(0)];
    std::fs::write(folder.join("config.json"), config).expect("memory takes files");
    let weights = files::safetensors(header, &zeros);
    std::fs::write(folder.join("model.safetensors"), weights).expect("memory takes files");
    match ModelFiles::open(folder) {
        Ok(files) => model::use_all(&files),
        Err(error) => tell(|| error.to_string()),
    }
});
