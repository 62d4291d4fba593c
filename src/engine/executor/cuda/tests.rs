//! The executor against the processor's sampler on the same device's logits: recorded steps, drafts
//! and draws on the device change no token and no logprob. On a machine without a GPU the emulated
//! device runs.

use std::path::Path;

use ponder_kernels_cuda::Gpu;

use super::CudaExecutor;
use crate::engine::speculative::SpeculativeConfig;
use crate::engine::{
    AllowedTokens, Backend, Capability, EngineConfig, EngineError, EngineHandle, Executor,
    GenerateRequest, ModelExecutor, PoolingParams, SamplingParams, Speculative, StreamEvent,
    TokenLogprobs,
};
use crate::model::testing::TinyModel;
use crate::model::{CudaOps, Decoder, LoadOptions, ModelFiles, SkipSet, SubLayer, load_on};

fn decoder(seed: u64) -> Decoder<CudaOps> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, TinyModel::random("qwen2", seed).to_gguf()).unwrap();
    let options = LoadOptions {
        max_model_len: Some(64),
        ..LoadOptions::default()
    };
    let files = ModelFiles::open(&path).unwrap();
    load_on(CudaOps::new(Gpu::for_tests()), &files, options).unwrap()
}

fn config(skip_set: Option<SkipSet>) -> EngineConfig {
    EngineConfig {
        max_model_len: 64,
        max_num_seqs: 8,
        max_num_batched_tokens: 24,
        block_size: 16,
        num_blocks: 48,
        local: None,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        max_num_waiting_seqs: 64,
        is_shared: false,
        speculative: SpeculativeConfig {
            skip_set,
            ignores_costs: true,
            ..SpeculativeConfig::default()
        },
    }
}

fn start(executor: Box<dyn Executor>, draft: Option<Box<dyn Executor>>) -> EngineHandle {
    let num_layers = executor.info().num_layers;
    let skip_set = SkipSet::new(num_layers, [SubLayer::Mlp(1)]);
    EngineHandle::start_executor(executor, draft, config(Some(skip_set))).unwrap()
}

/// Each sampled another way.
fn requests(drafts: Speculative) -> Vec<GenerateRequest> {
    let params = |index: u64| {
        let mut params = SamplingParams {
            temperature: 0.0,
            max_tokens: 12,
            seed: 40 + index,
            logprobs: Some(3),
            ..SamplingParams::default()
        };
        match index {
            1 => params.temperature = 0.9,
            2 => (params.temperature, params.top_p) = (1.2, 0.8),
            3 => (params.temperature, params.top_k) = (0.7, 4),
            4 => (params.temperature, params.min_p, params.repetition_penalty) = (1.0, 0.1, 1.3),
            5 => params.logit_bias = vec![(3, 4.0), (5, -100.0)],
            _ => params.prompt_logprobs = Some(2),
        }
        params
    };
    let request = |index: u64| {
        let len = 3 + 7 * index as usize;
        let prompt = (0..len).map(|i| ((i * i + index as usize) % 11) as u32);
        GenerateRequest {
            speculative: Some(drafts),
            ..GenerateRequest::new(prompt.collect(), params(index))
        }
    };
    (0..6).map(request).collect()
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<(u32, Option<TokenLogprobs>)>,
    prompt: Vec<Option<TokenLogprobs>>,
}

fn answers(engine: &EngineHandle, requests: Vec<GenerateRequest>, together: bool) -> Vec<Answer> {
    let collect = |mut stream: crate::engine::RequestStream| {
        let mut answer = Answer::default();
        while let Some(event) = stream.blocking_recv() {
            match event {
                StreamEvent::Token {
                    token_id, logprobs, ..
                } => answer.tokens.push((token_id, logprobs)),
                StreamEvent::PromptDone {
                    prompt_logprobs, ..
                } => answer.prompt = prompt_logprobs.unwrap_or_default(),
                StreamEvent::Error(error) => panic!("{error}"),
                _ => {}
            }
        }
        assert!(!answer.tokens.is_empty(), "it answers");
        answer
    };
    let submit = |request| engine.submit(request).unwrap();
    match together {
        true => {
            let streams: Vec<_> = requests.into_iter().map(submit).collect();
            streams.into_iter().map(collect).collect()
        }
        false => requests.into_iter().map(submit).map(collect).collect(),
    }
}

#[test]
fn tokens_are_those_of_the_processors_sampler_whatever_runs_beside_them() {
    let by_host = start(Box::new(ModelExecutor::new(Box::new(decoder(7)))), None);
    let expected = answers(&by_host, requests(Speculative::Off), false);
    let draft = Box::new(CudaExecutor::new(decoder(8)));
    let engine = start(Box::new(CudaExecutor::new(decoder(7))), Some(draft));
    for together in [false, true, true] {
        let got = answers(&engine, requests(Speculative::Off), together);
        assert_eq!(got, expected, "together: {together}");
    }
    for drafts in [
        Speculative::PromptLookup,
        Speculative::Swift,
        Speculative::DraftModel,
    ] {
        assert_eq!(
            answers(&engine, requests(drafts), true),
            expected,
            "{drafts:?}"
        );
    }
    let drafts = engine.stats().drafts;
    let num_accepted: u64 = drafts.iter().map(|counts| counts.num_accepted_tokens).sum();
    assert!(num_accepted > 0, "some drafts were right");
}

/// A tiny mixture of experts.
fn experts() -> Decoder<CudaOps> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/moe/olmoe");
    let options = LoadOptions {
        max_model_len: Some(64),
        ..LoadOptions::default()
    };
    let files = ModelFiles::open(&folder).unwrap();
    load_on(CudaOps::new(Gpu::for_tests()), &files, options).unwrap()
}

/// Forks, masks, states and readings.
fn kinds(vocab_size: usize) -> Vec<GenerateRequest> {
    let request = |temperature: f32, seed: u64| {
        let params = SamplingParams {
            temperature,
            seed,
            max_tokens: 9,
            ..SamplingParams::default()
        };
        GenerateRequest::new(
            (0..21).map(|i| (i * 5 + seed as u32) % 29).collect(),
            params,
        )
    };
    let mut forked = request(0.9, 1);
    forked.n = 3;
    let mut masked = request(1.1, 2);
    masked.constraint = Some(Box::new(AllowedTokens::new(
        vocab_size,
        [1, 2, 3, 5, 8, 13],
    )));
    // Ends wait as long as others are left.
    let mut early = request(0.8, 5);
    early.params.min_tokens = 4;
    early.params.stop_token_ids = vec![3, 5];
    early.constraint = Some(Box::new(AllowedTokens::new(vocab_size, [3, 5, 8])));
    let mut ended = request(0.0, 6);
    ended.params.min_tokens = 4;
    ended.params.eos_token_ids = vec![3];
    ended.constraint = Some(Box::new(AllowedTokens::new(vocab_size, [3])));
    let mut tapped = request(0.0, 3);
    tapped.params.hidden_state = true;
    let read = PoolingParams {
        positions: vec![2, 20],
        token_ids: vec![1, 4],
        hidden_state: true,
        mean: false,
    };
    let read = GenerateRequest::pooling(request(0.0, 4).prompt_token_ids, read);
    vec![forked, masked, early, ended, tapped, read]
}

/// What came for each choice, in order.
fn events(engine: &EngineHandle, requests: Vec<GenerateRequest>) -> Vec<Vec<Vec<String>>> {
    let streams: Vec<_> = { requests.into_iter() }
        .map(|request| (request.n, engine.submit(request).unwrap()))
        .collect();
    let collect = |(n, mut stream): (usize, crate::engine::RequestStream)| {
        let mut choices = vec![Vec::new(); n];
        while let Some(event) = stream.blocking_recv() {
            let index = match &event {
                StreamEvent::Token { index, .. } => *index,
                StreamEvent::Pooled { .. } => 0,
                StreamEvent::Error(error) => panic!("{error}"),
                _ => continue,
            };
            choices[index].push(format!("{event:?}"));
        }
        assert!(choices.iter().all(|events| !events.is_empty()));
        choices
    };
    streams.into_iter().map(collect).collect()
}

#[test]
fn forks_masks_states_and_experts_are_the_same_with_and_without_recordings() {
    let by_host = start(Box::new(ModelExecutor::new(Box::new(experts()))), None);
    let engine = start(Box::new(CudaExecutor::new(experts())), None);
    let vocab_size = engine.model_info().vocab_size;
    let expected = events(&by_host, kinds(vocab_size));
    for _ in 0..2 {
        assert_eq!(events(&engine, kinds(vocab_size)), expected);
    }
    // The second round came from the prefix cache; the first computed as many rows as the host's engine.
    let total = |engine: &EngineHandle| -> u64 {
        let load = engine.expert_load().expect("it has experts");
        load.counts().map(|(_, _, count)| count).sum()
    };
    assert!(total(&engine) > total(&by_host), "experts are counted");
}

#[test]
fn what_a_gpu_lacks_is_declared() {
    let engine = start(Box::new(CudaExecutor::new(decoder(7))), None);
    let lacks = |capability: Capability| !engine.capabilities().contains(&capability);
    assert!(lacks(Capability::Adaptation) && !lacks(Capability::BatchInvariance));
    assert!(!lacks(Capability::Adapters) && !lacks(Capability::HiddenStates));
    let refused = engine.demand(Capability::Adaptation);
    assert!(matches!(refused, Err(EngineError::Unsupported { .. })));
}
