//! Adaptation in the engine: it is one request's own, whatever runs beside it.

use std::sync::Arc;

use ponder::engine::{
    AdaptationConfig, AdaptationReport, Backend, EngineConfig, EngineError, EngineHandle,
    ForkParams, GenerateRequest, RequestStream, SamplingParams, Steering, StreamEvent,
};
use ponder::model::adapt::{KvPolicy, RouterGradient, RouterLayers};
use ponder::model::{AdaptationPhase, CausalLm, ForwardBatch, SequenceRows};

use crate::engine::wait_for;
use crate::moe::{folder, load};

const VOCAB_SIZE: u32 = 96;

fn config(num_blocks: usize) -> EngineConfig {
    EngineConfig {
        max_model_len: 256,
        max_num_seqs: 16,
        max_num_batched_tokens: 32,
        block_size: 16,
        num_blocks,
        local: None,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        max_num_waiting_seqs: 100,
        is_shared: false,
        speculative: Default::default(),
    }
}

fn start(name: &str, num_blocks: usize) -> EngineHandle {
    let files = ponder::model::ModelFiles::open(&folder(name)).unwrap();
    let model = ponder::model::load(&files, Default::default()).unwrap();
    EngineHandle::start(model, config(num_blocks)).unwrap()
}

fn prompt(seed: u32, len: u32) -> Vec<u32> {
    (0..len)
        .map(|i| (i * i * 7 + i * seed + seed) % VOCAB_SIZE)
        .collect()
}

fn request(prompt: &[u32], max_tokens: usize, config: Option<AdaptationConfig>) -> GenerateRequest {
    let params = SamplingParams {
        max_tokens,
        temperature: 0.8,
        seed: 5,
        ..SamplingParams::default()
    };
    GenerateRequest {
        adaptation: config.map(Arc::new),
        ..GenerateRequest::new(prompt.to_vec(), params)
    }
}

fn router() -> AdaptationConfig {
    AdaptationConfig {
        steps: 3,
        interval: 0,
        layers: RouterLayers::default(),
        ..AdaptationConfig::router()
    }
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<Vec<u32>>,
    reports: Vec<AdaptationReport>,
    steering: Option<Arc<Steering>>,
}

fn collect(mut stream: RequestStream) -> Result<Answer, EngineError> {
    let mut answer = Answer::default();
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::Token {
                index, token_id, ..
            } => {
                let len = answer.tokens.len().max(index + 1);
                answer.tokens.resize(len, Vec::new());
                answer.tokens[index].push(token_id);
            }
            StreamEvent::Adapted {
                report, steering, ..
            } => {
                answer.reports.push(report);
                answer.steering = Some(steering);
            }
            StreamEvent::Error(error) => return Err(error),
            _ => {}
        }
    }
    Ok(answer)
}

fn run(engine: &EngineHandle, request: GenerateRequest) -> Answer {
    collect(engine.submit(request).unwrap()).unwrap()
}

#[test]
fn an_adapted_request_changes_no_other_and_no_cached_prefix() {
    let engine = start("qwen2_moe", 100);
    let (shared, other) = (prompt(3, 70), prompt(11, 50));
    let plain = run(&engine, request(&shared, 12, None));
    let plain_other = run(&engine, request(&other, 12, None));
    let adapted = run(&engine, request(&shared, 12, Some(router())));
    assert_eq!(adapted.reports.len(), 1);
    let report = &adapted.reports[0];
    assert_eq!(report.num_tokens, shared.len() - 1);
    assert!(report.losses.last() < report.losses.first(), "{report:?}");
    assert_ne!(adapted.tokens, plain.tokens, "it changes what is sampled");
    // All of it at once, twice: on fresh blocks, and on what the first run left in the cache.
    for _ in 0..2 {
        let streams = [
            request(&shared, 12, Some(router())),
            request(&shared, 12, None),
            request(&other, 12, None),
            request(&shared, 12, Some(AdaptationConfig::slot())),
            request(&shared, 12, Some(router())),
        ]
        .map(|request| engine.submit(request).unwrap());
        let [first, same_prompt, beside, slot, second] =
            streams.map(|stream| collect(stream).unwrap());
        assert_eq!(first, adapted);
        assert_eq!(second, adapted);
        assert_eq!(same_prompt.tokens, plain.tokens);
        assert_eq!(beside.tokens, plain_other.tokens);
        assert_ne!(slot.tokens, plain.tokens);
    }
    wait_for(|| engine.stats().num_used_blocks == 0);
}

/// Adapts and decodes greedily by hand, a token a step, on a model of its own.
fn by_hand(prompt: &[u32], num_tokens: usize, config: AdaptationConfig) -> Vec<u32> {
    let mut model = load(&folder("qwen2_moe"));
    model.allocate_kv_cache(16, 16, 256).unwrap();
    let block_table: Vec<u32> = (0..16).collect();
    let mut token_ids = prompt.to_vec();
    let positions: Vec<u32> = (0..256).collect();
    let mut steering = Steering::default();
    let mut logits = Vec::new();
    let mut is_adapted = false;
    let mut computed = 0;
    while token_ids.len() < prompt.len() + num_tokens {
        let end = token_ids.len() - usize::from(!is_adapted);
        let rows = SequenceRows {
            block_table: &block_table,
            num_rows: end - computed,
            context_len: end,
            leaves: &[],
        };
        let batch = ForwardBatch {
            token_ids: &token_ids[computed..end],
            positions: &positions[computed..end],
            slot_mapping: &positions[computed..end],
            sequences: &[rows],
            adapters: &[None],
            steering: &[Some(&steering)],
            logits_rows: &[(end - computed - 1) as u32],
            skip: None,
            local: None,
        };
        if !is_adapted {
            let mut phase = AdaptationPhase::new(Arc::new(config.clone()), Steering::default());
            while !phase.is_done() {
                model
                    .adaptation()
                    .unwrap()
                    .adapt(&batch, &token_ids[1..], &mut phase)
                    .unwrap();
            }
            steering = phase.finish().0;
            is_adapted = true;
        } else {
            model.forward(&batch, &mut logits).unwrap();
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
            token_ids.push(best.unwrap() as u32);
        }
        computed = end;
    }
    token_ids.split_off(prompt.len())
}

#[test]
fn the_engine_generates_what_the_model_does_by_hand() {
    let engine = start("qwen2_moe", 100);
    let prompt = prompt(9, 60);
    for gradient in [RouterGradient::Exact, RouterGradient::Truncated] {
        let config = AdaptationConfig {
            gradient,
            ..router()
        };
        let mut request = request(&prompt, 10, Some(config.clone()));
        request.params.temperature = 0.0;
        let answer = run(&engine, request);
        assert_eq!(
            answer.tokens[0],
            by_hand(&prompt, 10, config),
            "{gradient:?}"
        );
    }
}

#[test]
fn a_phase_computes_the_prompt_that_it_adapts_to() {
    let prompt = prompt(9, 70);
    let steps = |window, prompt_logprobs| {
        let engine = start("qwen2_moe", 100);
        let config = AdaptationConfig { window, ..router() };
        let mut request = request(&prompt, 4, Some(config));
        request.params.prompt_logprobs = prompt_logprobs;
        let answer = run(&engine, request);
        wait_for(|| engine.stats().num_used_blocks == 0);
        (engine.stats().num_steps, answer)
    };
    // A step a token, and those of the 37 tokens before the window, at most 32 each.
    let (num_steps, answer) = steps(512, None);
    assert_eq!(num_steps, 4);
    assert_eq!(steps(32, None).0, 6);
    // Whoever asks what the prompt's tokens were worth needs all of them run; the phase is the
    // same.
    let (num_steps, same) = steps(512, Some(0));
    assert!(num_steps > 6);
    assert_eq!(same, answer);
}

#[test]
fn a_steering_from_a_token_on_is_what_stale_keys_and_values_leave() {
    let engine = start("qwen2_moe", 100);
    let prompt = prompt(9, 60);
    let config = AdaptationConfig {
        kv: KvPolicy::Stale,
        // Layers below the last too: it changes no keys and values.
        layers: RouterLayers {
            share: 1.0,
            ..RouterLayers::default()
        },
        ..router()
    };
    let adapted = run(&engine, request(&prompt, 40, Some(config)));
    let given = |steering_from: usize| GenerateRequest {
        steering: adapted.steering.clone(),
        steering_from,
        ..request(&prompt, 40, None)
    };
    assert_eq!(run(&engine, given(prompt.len() - 1)).tokens, adapted.tokens);
    let logprobs = |mut request: GenerateRequest| {
        request.params.prompt_logprobs = Some(0);
        let mut stream = engine.submit(request).unwrap();
        while let Some(event) = stream.blocking_recv() {
            if let StreamEvent::PromptDone {
                prompt_logprobs, ..
            } = event
            {
                let all = prompt_logprobs.unwrap().into_iter().flatten();
                return all.map(|token| token.logprob).collect::<Vec<f32>>();
            }
        }
        panic!("no logprobs");
    };
    // Entry `i` is what the token at `i` says of the next.
    let from = 30;
    let [plain, all, later] = [request(&prompt, 40, None), given(0), given(from)].map(logprobs);
    assert_eq!(later[..from], plain[..from]);
    assert_ne!(later[from..], plain[from..]);
    assert_ne!(later[from..], all[from..]);
    wait_for(|| engine.stats().num_used_blocks == 0);
}

#[test]
fn what_was_found_can_be_given_to_other_requests() {
    let engine = start("olmoe", 100);
    let prompt = prompt(4, 66);
    let adapted = run(&engine, request(&prompt, 8, Some(router())));
    let given = |config| GenerateRequest {
        steering: adapted.steering.clone(),
        ..request(&prompt, 8, config)
    };
    // Under it from the first token on: the second finds the first one's blocks.
    for _ in 0..2 {
        assert_eq!(run(&engine, given(None)).tokens, adapted.tokens);
    }
    assert!(engine.stats().prefix_cache_hits > 0);
    let plain = run(&engine, request(&prompt, 8, None));
    assert_ne!(plain.tokens, adapted.tokens);
}

#[test]
fn siblings_share_the_prompts_phase_and_go_on_alone() {
    let engine = start("mixtral", 200);
    let prompt = prompt(8, 40);
    let config = AdaptationConfig {
        interval: 16,
        max_phases: 3,
        window: 48,
        ..router()
    };
    let mut request = request(&prompt, 40, Some(config.clone()));
    request.n = 3;
    let together = run(&engine, request.clone());
    // One phase for the prompt, two for each choice.
    assert_eq!(together.reports.len(), 1 + 3 * 2);
    wait_for(|| engine.stats().num_used_blocks == 0);
    // Less room than three sequences take: some are computed again, or skip a phase, but all end.
    let tight = start("mixtral", 10);
    let squeezed = run(&tight, request.clone());
    assert!(squeezed.tokens.iter().all(|tokens| tokens.len() == 40));
    request.n = 1;
    let alone = run(&engine, request);
    assert_eq!(alone.tokens[0], together.tokens[0]);
    let stale = AdaptationConfig {
        kv: KvPolicy::Stale,
        ..config
    };
    let stale = run(&engine, self::request(&prompt, 40, Some(stale)));
    assert_eq!(stale.reports.len(), 3);
}

#[test]
fn a_fork_of_an_adapting_sequence_disturbs_neither() {
    let engine = start("qwen2_moe", 100);
    let prompt = prompt(6, 64);
    let config = AdaptationConfig {
        steps: 40,
        ..router()
    };
    let alone = run(&engine, request(&prompt, 12, Some(config.clone())));
    let running = engine
        .submit(request(&prompt, 12, Some(config.clone())))
        .unwrap();
    let fork = ForkParams {
        n: 2,
        params: request(&prompt, 12, None).params,
        deadline: None,
    };
    let forked = engine.fork(running.id(), 0, fork).unwrap();
    assert_eq!(collect(running).unwrap(), alone);
    // It may have come before the prompt was read, which is an error of its own.
    if let Ok(forked) = collect(forked) {
        assert!(forked.tokens.iter().all(|tokens| tokens.len() == 12));
    }
    wait_for(|| engine.stats().num_used_blocks == 0);
}

#[test]
fn what_a_model_cannot_do_is_refused() {
    let refused = |name: &str, config: AdaptationConfig| {
        let engine = start(name, 50);
        match engine.submit(request(&prompt(1, 40), 4, Some(config))) {
            Err(EngineError::Adaptation { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused("slot", AdaptationConfig::router()), "method");
    assert_eq!(refused("deepseek_v2", router()), "gradient");
    let steps = AdaptationConfig {
        steps: 0,
        ..router()
    };
    assert_eq!(refused("olmoe", steps), "steps");
    let truncated = AdaptationConfig {
        gradient: RouterGradient::Truncated,
        ..router()
    };
    let engine = start("deepseek_v2", 50);
    let answer = run(&engine, request(&prompt(1, 40), 4, Some(truncated)));
    assert_eq!(answer.reports.len(), 1);
    // Too short to learn from: it answers without.
    let short = run(
        &engine,
        request(&prompt(1, 20), 4, Some(AdaptationConfig::slot())),
    );
    assert!(short.reports.is_empty() && short.tokens[0].len() == 4);
}
