//! The engine over a cache of int8 keys and values: nothing that it shares or drafts changes an
//! answer.

use std::process::Command;

use ponder::engine::{
    Backend, EngineConfig, EngineHandle, GenerateRequest, SamplingParams, Speculative,
    SpeculativeConfig, StreamEvent,
};
use ponder::model::testing::TinyModel;
use ponder::model::{CausalLm, LoadOptions, ModelFiles, SkipSet, SubLayer, load};
use ponder_kernels::KvDtype;

use crate::engine::wait_for;
use crate::tiny_gguf;

/// A plain family, and one with sliding windows.
const FAMILIES: [&str; 2] = ["qwen2", "gemma3"];
const VOCABULARY: u32 = 96;

fn files(folder: &tempfile::TempDir, family: &'static str) -> ModelFiles {
    let path = folder.path().join(family).with_extension("gguf");
    std::fs::write(&path, TinyModel::random(family, 3).to_gguf()).unwrap();
    ModelFiles::open(&path).unwrap()
}

fn load_as(files: &ModelFiles, kv_cache_dtype: KvDtype) -> Box<dyn CausalLm> {
    let options = LoadOptions {
        num_threads: 2,
        max_model_len: Some(256),
        kv_cache_dtype,
        ..LoadOptions::default()
    };
    load(files, options).unwrap()
}

fn config() -> EngineConfig {
    EngineConfig {
        max_model_len: 256,
        max_num_seqs: 16,
        max_num_batched_tokens: 48,
        block_size: 16,
        num_blocks: 300,
        local: None,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        max_num_waiting_seqs: 100,
        is_shared: false,
        speculative: SpeculativeConfig::default(),
    }
}

/// Some prompts share a prefix that ends inside a block, some repeat themselves.
fn requests() -> Vec<GenerateRequest> {
    let request = |i: u32| {
        let shared = if i.is_multiple_of(2) { 41 } else { 0 };
        let own = (0..5 + i * 17 % 90).map(|j| (i * 7 + j % 11 * 5) % VOCABULARY);
        let params = SamplingParams {
            max_tokens: 24,
            temperature: [0.0, 0.7][i as usize / 2 % 2],
            seed: u64::from(i),
            ignore_eos: true,
            ..SamplingParams::default()
        };
        let prompt = (0..shared).map(|j| j * 3 % VOCABULARY).chain(own);
        GenerateRequest {
            n: 1 + i as usize % 2,
            ..GenerateRequest::new(prompt.collect(), params)
        }
    };
    (0..8).map(request).collect()
}

/// Every choice's tokens, all requests at once.
fn answers(engine: &EngineHandle, requests: &[GenerateRequest]) -> Vec<Vec<Vec<u32>>> {
    let streams: Vec<_> = requests
        .iter()
        .map(|request| engine.submit(request.clone()).unwrap())
        .collect();
    let answer = |(mut stream, request): (ponder::engine::RequestStream, &GenerateRequest)| {
        let mut tokens = vec![Vec::new(); request.n];
        while let Some(event) = stream.blocking_recv() {
            match event {
                StreamEvent::Token {
                    index, token_id, ..
                } => tokens[index].push(token_id),
                StreamEvent::Error(error) => panic!("{error}"),
                _ => {}
            }
        }
        assert!(tokens.iter().all(|choice| choice.len() == 24));
        tokens
    };
    streams.into_iter().zip(requests).map(answer).collect()
}

#[test]
fn answers_over_int8_do_not_depend_on_chunks_cache_drafts_or_preemption() {
    let folder = tempfile::tempdir().unwrap();
    let requests = requests();
    for family in FAMILIES {
        let files = files(&folder, family);
        let model = || load_as(&files, KvDtype::Q8_0);
        let num_layers = model().info().num_layers;
        let plain = EngineConfig {
            enable_prefix_caching: false,
            enable_chunked_prefill: false,
            max_num_batched_tokens: 256,
            ..config()
        };
        let alone: Vec<_> = requests
            .iter()
            .map(|request| {
                let engine = EngineHandle::start(model(), plain.clone()).unwrap();
                answers(&engine, std::slice::from_ref(request)).remove(0)
            })
            .collect();
        let drafting = |default| EngineConfig {
            speculative: SpeculativeConfig {
                default,
                num_speculative_tokens: 4,
                prompt_lookup_min: 1,
                skip_set: Some(SkipSet::new(num_layers, [SubLayer::Mlp(3)])),
                ignores_costs: true,
            },
            ..config()
        };
        let tight = EngineConfig {
            num_blocks: 24,
            ..config()
        };
        for (name, config) in [
            ("chunked and cached", config()),
            ("preempted", tight),
            ("prompt lookup", drafting(Speculative::PromptLookup)),
            ("swift", drafting(Speculative::Swift)),
            ("draft model", drafting(Speculative::DraftModel)),
        ] {
            let drafter = (name == "draft model").then(model);
            let engine = EngineHandle::start_with(model(), drafter, config).unwrap();
            for round in ["cold", "with cache hits"] {
                assert_eq!(
                    answers(&engine, &requests),
                    alone,
                    "{family}, {name}, {round}"
                );
            }
            wait_for(|| engine.stats().num_used_blocks == 0);
            let stats = engine.stats();
            assert!(stats.prefix_cache_hits > 0, "{family}, {name}");
            assert_eq!(stats.num_preemptions > 0, name == "preempted", "{name}");
            let is_drafting = !matches!(name, "chunked and cached" | "preempted");
            let accepted = stats.drafts.iter().map(|drafts| drafts.num_accepted_tokens);
            assert_eq!(accepted.sum::<u64>() > 0, is_drafting, "{family}, {name}");
        }
    }
}

/// The same memory holds nearly twice the tokens.
#[test]
fn int8_blocks_are_counted_as_what_they_take() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(&folder, "qwen2");
    let bytes = [KvDtype::F16, KvDtype::Q8_0].map(|dtype| {
        let model = load_as(&files, dtype);
        model.info().kv_bytes_per_token
    });
    // Seven layers, two heads of 32: f16, and codes with a scale each 32, in whole cache lines.
    assert_eq!(bytes, [7 * 2 * 2 * 64, 7 * 2 * 2 * 36]);
}

/// Where there is no such cache, the start says so in a line.
#[test]
fn a_gpu_has_no_int8_cache_yet() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    tiny_gguf::write(&path);
    let output = Command::new(env!("CARGO_BIN_EXE_ponder"))
        .arg("serve")
        .arg(&path)
        .args(["--device", "cuda", "--kv-cache-dtype", "q8_0"])
        .args(["--no-traces", "--port", "0"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("--kv-cache-dtype q8_0 is not yet on the device"),
        "{text}"
    );
}
