//! Speculation changes how fast an answer comes, and not one token of it.

use std::path::Path;

use ponder::engine::fake_model::{FakeModel, Fault};
use ponder::engine::{
    Backend, DraftCounts, Drafter, EngineConfig, EngineHandle, FinishReason, GenerateRequest,
    RequestStream, SamplingParams, Speculative, SpeculativeConfig, StreamEvent, TokenLogprobs,
};
use ponder::model::{CausalLm, ModelFiles, SkipSet, SubLayer};
use ponder::text::Tokenizer;
use proptest::prelude::*;

use crate::support::{default_files, load_model, models};

const VOCAB_SIZE: usize = 50;

fn config() -> EngineConfig {
    EngineConfig {
        max_model_len: 256,
        max_num_seqs: 32,
        max_num_batched_tokens: 600,
        block_size: 16,
        num_blocks: 400,
        local: None,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        max_num_waiting_seqs: 1000,
        is_shared: false,
        speculative: SpeculativeConfig {
            default: Speculative::PromptLookup,
            prompt_lookup_min: 1,
            ignores_costs: true,
            ..SpeculativeConfig::default()
        },
    }
}

fn off() -> EngineConfig {
    EngineConfig {
        speculative: SpeculativeConfig::default(),
        ..config()
    }
}

fn start(config: EngineConfig) -> EngineHandle {
    EngineHandle::start(Box::new(FakeModel::new(VOCAB_SIZE, Fault::None)), config).unwrap()
}

/// All that a client sees of a request.
#[derive(Debug, Clone, PartialEq, Default)]
struct Answer {
    token_ids: Vec<Vec<u32>>,
    logprobs: Vec<Vec<TokenLogprobs>>,
    reasons: Vec<Option<FinishReason>>,
}

fn collect(mut stream: RequestStream, n: usize) -> (Answer, DraftCounts) {
    let mut answer = Answer {
        token_ids: vec![Vec::new(); n],
        logprobs: vec![Vec::new(); n],
        reasons: vec![None; n],
    };
    let mut counts = DraftCounts::default();
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::Token {
                index,
                token_id,
                logprobs,
                ..
            } => {
                answer.token_ids[index].push(token_id);
                answer.logprobs[index].extend(logprobs);
            }
            StreamEvent::Finished {
                index,
                reason,
                drafts,
            } => {
                answer.reasons[index] = Some(reason);
                counts += drafts;
            }
            StreamEvent::Error(error) => panic!("{error}"),
            StreamEvent::PromptDone { .. }
            | StreamEvent::Pooled { .. }
            | StreamEvent::Adapted { .. } => {}
        }
    }
    (answer, counts)
}

/// All requests at once.
fn run(engine: &EngineHandle, requests: &[GenerateRequest]) -> (Vec<Answer>, DraftCounts) {
    let submit = |request: &GenerateRequest| engine.submit(request.clone()).unwrap();
    let streams: Vec<_> = requests.iter().map(submit).collect();
    let (mut answers, mut counts) = (Vec::new(), DraftCounts::default());
    for (stream, request) in streams.into_iter().zip(requests) {
        let (answer, drafts) = collect(stream, request.n);
        answers.push(answer);
        counts += drafts;
    }
    (answers, counts)
}

/// Requests that use everything that sampling has, and the answers without speculation.
fn requests() -> (Vec<GenerateRequest>, Vec<Answer>) {
    let mut requests: Vec<GenerateRequest> = (0..16_u32)
        .map(|i| {
            let shared = if i % 3 == 0 { 40 } else { 0 };
            let own = 1 + (i * 13) % 70;
            let own = (0..own).map(|j| (i * 7 + j) % 50);
            let params = SamplingParams {
                temperature: [0.0, 0.8, 1.3][i as usize % 3],
                top_k: [0, 20][i as usize % 2],
                top_p: [1.0, 0.9][i as usize / 2 % 2],
                min_p: [0.0, 0.05][i as usize / 4 % 2],
                repetition_penalty: [1.0, 1.2][i as usize / 5 % 2],
                presence_penalty: [0.0, 0.4][i as usize / 3 % 2],
                frequency_penalty: [0.0, 0.3][i as usize / 7 % 2],
                logit_bias: vec![(i, 2.0)],
                seed: u64::from(i),
                max_tokens: 30 + i as usize,
                min_tokens: i as usize,
                stop_token_ids: vec![i],
                eos_token_ids: vec![49],
                logprobs: (i % 2 == 0).then_some(2),
                ..SamplingParams::default()
            };
            GenerateRequest {
                n: 1 + i as usize % 3,
                ..GenerateRequest::new((0..shared).chain(own).collect(), params)
            }
        })
        .collect();
    let (answers, counts) = run(&start(off()), &requests);
    assert_eq!(counts, DraftCounts::default());
    // Half of each prediction is the answer, and some of its tokens are wrong.
    for (request, answer) in requests.iter_mut().zip(&answers) {
        request.prediction = answer.token_ids[0].clone();
        for token_id in request.prediction.iter_mut().skip(5).step_by(9) {
            *token_id = (*token_id + 1) % VOCAB_SIZE as u32;
        }
    }
    (requests, answers)
}

#[test]
fn answers_are_the_same_with_drafts_that_are_right_and_wrong() {
    let (requests, plain) = requests();
    let tight = EngineConfig {
        num_blocks: 40,
        ..config()
    };
    let narrow = EngineConfig {
        max_num_batched_tokens: 48,
        ..config()
    };
    let uncached = EngineConfig {
        enable_prefix_caching: false,
        enable_chunked_prefill: false,
        ..config()
    };
    for (name, config) in [
        ("plenty", config()),
        ("tight", tight),
        ("narrow", narrow),
        ("uncached", uncached),
    ] {
        let engine = start(config);
        for round in 0..2 {
            let (answers, counts) = run(&engine, &requests);
            assert_eq!(answers, plain, "{name}, round {round}");
            let num_rejected = counts.num_draft_tokens - counts.num_accepted_tokens;
            assert!(
                counts.num_accepted_tokens > 20 && num_rejected > 20,
                "{name}: {counts:?}"
            );
        }
        if name == "tight" {
            assert!(engine.stats().num_preemptions > 0);
        }
        let by_drafter = engine.stats().drafts[Drafter::PromptLookup as usize];
        assert!(by_drafter.num_accepted_tokens > 80, "{by_drafter:?}");
        engine.shutdown();
        assert!(engine.join(std::time::Duration::from_secs(20)));
        assert_eq!(
            engine.stats().num_used_blocks,
            0,
            "{name}: no block is lost"
        );
    }
}

/// Requests in few words, so that texts repeat, part and end anywhere.
fn short_requests(vocab_size: u32) -> Vec<GenerateRequest> {
    let request = |i: u32| {
        let params = SamplingParams {
            temperature: [0.0, 0.7, 1.4][i as usize % 3],
            top_k: [0, 3][i as usize % 2],
            seed: u64::from(i),
            max_tokens: 50,
            logprobs: Some(1),
            eos_token_ids: vec![(i / 4) % 8],
            min_tokens: 8,
            ..SamplingParams::default()
        };
        let prompt = (0..1 + i * 3).map(|j| (i + j) % vocab_size);
        GenerateRequest {
            n: 1 + i as usize % 2,
            ..GenerateRequest::new(prompt.collect(), params)
        }
    };
    (0..24).map(request).collect()
}

/// A draft model that says other things, with leaves beside its tokens, and lookups in a text of
/// six words: some of their tokens are right. Some texts reach the longest that a text may be.
#[test]
fn answers_are_the_same_with_trees_of_draft_tokens() {
    const VOCAB_SIZE: usize = 6;
    let model = || FakeModel::new(VOCAB_SIZE, Fault::None);
    let requests = short_requests(VOCAB_SIZE as u32);
    for (mode, num_blocks, max_model_len) in [
        (Speculative::DraftModel, 400, 256),
        (Speculative::DraftModel, 30, 256),
        (Speculative::PromptLookup, 400, 80),
        (Speculative::PromptLookup, 30, 256),
        (Speculative::Auto, 400, 80),
    ] {
        let short = |config| EngineConfig {
            max_model_len,
            ..config
        };
        let plain = EngineHandle::start(Box::new(model()), short(off())).unwrap();
        let plain = run(&plain, &requests).0;
        let config = EngineConfig {
            num_blocks,
            speculative: SpeculativeConfig {
                default: mode,
                num_speculative_tokens: 9,
                ..config().speculative
            },
            ..short(config())
        };
        let draft_model: Box<dyn CausalLm> = Box::new(model().salted(5).drafting());
        let engine = EngineHandle::start_with(Box::new(model()), Some(draft_model), config);
        let engine = engine.unwrap();
        let name = format!("{}, {num_blocks} blocks", mode.name());
        for round in 0..2 {
            let (answers, counts) = run(&engine, &requests);
            assert_eq!(answers, plain, "{name}, round {round}");
            assert!(counts.num_accepted_tokens > 0, "{name}: {counts:?}");
            if mode == Speculative::DraftModel {
                // By chance one in six of the first tokens, and as many of the leaves beside them.
                let per_draft = counts.num_accepted_tokens as f64 / counts.num_drafts as f64;
                assert!((0.25..1.2).contains(&per_draft), "{name}: {counts:?}");
            }
        }
        assert_eq!(engine.stats().num_preemptions > 0, num_blocks == 30);
        engine.shutdown();
        assert!(engine.join(std::time::Duration::from_secs(20)));
        assert_eq!(engine.stats().num_used_blocks, 0);
    }
}

#[test]
fn a_right_prediction_takes_one_step_for_many_tokens() {
    let params = SamplingParams {
        temperature: 0.0,
        max_tokens: 65,
        ..SamplingParams::default()
    };
    let mut request = GenerateRequest::new(vec![1, 2, 3], params);
    let engine = start(off());
    let (plain, _) = collect(engine.submit(request.clone()).unwrap(), 1);
    request.prediction = plain.token_ids[0].clone();
    let engine = start(config());
    let (answer, counts) = collect(engine.submit(request.clone()).unwrap(), 1);
    assert_eq!(answer, plain);
    // The prompt's step, then four of sixteen rows. A step is counted after its tokens went out.
    crate::engine::wait_for(|| engine.stats().num_steps == 5);
    assert_eq!(
        counts,
        DraftCounts {
            num_drafts: 4,
            num_draft_tokens: 60,
            num_accepted_tokens: 60
        }
    );
    request.speculative = Some(Speculative::Off);
    let (answer, counts) = collect(engine.submit(request).unwrap(), 1);
    assert_eq!(answer, plain);
    assert_eq!(counts, DraftCounts::default(), "a request's own choice");
}

#[test]
fn a_budget_is_not_overdrawn_by_accepted_drafts() {
    let params = SamplingParams {
        temperature: 0.0,
        max_tokens: 60,
        ..SamplingParams::default()
    };
    let mut request = GenerateRequest::new(vec![4, 5, 6], params);
    let (plain, _) = collect(start(off()).submit(request.clone()).unwrap(), 1);
    request.prediction = plain.token_ids[0].clone();
    let budget = std::sync::Arc::new(ponder::engine::TokenBudget::new(23));
    request.budget = Some(std::sync::Arc::clone(&budget));
    let (answer, _) = collect(start(config()).submit(request).unwrap(), 1);
    assert_eq!(answer.token_ids[0], plain.token_ids[0][..23]);
    assert_eq!(answer.reasons, [Some(FinishReason::Budget)]);
    assert_eq!(budget.spent(), 23);
}

/// Tokens after rejected ones follow the model's distribution, whatever was drafted: chi-square over a small vocabulary.
#[test]
fn sampled_tokens_follow_the_model_whatever_is_drafted() {
    const NUM_DRAWS: usize = 4000;
    let vocab_size = 8;
    let model = || Box::new(FakeModel::new(vocab_size, Fault::None));
    let engine = EngineHandle::start(model(), config()).unwrap();
    let request = |prompt: &[u32], seed: usize, max_tokens: usize| {
        let params = SamplingParams {
            temperature: 2.0,
            seed: seed as u64,
            max_tokens,
            logprobs: Some(0),
            ..SamplingParams::default()
        };
        GenerateRequest::new(prompt.to_vec(), params)
    };
    // The distribution after [0, 1, 2, first] at temperature 2, from the logprobs of forced continuations.
    let first = 3;
    let logits: Vec<f64> = (0..vocab_size as u32)
        .map(|next| {
            let mut forced = request(&[0, 1, 2, first, next], 0, 1);
            forced.params.prompt_logprobs = Some(0);
            forced.speculative = Some(Speculative::Off);
            let mut stream = engine.submit(forced).unwrap();
            loop {
                if let Some(StreamEvent::PromptDone {
                    prompt_logprobs: Some(logprobs),
                    ..
                }) = stream.blocking_recv()
                {
                    return f64::from(logprobs[4].as_ref().unwrap().logprob);
                }
            }
        })
        .collect();
    let weights: Vec<f64> = logits.iter().map(|logit| (logit / 2.0).exp()).collect();
    let total: f64 = weights.iter().sum();
    for drafted in 0..vocab_size as u32 {
        let (mut counts, mut num_drawn, mut num_accepted) = (vec![0.0; vocab_size], 0.0, 0);
        let requests: Vec<_> = (0..NUM_DRAWS)
            .map(|seed| GenerateRequest {
                // What follows `first` is drafted as `drafted`, then more.
                prediction: vec![first, drafted, 5, 6],
                ..request(&[0, 1, 2], seed, 3)
            })
            .collect();
        for batch in requests.chunks(500) {
            let (answers, drafts) = run(&engine, batch);
            num_accepted += drafts.num_accepted_tokens;
            for answer in answers.iter().filter(|a| a.token_ids[0][0] == first) {
                counts[answer.token_ids[0][1] as usize] += 1.0;
                num_drawn += 1.0;
            }
        }
        assert!(num_accepted > 0 && num_drawn > 100.0);
        let chi: f64 = (0..vocab_size)
            .map(|token| {
                let expected = num_drawn * weights[token] / total;
                (counts[token] - expected).powi(2) / expected
            })
            .sum();
        // Seven degrees of freedom: 24.3 is the 0.1 % point.
        assert!(chi < 24.3, "drafted {drafted}: {chi} of {num_drawn}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Any prediction, any prompt.
    #[test]
    fn no_prediction_changes_an_answer(
        prompt in prop::collection::vec(0..6_u32, 1..40),
        prediction in prop::collection::vec(0..6_u32, 0..60),
        temperature in prop::sample::select(vec![0.0_f32, 0.7, 1.5]),
        seed in 0..1000_u64,
    ) {
        let params = SamplingParams {
            temperature,
            seed,
            max_tokens: 40,
            eos_token_ids: vec![5],
            ..SamplingParams::default()
        };
        let model = || Box::new(FakeModel::new(6, Fault::None));
        let mut request = GenerateRequest::new(prompt, params);
        let plain = EngineHandle::start(model(), off()).unwrap();
        let (plain, _) = collect(plain.submit(request.clone()).unwrap(), 1);
        request.prediction = prediction;
        let engine = EngineHandle::start(model(), config()).unwrap();
        let (answer, _) = collect(engine.submit(request).unwrap(), 1);
        prop_assert_eq!(answer, plain);
    }
}

/// A hundred prompts: pieces of this repository's own documents.
fn document_prompts(files: &ModelFiles) -> Vec<Vec<u32>> {
    let tokenizer = Tokenizer::from_files(files).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = ["README.md", "ARCHITECTURE.md", "docs/api.md"];
    let texts = names.map(|name| std::fs::read_to_string(root.join(name)).unwrap());
    let token_ids = tokenizer.encode(&texts.concat(), true, false).unwrap();
    let pieces = token_ids.chunks_exact(token_ids.len() / 100);
    pieces
        .take(100)
        .enumerate()
        .map(|(i, piece)| piece[..8 + i % 50].to_vec())
        .collect()
}

/// A set that leaves enough for some of a draft to be right.
fn some_skips(num_layers: usize) -> SkipSet {
    let odd = (3..num_layers - 2).step_by(4);
    SkipSet::new(num_layers, odd.map(SubLayer::Mlp))
}

fn real_config(speculative: SpeculativeConfig) -> EngineConfig {
    EngineConfig {
        max_model_len: 256,
        num_blocks: 600,
        speculative,
        ..config()
    }
}

fn real_request(prompt: &[u32], temperature: f32) -> GenerateRequest {
    let params = SamplingParams {
        max_tokens: 20,
        temperature,
        seed: 11,
        ignore_eos: true,
        ..SamplingParams::default()
    };
    GenerateRequest::new(prompt.to_vec(), params)
}

/// Every drafter, one request at a time and sixteen together, with blocks to spare and preempted: the same tokens.
#[test]
fn real_answers_are_the_same_whoever_drafts() {
    for (entry, files) in models() {
        let load = || load_model(&files, 256);
        let num_layers = load().info().num_layers;
        let prompts = document_prompts(&files);
        let requests: Vec<_> = (prompts.iter().enumerate())
            .map(|(i, prompt)| real_request(prompt, [0.0, 0.0, 0.8][i % 3]))
            .collect();
        let plain = real_config(SpeculativeConfig::default());
        let plain = run(&EngineHandle::start(load(), plain).unwrap(), &requests).0;
        for drafter in [Drafter::PromptLookup, Drafter::Swift, Drafter::DraftModel] {
            let speculative = SpeculativeConfig {
                default: Speculative::from_name(drafter.name()).unwrap(),
                prompt_lookup_min: 1,
                num_speculative_tokens: 4,
                skip_set: Some(some_skips(num_layers)),
                ignores_costs: true,
            };
            let roomy = real_config(speculative);
            let tight = EngineConfig {
                num_blocks: 60,
                ..roomy.clone()
            };
            // The model drafts for itself: what is drafted is right, and KV of the draft must be kept apart.
            let start = |config: EngineConfig| {
                let draft_model = (drafter == Drafter::DraftModel).then(load);
                EngineHandle::start_with(load(), draft_model, config).unwrap()
            };
            let name = format!("{}, {}", entry.name, drafter.name());
            let engine = start(roomy);
            let (answers, counts) = run(&engine, &requests);
            assert_eq!(answers, plain, "{name}: together");
            assert!(counts.num_accepted_tokens > 0, "{name}: {counts:?}");
            if drafter == Drafter::DraftModel {
                // One in four draft tokens is a leaf beside one that is right.
                let accepted = 10 * counts.num_accepted_tokens;
                assert!(accepted > 7 * counts.num_draft_tokens, "{name}: {counts:?}");
            } else {
                assert!(
                    counts.num_accepted_tokens < counts.num_draft_tokens,
                    "{name}"
                );
            }
            for (request, plain) in requests.iter().zip(&plain).step_by(9) {
                let alone = run(&engine, std::slice::from_ref(request)).0;
                assert_eq!(&alone[0], plain, "{name}: alone");
            }
            let engine = start(tight);
            assert_eq!(run(&engine, &requests).0, plain, "{name}: preempted");
            assert!(engine.stats().num_preemptions > 0, "{name}");
        }
    }
}

/// One row of the model without nothing is a row of the model: a draft that skips nothing is always right.
#[test]
fn a_draft_that_skips_nothing_is_accepted() {
    let files = default_files();
    let speculative = SpeculativeConfig {
        default: Speculative::Swift,
        num_speculative_tokens: 6,
        skip_set: Some(SkipSet::default()),
        ignores_costs: true,
        ..SpeculativeConfig::default()
    };
    let engine = EngineHandle::start(load_model(&files, 256), real_config(speculative)).unwrap();
    let requests: Vec<_> = document_prompts(&files)
        .iter()
        .step_by(5)
        .map(|prompt| real_request(prompt, 0.9))
        .collect();
    let (_, counts) = run(&engine, &requests);
    assert!(counts.num_draft_tokens > 200);
    // One in three is a leaf beside the token that is right.
    let least = counts.num_draft_tokens * 2;
    assert!(counts.num_accepted_tokens * 3 >= least, "{counts:?}");
}
