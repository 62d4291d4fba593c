//! What the server promises about answers, with a real model: they don't depend on the batch,
//! on chunking, on cache hits, on preemption or on neighbours.

use std::time::Duration;

use ponder::engine::{
    Backend, EngineConfig, EngineHandle, GenerateRequest, RequestStream, SamplingParams,
    StreamEvent,
};
use serde::Deserialize;

use crate::support::{default_files, golden, load_model};

const MAX_MODEL_LEN: usize = 512;
const OUTPUT_LEN: usize = 12;

fn config() -> EngineConfig {
    EngineConfig {
        max_model_len: MAX_MODEL_LEN,
        max_num_seqs: 32,
        max_num_batched_tokens: 96,
        block_size: 16,
        num_blocks: 400,
        local: None,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        max_num_waiting_seqs: 1000,
        is_shared: false,
        speculative: Default::default(),
    }
}

fn start(config: EngineConfig) -> EngineHandle {
    EngineHandle::start(load_model(&default_files(), MAX_MODEL_LEN), config).unwrap()
}

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
}

/// Sixteen real prompts of 5 to 150 tokens; two begin alike.
fn prompts() -> Vec<Vec<u32>> {
    let cases: Vec<Case> = serde_json::from_str(&golden("smollm2-135m.logits.json")).unwrap();
    let mut prompts: Vec<Vec<u32>> = cases.into_iter().map(|case| case.prompt).collect();
    prompts.sort_by_key(Vec::len);
    let step = prompts.len() / 15;
    let mut picked: Vec<Vec<u32>> = prompts.into_iter().step_by(step).take(15).collect();
    for prompt in &mut picked {
        prompt.truncate(150);
    }
    let mut like_another = picked[10].clone();
    like_another.extend([28, 1]);
    picked.insert(3, like_another);
    assert_eq!(picked.len(), 16);
    picked
}

fn request(prompt: &[u32], temperature: f32) -> GenerateRequest {
    let params = SamplingParams {
        max_tokens: OUTPUT_LEN,
        temperature,
        seed: 5,
        ignore_eos: true,
        ..SamplingParams::default()
    };
    GenerateRequest::new(prompt.to_vec(), params)
}

fn collect(mut stream: RequestStream) -> Vec<u32> {
    let mut tokens = Vec::new();
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::Token { token_id, .. } => tokens.push(token_id),
            StreamEvent::Error(error) => panic!("{error}"),
            _ => {}
        }
    }
    assert_eq!(tokens.len(), OUTPUT_LEN);
    tokens
}

fn one_by_one(engine: &EngineHandle, temperature: f32) -> Vec<Vec<u32>> {
    let answer = |prompt: &Vec<u32>| collect(engine.submit(request(prompt, temperature)).unwrap());
    prompts().iter().map(answer).collect()
}

fn together(engine: &EngineHandle, temperature: f32) -> Vec<Vec<u32>> {
    let prompts = prompts();
    let submit = |prompt: &Vec<u32>| engine.submit(request(prompt, temperature)).unwrap();
    let streams: Vec<RequestStream> = prompts.iter().map(submit).collect();
    streams.into_iter().map(collect).collect()
}

#[test]
fn real_answers_do_not_depend_on_what_runs_beside_them() {
    let plain = EngineConfig {
        enable_prefix_caching: false,
        enable_chunked_prefill: false,
        max_num_batched_tokens: 512,
        ..config()
    };
    let engine = start(plain);
    let greedy = one_by_one(&engine, 0.0);
    let sampled = one_by_one(&engine, 0.9);
    assert_ne!(greedy, sampled);
    let whole = together(&engine, 0.0);
    assert_eq!(whole, greedy, "a batch of 16, no chunks");
    drop(engine);

    let engine = start(config());
    assert_eq!(together(&engine, 0.0), greedy, "a batch of 16, chunked");
    let hits = engine.stats().prefix_cache_hits;
    assert_eq!(together(&engine, 0.0), greedy, "with cache hits");
    assert!(engine.stats().prefix_cache_hits > hits + 400);
    assert_eq!(together(&engine, 0.9), sampled, "seeded, under load");
    drop(engine);

    let tight = EngineConfig {
        num_blocks: 34,
        enable_prefix_caching: false,
        ..config()
    };
    let engine = start(tight);
    assert_eq!(together(&engine, 0.0), greedy, "preempted");
    engine.shutdown();
    assert!(engine.join(Duration::from_secs(20)));
    assert!(engine.stats().num_preemptions > 0);
    assert_eq!(engine.stats().num_used_blocks, 0);
}
