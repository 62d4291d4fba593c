//! Folders of adapters: any adapter_config.json and any header of a weights file are an adapter
//! that fits the model or an error. An input is the two and the bytes of the tensors, which are
//! repeated until there are enough.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ponder::model::{LoraAdapter, ModelConfig};
use ponder_fuzz::{files, mutate, parts, tell, tiny, words::Words};

static WORDS: LazyLock<Words> = LazyLock::new(|| Words::of_seeds("adapter", 0));
static CONFIG: LazyLock<ModelConfig> = LazyLock::new(|| {
    let folder = files::folder();
    tiny::model_files(folder.path())
        .config()
        .expect("the model's sizes")
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::mutate(data, size, max_size, seed, 0, &WORDS)
});

fuzz_target!(|data: &[u8]| {
    let [config, header, values] = parts::first(data);
    let value = serde_json::from_slice(header).unwrap_or_default();
    let num_bytes = files::data_bytes(&value).unwrap_or(0);
    let values = if values.is_empty() { &[0] } else { values };
    let values: Vec<u8> = values.iter().cycle().take(num_bytes).copied().collect();
    let weights = files::safetensors(header, &values);
    let adapter = LoraAdapter::parse(config, &weights, &CONFIG);
    tell(|| format!("{:?}", adapter.as_ref().map(|_| "an adapter")));
    if let Ok(adapter) = adapter {
        let all = adapter.layers.iter().flat_map(|layer| layer.values());
        for low_rank in all {
            assert_eq!(low_rank.a.len(), low_rank.rank * low_rank.in_features);
            assert_eq!(low_rank.b.len(), low_rank.rank * low_rank.out_features);
            let numbers = low_rank.a.iter().chain(&low_rank.b);
            assert!(
                numbers.into_iter().all(|it| it.is_finite()),
                "what is taken is finite"
            );
        }
    }
});
