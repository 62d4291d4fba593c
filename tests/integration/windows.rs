//! The layers with a sliding window in a pool of their own: sequences give back what their windows
//! have passed, and no answer changes.

use std::sync::Arc;

use ponder::engine::{
    AdaptationConfig, Backend, EngineConfig, EngineHandle, ForkParams, GenerateRequest,
    LocalBlocks, RequestStream, SamplingParams, Speculative, SpeculativeConfig, StreamEvent,
};
use ponder::model::testing::TinyModel;
use ponder::model::{
    CausalLm, ForwardBatch, LoadOptions, LocalRows, ModelFiles, NO_BLOCK, SequenceRows, SkipSet,
    SubLayer, load,
};
use ponder_kernels::KvDtype;

use crate::engine::wait_for;

const VOCABULARY: u32 = 96;
const MAX_MODEL_LEN: usize = 384;
/// Of [`TinyModel`]: a window is less than a block.
const WINDOW: usize = 12;
/// Tokens that each sequence keeps beside those of its next rows, in blocks of 16.
const BLOCKS_OF_WINDOW: usize = 5;
const OUTPUT_LEN: usize = 130;

fn files(folder: &tempfile::TempDir) -> ModelFiles {
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, TinyModel::random("gemma3", 3).to_gguf()).unwrap();
    ModelFiles::open(&path).unwrap()
}

fn model(files: &ModelFiles, kv_cache_dtype: KvDtype) -> Box<dyn CausalLm> {
    let options = LoadOptions {
        num_threads: 2,
        max_model_len: Some(MAX_MODEL_LEN),
        kv_cache_dtype,
        ..LoadOptions::default()
    };
    load(files, options).unwrap()
}

/// One pool.
fn config() -> EngineConfig {
    EngineConfig {
        max_model_len: MAX_MODEL_LEN,
        max_num_seqs: 16,
        max_num_batched_tokens: 48,
        block_size: 16,
        num_blocks: 400,
        local: None,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        max_num_waiting_seqs: 100,
        is_shared: false,
        speculative: SpeculativeConfig::default(),
    }
}

/// Two pools, that of the windows with so many blocks.
fn split(num_blocks: usize) -> EngineConfig {
    EngineConfig {
        local: Some(LocalBlocks {
            num_blocks,
            window: WINDOW,
        }),
        ..config()
    }
}

fn prompt(seed: u32, len: u32) -> Vec<u32> {
    let token = |i: u32| (i * i % 13 * 7 + i * seed + seed) % VOCABULARY;
    (0..len).map(token).collect()
}

fn request(prompt: Vec<u32>, max_tokens: usize, seed: u64) -> GenerateRequest {
    let params = SamplingParams {
        max_tokens,
        temperature: [0.0, 0.7][seed as usize % 2],
        seed,
        ignore_eos: true,
        ..SamplingParams::default()
    };
    GenerateRequest::new(prompt, params)
}

/// Prompts shorter and longer than a window and a step, answers of many windows; some share a
/// prefix that ends inside a block.
fn requests() -> Vec<GenerateRequest> {
    let request = |i: u32| {
        let shared = if i.is_multiple_of(2) { 75 } else { 0 };
        let text = [prompt(5, shared), prompt(i, 7 + i * 53 % 120)].concat();
        GenerateRequest {
            n: 1 + i as usize % 2,
            ..request(text, OUTPUT_LEN, u64::from(i / 2))
        }
    };
    (0..6).map(request).collect()
}

/// Tokens of each choice, and how many of the prompt came from the cache.
fn collect(mut stream: RequestStream) -> (Vec<Vec<u32>>, usize) {
    let (mut tokens, mut num_cached) = (Vec::new(), 0);
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::Token {
                index, token_id, ..
            } => {
                tokens.resize(tokens.len().max(index + 1), Vec::new());
                tokens[index].push(token_id);
            }
            StreamEvent::PromptDone {
                num_cached_tokens, ..
            } => num_cached = num_cached_tokens,
            StreamEvent::Error(error) => panic!("{error}"),
            _ => {}
        }
    }
    (tokens, num_cached)
}

fn run(engine: &EngineHandle, request: &GenerateRequest) -> (Vec<Vec<u32>>, usize) {
    collect(engine.submit(request.clone()).unwrap())
}

fn together(engine: &EngineHandle, requests: &[GenerateRequest]) -> Vec<Vec<Vec<u32>>> {
    let submit = |request: &GenerateRequest| engine.submit(request.clone()).unwrap();
    let streams: Vec<RequestStream> = requests.iter().map(submit).collect();
    streams
        .into_iter()
        .map(|stream| collect(stream).0)
        .collect()
}

#[test]
fn answers_do_not_depend_on_what_windows_give_back() {
    let folder = tempfile::tempdir().unwrap();
    let (files, requests) = (files(&folder), requests());
    for dtype in [KvDtype::F16, KvDtype::Q8_0] {
        let plain = EngineConfig {
            enable_prefix_caching: false,
            enable_chunked_prefill: false,
            max_num_batched_tokens: MAX_MODEL_LEN,
            ..config()
        };
        let engine = EngineHandle::start(model(&files, dtype), plain).unwrap();
        let alone = requests.iter().map(|request| run(&engine, request).0);
        let alone: Vec<_> = alone.collect();
        drop(engine);
        let drafting = |default| EngineConfig {
            speculative: SpeculativeConfig {
                default,
                num_speculative_tokens: 4,
                prompt_lookup_min: 1,
                skip_set: Some(SkipSet::new(7, [SubLayer::Mlp(3)])),
                ignores_costs: true,
            },
            ..split(70)
        };
        let fewest = config().fewest_local_blocks(WINDOW);
        assert_eq!(fewest, (59 + 48_usize).div_ceil(16) + 1);
        let whole = EngineConfig {
            enable_chunked_prefill: false,
            ..split(70)
        };
        for (name, config) in [
            ("room for all windows", split(70)),
            ("room for one sequence", split(fewest)),
            ("whole prompts", whole),
            ("prompt lookup", drafting(Speculative::PromptLookup)),
            ("swift", drafting(Speculative::Swift)),
            ("draft model", drafting(Speculative::DraftModel)),
        ] {
            let drafter = (name == "draft model").then(|| model(&files, dtype));
            let engine = EngineHandle::start_with(model(&files, dtype), drafter, config).unwrap();
            for round in ["cold", "with cache hits"] {
                assert_eq!(together(&engine, &requests), alone, "{name}, {round}");
            }
            wait_for(|| engine.stats().num_used_blocks == 0);
            let stats = engine.stats();
            assert_eq!(stats.num_used_local_blocks, 0, "{name}");
            assert_eq!(stats.num_invariant_violations, 0, "{name}");
            let is_tight = name == "room for one sequence";
            assert_eq!(stats.num_preemptions > 0, is_tight, "{name}");
            assert!(stats.prefix_cache_hits > 0 || is_tight, "{name}");
        }
    }
}

#[test]
fn a_long_sequence_needs_places_for_its_window_alone() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineHandle::start(model(&files(&folder), KvDtype::F16), split(40)).unwrap();
    let mut stream = engine.submit(request(prompt(3, 200), 150, 1)).unwrap();
    let (mut num_tokens, mut most) = (0, 0);
    while let Some(event) = stream.blocking_recv() {
        if let StreamEvent::Token { .. } = event {
            num_tokens += 1;
            let stats = engine.stats();
            if num_tokens > 1 && stats.num_used_blocks > 0 {
                most = most.max(stats.num_used_local_blocks);
            }
        }
    }
    assert_eq!(num_tokens, 150);
    assert!((1..=BLOCKS_OF_WINDOW).contains(&most), "{most} places");
}

/// A fork shares the window of its parent; a branch that begins before it starts where a window is
/// still whole, and computes the rest again.
#[test]
fn branches_start_where_a_window_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(&folder);
    let text = prompt(3, 300);
    let branch = |len: usize, seed| {
        let own = prompt(seed, 9);
        request([&text[..len], &own].concat(), 40, 2)
    };
    let branches = [
        branch(299, 31),
        branch(150, 17),
        branch(150, 23),
        branch(70, 29),
    ];
    let plain = EngineHandle::start(model(&files, KvDtype::F16), config()).unwrap();
    let expected: Vec<_> = branches
        .iter()
        .map(|branch| run(&plain, branch).0)
        .collect();
    // With room for everything all places stay, whatever window has passed them. With little room
    // what begins earlier is computed again, and known again where it has its places.
    for (num_local_blocks, hits) in [(100, [299, 150, 150, 70]), (12, [299, 0, 150, 0])] {
        let engine = EngineHandle::start(model(&files, KvDtype::F16), split(num_local_blocks));
        let engine = engine.unwrap();
        run(&engine, &request(text.clone(), 1, 0));
        for (index, branch) in branches.iter().enumerate() {
            let (tokens, num_cached) = run(&engine, branch);
            assert_eq!(
                tokens, expected[index],
                "{num_local_blocks}: branch {index}"
            );
            assert_eq!(
                num_cached, hits[index],
                "{num_local_blocks}: branch {index}"
            );
        }
        let mut parent = engine.submit(request(text.clone(), 60, 2)).unwrap();
        let mut output = Vec::new();
        let fork = loop {
            if let Some(StreamEvent::Token { token_id, .. }) = parent.blocking_recv() {
                output.push(token_id);
                if output.len() == 5 {
                    let params = request(Vec::new(), 20, 4).params;
                    let fork = ForkParams {
                        n: 2,
                        params,
                        deadline: None,
                    };
                    break engine.fork(parent.id(), 0, fork).unwrap();
                }
            }
        };
        let (forked, _) = collect(fork);
        let (rest, _) = collect(parent);
        assert_eq!(output.len() + rest[0].len(), 60);
        // Greedy, they go on as their parent does.
        let whole = [&output[..], &rest[0]].concat();
        for choice in forked {
            assert!(whole.windows(20).any(|part| part == choice), "{choice:?}");
        }
        wait_for(|| engine.stats().num_used_blocks == 0);
        assert_eq!(engine.stats().num_used_local_blocks, 0);
    }
}

/// A phase computes a window of tokens again that is longer than what rows see: its sequence keeps
/// their places.
#[test]
fn an_adapted_sequence_keeps_what_its_phases_read() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(&folder);
    let adapted = |config| {
        let engine = EngineHandle::start(model(&files, KvDtype::F16), config).unwrap();
        let adaptation = AdaptationConfig {
            window: 120,
            interval: 30,
            max_phases: 3,
            ..AdaptationConfig::slot()
        };
        let request = GenerateRequest {
            adaptation: Some(Arc::new(adaptation)),
            ..request(prompt(3, 200), 100, 1)
        };
        let mut stream = engine.submit(request).unwrap();
        let (mut tokens, mut reports) = (Vec::new(), Vec::new());
        while let Some(event) = stream.blocking_recv() {
            match event {
                StreamEvent::Token { token_id, .. } => tokens.push(token_id),
                StreamEvent::Adapted { report, .. } => reports.push(report),
                StreamEvent::Error(error) => panic!("{error}"),
                _ => {}
            }
        }
        assert_eq!(reports.len(), 3);
        (tokens, reports)
    };
    assert_eq!(adapted(split(30)), adapted(config()));
}

/// What a sequence has given back cannot be read by mistake.
#[test]
fn a_row_that_sees_what_is_given_back_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = model(&files(&folder), KvDtype::F16);
    model.local_cache().unwrap().split(2);
    model.allocate_kv_cache(4, 16, 64).unwrap();
    let token_ids: Vec<u32> = (0..48).collect();
    let mut logits = Vec::new();
    let mut forward = |start: usize, end: usize, local_table: &[u32], is_split: bool| {
        let slots: Vec<u32> = (start as u32..end as u32).collect();
        let place = |slot: &u32| local_table[*slot as usize / 16].wrapping_mul(16) + slot % 16;
        let local_slots: Vec<u32> = slots.iter().map(place).collect();
        let rows = SequenceRows {
            block_table: &[0, 1, 2],
            num_rows: end - start,
            context_len: end,
            leaves: &[],
        };
        let local = SequenceRows {
            block_table: local_table,
            ..rows
        };
        let batch = ForwardBatch {
            token_ids: &token_ids[start..end],
            positions: &slots,
            slot_mapping: &slots,
            sequences: &[rows],
            adapters: &[None],
            steering: &[],
            logits_rows: &[],
            skip: None,
            local: is_split.then_some(LocalRows {
                slot_mapping: &local_slots,
                sequences: std::slice::from_ref(&local),
            }),
        };
        model.forward(&batch, &mut logits)
    };
    assert!(forward(0, 32, &[0, 1, 9], true).is_ok());
    assert!(
        forward(32, 40, &[NO_BLOCK, 1, 0], false).is_err(),
        "no place"
    );
    // Row 27 sees tokens from 16 on, row 26 from 15 on.
    assert!(forward(27, 40, &[NO_BLOCK, 1, 0], true).is_ok());
    assert!(
        forward(26, 40, &[NO_BLOCK, 1, 0], true).is_err(),
        "given back"
    );
    assert!(
        forward(32, 40, &[NO_BLOCK, NO_BLOCK, 0], true).is_err(),
        "given back"
    );
    assert!(forward(32, 40, &[NO_BLOCK, 1, 2], true).is_err(), "outside");
}
