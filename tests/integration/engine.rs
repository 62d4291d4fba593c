//! The engine through its handle, over a fake model whose answers expose every bookkeeping error.

use std::time::{Duration, Instant};

use ponder::engine::fake_model::{FakeModel, Fault};
use ponder::engine::{
    Backend, EngineConfig, EngineError, EngineHandle, FinishReason, ForkParams, GenerateRequest,
    PoolingParams, RequestStream, SamplingParams, Speculative, StreamEvent,
};

fn config() -> EngineConfig {
    EngineConfig {
        max_model_len: 256,
        max_num_seqs: 32,
        max_num_batched_tokens: 64,
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

fn start(config: EngineConfig, fault: Fault) -> EngineHandle {
    EngineHandle::start(Box::new(FakeModel::new(50, fault)), config).unwrap()
}

fn request(prompt: &[u32], max_tokens: usize, temperature: f32) -> GenerateRequest {
    let params = SamplingParams {
        max_tokens,
        temperature,
        seed: 17,
        ..SamplingParams::default()
    };
    GenerateRequest::new(prompt.to_vec(), params)
}

/// Prompts of mixed lengths; every third shares a long prefix.
fn prompts() -> Vec<Vec<u32>> {
    (0..16_u32)
        .map(|i| {
            let shared = if i % 3 == 0 { 40 } else { 0 };
            let own = 1 + (i * 13) % 70;
            (0..shared)
                .chain((0..own).map(|j| (i * 7 + j) % 50))
                .collect()
        })
        .collect()
}

type Answer = (Vec<Vec<u32>>, Vec<FinishReason>);

fn collect(mut stream: RequestStream, n: usize) -> Result<Answer, EngineError> {
    let mut tokens = vec![Vec::new(); n];
    let mut reasons = vec![FinishReason::Abort; n];
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::PromptDone { .. }
            | StreamEvent::Pooled { .. }
            | StreamEvent::Adapted { .. } => {}
            StreamEvent::Token {
                index, token_id, ..
            } => tokens[index].push(token_id),
            StreamEvent::Finished { index, reason, .. } => reasons[index] = reason,
            StreamEvent::Error(error) => return Err(error),
        }
    }
    Ok((tokens, reasons))
}

fn answers(engine: &EngineHandle, temperature: f32) -> Vec<Answer> {
    let streams: Vec<_> = prompts()
        .iter()
        .map(|prompt| engine.submit(request(prompt, 40, temperature)).unwrap())
        .collect();
    streams
        .into_iter()
        .map(|stream| collect(stream, 1).unwrap())
        .collect()
}

pub fn wait_for(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "the condition never held");
        std::thread::yield_now();
    }
}

#[test]
fn answers_do_not_depend_on_the_batch_chunks_cache_or_preemption() {
    for temperature in [0.0, 0.8] {
        let alone: Vec<Answer> = prompts()
            .iter()
            .map(|prompt| {
                let engine = start(config(), Fault::None);
                let stream = engine.submit(request(prompt, 40, temperature)).unwrap();
                collect(stream, 1).unwrap()
            })
            .collect();
        assert!(alone.iter().all(|(tokens, _)| tokens[0].len() == 40));
        let whole = EngineConfig {
            enable_chunked_prefill: false,
            ..config()
        };
        let uncached = EngineConfig {
            enable_prefix_caching: false,
            ..config()
        };
        let tight = EngineConfig {
            num_blocks: 20,
            ..config()
        };
        for (name, config) in [
            ("chunked", config()),
            ("whole", whole),
            ("uncached", uncached),
            ("tight", tight),
        ] {
            let engine = start(config, Fault::None);
            assert_eq!(answers(&engine, temperature), alone, "{name}");
            assert_eq!(
                answers(&engine, temperature),
                alone,
                "{name} again, with cache hits"
            );
            wait_for(|| engine.stats().num_used_blocks == 0);
            if name == "tight" {
                assert!(engine.stats().num_preemptions > 0);
            }
            if name == "chunked" {
                assert!(engine.stats().prefix_cache_hits > 0);
            }
        }
    }
}

#[test]
fn choices_of_one_request_equal_themselves_under_load_and_differ_from_each_other() {
    let choices = |engine: &EngineHandle| {
        let request = GenerateRequest {
            n: 5,
            ..request(&[1, 2, 3], 30, 1.0)
        };
        engine.submit(request).unwrap()
    };
    let quiet = start(config(), Fault::None);
    let expected = collect(choices(&quiet), 5).unwrap();
    assert!(
        expected
            .0
            .iter()
            .enumerate()
            .all(|(i, a)| !expected.0[..i].contains(a))
    );
    let busy = start(
        EngineConfig {
            num_blocks: 30,
            ..config()
        },
        Fault::None,
    );
    let noise: Vec<_> = prompts()
        .iter()
        .map(|p| busy.submit(request(p, 60, 1.0)).unwrap())
        .collect();
    assert_eq!(collect(choices(&busy), 5).unwrap(), expected);
    drop(noise);
    wait_for(|| busy.stats().num_used_blocks == 0);
}

#[test]
fn a_fork_continues_from_its_parent() {
    // The parent is long, so that it still runs when the fork arrives.
    let engine = start(
        EngineConfig {
            max_model_len: 4096,
            ..config()
        },
        Fault::None,
    );
    let mut parent = engine.submit(request(&[4; 30], 4000, 0.0)).unwrap();
    let mut seen = Vec::new();
    while seen.len() < 5 {
        if let Some(StreamEvent::Token { token_id, .. }) = parent.blocking_recv() {
            seen.push(token_id);
        }
    }
    let params = request(&[], 8, 0.0).params;
    let fork = ForkParams {
        n: 2,
        params,
        deadline: None,
    };
    let (forked, _) = collect(engine.fork(parent.id(), 0, fork.clone()).unwrap(), 2).unwrap();
    let (rest, _) = collect(parent, 1).unwrap();
    seen.extend(&rest[0]);
    assert_eq!(forked[0], forked[1], "greedy forks agree");
    assert_eq!(forked[0].len(), 8);
    assert!(
        seen.windows(8).any(|window| window == forked[0]),
        "and continue the parent"
    );
    let gone = engine
        .fork(ponder::engine::RequestId(999), 0, fork)
        .unwrap();
    assert_eq!(collect(gone, 2), Err(EngineError::UnknownRequest(999)));
    wait_for(|| engine.stats().num_used_blocks == 0);
}

#[test]
fn stops_deadlines_and_aborts_end_a_request_and_free_its_blocks() {
    let engine = start(config(), Fault::None);
    let (tokens, _) = collect(engine.submit(request(&[9], 30, 0.0)).unwrap(), 1).unwrap();
    let stop = tokens[0][6];
    let at = tokens[0].iter().position(|token| *token == stop).unwrap();
    let mut stopped = request(&[9], 30, 0.0);
    stopped.params.stop_token_ids = vec![stop];
    let (cut, reasons) = collect(engine.submit(stopped).unwrap(), 1).unwrap();
    assert_eq!(cut[0], tokens[0][..=at]);
    assert_eq!(reasons, [FinishReason::StopToken(stop)]);

    let late = GenerateRequest {
        deadline: Some(Instant::now()),
        n: 3,
        ..request(&[1], 9, 0.0)
    };
    let (_, reasons) = collect(engine.submit(late).unwrap(), 3).unwrap();
    assert_eq!(reasons, [FinishReason::Deadline; 3]);

    let full = collect(engine.submit(request(&[2; 250], 99, 0.0)).unwrap(), 1).unwrap();
    assert_eq!((full.0[0].len(), full.1[0]), (6, FinishReason::Length));

    drop(engine.submit(request(&[1; 100], 100, 0.0)).unwrap());
    let aborted = engine.submit(request(&[1; 100], 150, 0.0)).unwrap();
    engine.abort(aborted.id());
    assert_eq!(collect(aborted, 1).unwrap().1, [FinishReason::Abort]);
    wait_for(|| engine.stats().num_used_blocks == 0);
}

#[test]
fn bad_requests_are_refused_and_a_full_queue_says_so() {
    let engine = start(
        EngineConfig {
            max_num_waiting_seqs: 3,
            ..config()
        },
        Fault::None,
    );
    let refused = |request| engine.submit(request).map(|_| ()).unwrap_err();
    assert_eq!(refused(request(&[], 1, 0.0)), EngineError::EmptyPrompt);
    assert!(matches!(
        refused(request(&[1; 256], 1, 0.0)),
        EngineError::PromptTooLong { .. }
    ));
    assert!(matches!(
        refused(request(&[50], 1, 0.0)),
        EngineError::TokenOutOfRange { .. }
    ));
    let many = GenerateRequest {
        n: 33,
        ..request(&[1], 1, 0.0)
    };
    assert!(matches!(
        refused(many),
        EngineError::TooManySequences { .. }
    ));
    let mut streams = Vec::new();
    let overloaded = (0..200).find_map(|_| {
        match engine.submit(GenerateRequest {
            n: 3,
            ..request(&[1; 200], 50, 0.0)
        }) {
            Ok(stream) => {
                streams.push(stream);
                None
            }
            Err(error) => Some(error),
        }
    });
    assert!(matches!(
        overloaded,
        Some(EngineError::Overloaded { limit: 3, .. })
    ));
    for stream in streams {
        collect(stream, 3).unwrap();
    }
}

#[test]
fn failures_stay_with_their_request_or_end_the_engine_cleanly() {
    let nan = start(config(), Fault::NanOn(7));
    let bad = nan.submit(request(&[7], 9, 0.0)).unwrap();
    let good = nan.submit(request(&[8, 9], 1, 0.0)).unwrap();
    assert!(matches!(collect(bad, 1), Err(EngineError::Model(_))));
    assert_eq!(collect(good, 1).unwrap().0[0].len(), 1);
    wait_for(|| nan.stats().num_used_blocks == 0);

    let failing = start(config(), Fault::ErrorOn(7));
    assert!(collect(failing.submit(request(&[7], 9, 0.0)).unwrap(), 1).is_err());
    assert!(failing.is_healthy());

    for fault in [Fault::PanicOn(7), Fault::LoseOn(7)] {
        let broken = start(config(), fault);
        let beside = broken.submit(request(&[8], 40, 0.0)).unwrap();
        assert!(collect(broken.submit(request(&[7], 9, 0.0)).unwrap(), 1).is_err());
        assert!(collect(beside, 1).is_err(), "nobody hangs");
        wait_for(|| !broken.is_healthy());
        assert!(broken.submit(request(&[1], 1, 0.0)).is_err());
    }
}

/// What drafts cost is measured once there is nothing else to do, so that the first request does
/// not wait for it; a panic then ends the engine as in a step.
#[test]
fn an_idle_engine_measures_what_drafts_cost() {
    // Measured steps of two rows and more hold token 19, these requests do not.
    let fault = Fault::PanicOn(19);
    let without_drafts = || GenerateRequest {
        speculative: Some(Speculative::Off),
        ..request(&[8], 1, 0.0)
    };
    let plain = start(config(), fault);
    for _ in 0..2 {
        collect(plain.submit(without_drafts()).unwrap(), 1).unwrap();
    }
    assert!(plain.is_healthy(), "nobody drafts there");

    let mut drafting = config();
    drafting.speculative.default = Speculative::Auto;
    let drafting = start(drafting, fault);
    collect(drafting.submit(without_drafts()).unwrap(), 1).unwrap();
    wait_for(|| !drafting.is_healthy());
    assert!(drafting.submit(without_drafts()).is_err());
}

#[test]
fn shutdown_drains_what_was_admitted() {
    let engine = start(config(), Fault::None);
    let stream = engine.submit(request(&[1, 2], 50, 0.0)).unwrap();
    engine.shutdown();
    assert_eq!(
        engine.submit(request(&[1], 1, 0.0)).map(|_| ()),
        Err(EngineError::ShuttingDown)
    );
    assert_eq!(collect(stream, 1).unwrap().0[0].len(), 50);
    assert!(engine.join(Duration::from_secs(20)));
}

#[test]
fn prompt_logprobs_cover_every_token_in_chunks() {
    let engine = start(config(), Fault::None);
    for _ in 0..2 {
        let mut wanted = request(&(0..150).map(|i| i % 50).collect::<Vec<_>>(), 1, 0.0);
        wanted.params.prompt_logprobs = Some(2);
        wanted.params.logprobs = Some(1);
        let mut stream = engine.submit(wanted).unwrap();
        let Some(StreamEvent::PromptDone {
            prompt_logprobs: Some(logprobs),
            ..
        }) = stream.blocking_recv()
        else {
            panic!("the prompt comes first");
        };
        assert_eq!(logprobs.len(), 150);
        assert!(logprobs[0].is_none() && logprobs[1..].iter().all(Option::is_some));
        let entry = logprobs[70].as_ref().unwrap();
        assert_eq!((entry.token_id, entry.top.len()), (20, 2));
        assert!(entry.top[0].1 >= entry.top[1].1 && entry.top[0].1 >= entry.logprob);
    }
}

/// What a pooling request reads: `(position, logits)`.
fn pooled(engine: &EngineHandle, prompt: &[u32], positions: Vec<usize>) -> Vec<(usize, Vec<f32>)> {
    pooled_and_cached(engine, prompt, positions).0
}

/// The same, and how many tokens of the prompt were cached.
fn pooled_and_cached(
    engine: &EngineHandle,
    prompt: &[u32],
    positions: Vec<usize>,
) -> (Vec<(usize, Vec<f32>)>, usize) {
    let pooling = PoolingParams {
        positions,
        token_ids: (0..50).collect(),
        hidden_state: false,
        mean: false,
    };
    let mut stream = engine
        .submit(GenerateRequest::pooling(prompt.to_vec(), pooling))
        .unwrap();
    let mut readings = Vec::new();
    let mut reasons = Vec::new();
    let mut cached = None;
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::PromptDone {
                num_prompt_tokens,
                num_cached_tokens,
                ..
            } => {
                assert_eq!(num_prompt_tokens, prompt.len());
                assert!(readings.is_empty() && cached.is_none());
                cached = Some(num_cached_tokens);
            }
            StreamEvent::Token { .. } => panic!("a pooling request generates nothing"),
            StreamEvent::Pooled {
                position, logits, ..
            } => readings.push((position, logits)),
            StreamEvent::Finished { reason, .. } => reasons.push(reason),
            StreamEvent::Adapted { .. } => {}
            StreamEvent::Error(error) => panic!("{error}"),
        }
    }
    assert_eq!(reasons, [FinishReason::Pooled]);
    (readings, cached.expect("the prompt is announced"))
}

#[test]
fn pooling_reads_what_generation_would_sample_from() {
    let prompt: Vec<u32> = (0..200).map(|i| i * 7 % 50).collect();
    let engine = start(config(), Fault::None);
    // More positions than one step gives logits for, over several chunks.
    let all = pooled(&engine, &prompt, (0..200).collect());
    assert_eq!(all.len(), 200);
    for position in [0, 15, 16, 63, 64, 130, 199] {
        let (at, logits) = &all[position];
        assert_eq!(*at, position);
        // In front of an engine that knows the whole prompt, and in front of a fresh one.
        for engine in [&engine, &start(config(), Fault::None)] {
            assert_eq!(
                pooled(engine, &prompt, vec![position]),
                [(position, logits.clone())]
            );
        }
        let greedy = engine
            .submit(request(&prompt[..=position], 1, 0.0))
            .unwrap();
        let (tokens, _) = collect(greedy, 1).unwrap();
        let best = (0..50).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        assert_eq!(tokens[0], [best.unwrap() as u32]);
    }
    // What is read later costs no more than what comes after the cached prefix.
    let settled = || {
        wait_for(|| {
            let stats = engine.stats();
            stats.num_requests_waiting + stats.num_requests_running == 0
        });
        engine.stats()
    };
    let before = settled();
    let (_, num_cached) = pooled_and_cached(&engine, &prompt, vec![198, 199]);
    let after = settled();
    assert_eq!(after.prefix_cache_hits - before.prefix_cache_hits, 198);
    assert_eq!(num_cached, 198);
    wait_for(|| engine.stats().num_used_blocks == 0);
    for positions in [vec![], vec![3, 3], vec![4, 2], vec![200]] {
        let pooling = PoolingParams {
            positions,
            ..PoolingParams::default()
        };
        let refused = engine.submit(GenerateRequest::pooling(prompt.clone(), pooling));
        assert!(matches!(refused, Err(EngineError::PoolingPositions { .. })));
    }
}
