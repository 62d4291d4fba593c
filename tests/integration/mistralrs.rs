//! The mistralrs backend: architectures that the native engine does not have, behind the same door.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ponder::engine::{
    AdaptationConfig, Backend, Capability, EngineError, FinishReason, GenerateRequest, Media,
    MediaTurn, MistralrsEngine, MistralrsOptions, PoolingParams, RequestStream, SamplingParams,
    Speculative, StreamEvent, TokenBudget, TokenId, TokenLogprobs, TokenWatcher, Watch,
};
use serde_json::{Value, json};

use crate::process::Process;

const VOCAB_SIZE: usize = 262;
/// Of log-probabilities: mistralrs computes in bfloat16 here.
const BOUND: f64 = 0.03;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/goldens/mistralrs")
        .join(name)
}

fn golden(name: &str) -> Value {
    let text = std::fs::read(folder(name).join("golden.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn options(name: &str) -> MistralrsOptions {
    MistralrsOptions {
        path: folder(name),
        isq: None,
        num_threads: 2,
        max_model_len: None,
        max_num_seqs: 8,
        max_num_waiting_seqs: 16,
        vocab_size: VOCAB_SIZE,
    }
}

fn phi3() -> MistralrsEngine {
    MistralrsEngine::load(&options("phi3")).unwrap()
}

fn prompt() -> Vec<TokenId> {
    serde_json::from_value(golden("phi3")["token_ids"].clone()).unwrap()
}

fn greedy(max_tokens: usize) -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        max_tokens,
        ..SamplingParams::default()
    }
}

/// What came of a request: tokens and ends by choice.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    num_prompt_tokens: usize,
    token_ids: Vec<Vec<TokenId>>,
    /// The likeliest tokens of each choice's first position.
    top: Vec<Vec<(TokenId, f32)>>,
    ends: Vec<Option<FinishReason>>,
    logits: Vec<f32>,
}

fn read(mut stream: RequestStream, n: usize) -> Answer {
    let mut answer = Answer {
        token_ids: vec![Vec::new(); n],
        top: vec![Vec::new(); n],
        ends: vec![None; n],
        ..Answer::default()
    };
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::PromptDone {
                num_prompt_tokens, ..
            } => {
                assert_eq!(answer.num_prompt_tokens, 0, "the prompt is announced once");
                answer.num_prompt_tokens = num_prompt_tokens;
            }
            StreamEvent::Token {
                index,
                token_id,
                logprobs,
                ..
            } => {
                assert_eq!(answer.ends[index], None, "nothing follows the end");
                if answer.token_ids[index].is_empty() {
                    answer.top[index] = logprobs.map_or_else(Vec::new, |logprobs| logprobs.top);
                }
                answer.token_ids[index].push(token_id);
            }
            StreamEvent::Finished { index, reason, .. } => answer.ends[index] = Some(reason),
            StreamEvent::Pooled { logits, .. } => answer.logits = logits,
            other => panic!("{other:?}"),
        }
    }
    answer
}

fn run(engine: &MistralrsEngine, request: GenerateRequest) -> Answer {
    let n = request.n;
    read(engine.submit(request).unwrap(), n)
}

fn assert_top(actual: &[(TokenId, f32)], golden: &Value, bound: f64) {
    let expected: Vec<(TokenId, f64)> = serde_json::from_value(golden["top"].clone()).unwrap();
    for (token_id, logprob) in expected {
        let found = actual.iter().find(|(id, _)| *id == token_id);
        let found = f64::from(found.expect("the token is among the likeliest").1);
        assert!(
            (found - logprob).abs() <= bound,
            "{token_id}: {found} is not {logprob}"
        );
    }
}

/// Waits until nothing runs: an end is told before it is counted.
fn wait_until_free(engine: &MistralrsEngine) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let stats = engine.stats();
        if stats.num_requests_running + stats.num_requests_waiting == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{stats:?}");
        std::thread::yield_now();
    }
}

#[test]
fn its_logprobs_are_those_of_transformers() {
    let params = SamplingParams {
        logprobs: Some(12),
        ..greedy(1)
    };
    let golden = golden("phi3");
    let request = GenerateRequest::new(prompt(), params);
    let plain = run(&phi3(), request.clone());
    assert_eq!(plain.num_prompt_tokens, prompt().len());
    assert_eq!(plain.ends, [Some(FinishReason::Length)]);
    assert_top(&plain.top[0], &golden, BOUND);
    let quantised = MistralrsEngine::load(&MistralrsOptions {
        isq: Some("Q8_0".to_owned()),
        ..options("phi3")
    });
    let quantised = run(&quantised.unwrap(), request);
    assert_ne!(quantised.top, plain.top, "the weights are quantised");
    assert_top(&quantised.top[0], &golden, 5.0 * BOUND);
}

#[test]
fn bad_options_are_refused() {
    let isq = MistralrsOptions {
        isq: Some("Q99".to_owned()),
        ..options("phi3")
    };
    let long = MistralrsOptions {
        max_model_len: Some(4096),
        ..options("phi3")
    };
    let nowhere = MistralrsOptions {
        path: folder("nowhere"),
        ..options("phi3")
    };
    for (options, part) in [(isq, "--isq Q99"), (long, "4096"), (nowhere, "cannot load")] {
        let error = MistralrsEngine::load(&options).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn an_image_is_seen() {
    let engine = MistralrsEngine::load(&options("idefics3")).unwrap();
    assert_eq!(engine.capabilities(), [Capability::Vision]);
    let golden = golden("idefics3");
    let image = std::fs::read(folder("idefics3").join("image.png")).unwrap();
    let params = SamplingParams {
        logprobs: Some(12),
        ..greedy(3)
    };
    let shown = |image: Vec<u8>| GenerateRequest {
        media: Some(Arc::new(Media {
            turns: vec![MediaTurn {
                role: "user".to_owned(),
                text: golden["text"].as_str().unwrap().to_owned(),
                images: vec![image],
            }],
        })),
        n: 2,
        ..GenerateRequest::new(vec![1], params.clone())
    };
    let answer = run(&engine, shown(image));
    assert_eq!(json!(answer.num_prompt_tokens), golden["num_prompt_tokens"]);
    assert_eq!(answer.ends, [Some(FinishReason::Length); 2]);
    for top in &answer.top {
        assert_top(top, &golden, BOUND);
    }
    let mut broken = engine.submit(shown(b"no image".to_vec())).unwrap();
    let error = broken.blocking_recv();
    assert!(
        matches!(
            error,
            Some(StreamEvent::Error(EngineError::Image { index: 0, .. }))
        ),
        "{error:?}"
    );
    // Text alone goes the same way as with other models.
    assert_eq!(
        run(&engine, GenerateRequest::new(vec![7, 8], greedy(2))).token_ids[0].len(),
        2
    );
}

#[test]
fn samples_are_functions_of_seed_and_branch() {
    let engine = phi3();
    let sampled = |n: usize, seed: u64| GenerateRequest {
        n,
        ..GenerateRequest::new(
            prompt(),
            SamplingParams {
                max_tokens: 12,
                seed,
                ..SamplingParams::default()
            },
        )
    };
    let alone = run(&engine, sampled(1, 5));
    assert_eq!(alone.token_ids[0].len(), 12);
    assert_eq!(alone, run(&engine, sampled(1, 5)));
    assert_ne!(alone, run(&engine, sampled(1, 6)));
    // The other samples have other random numbers, and run beside other requests.
    let others = (10..14).map(|seed| engine.submit(sampled(1, seed)).unwrap());
    let others: Vec<_> = others.collect();
    let several = run(&engine, sampled(4, 5)).token_ids;
    let differ = |a: usize| (a + 1..4).all(|b| several[a] != several[b]);
    assert!((0..4).all(differ), "{several:?}");
    for other in others {
        assert_eq!(read(other, 1).ends, [Some(FinishReason::Length)]);
    }
    wait_until_free(&engine);
    assert_eq!(engine.stats().generation_tokens, (3 + 4 + 4) * 12);
}

#[derive(Debug, Clone)]
struct Counting(usize);

impl TokenWatcher for Counting {
    fn push(&mut self, _: TokenId, _: Option<&TokenLogprobs>) -> Watch {
        self.0 -= 1;
        match self.0 {
            0 => Watch::End,
            _ => Watch::Continue,
        }
    }

    fn boxed_clone(&self) -> Box<dyn TokenWatcher> {
        Box::new(self.clone())
    }
}

#[test]
fn every_end_is_the_native_engines() {
    let engine = phi3();
    let request = |params| GenerateRequest::new(prompt(), params);
    let whole = run(&engine, request(greedy(20))).token_ids.remove(0);
    assert_eq!(whole.len(), 20);
    let third = whole[2];
    let first = whole.iter().position(|id| *id == third).unwrap();
    let ended = |params, reason| {
        let answer = run(&engine, request(params));
        assert_eq!(answer.ends, [Some(reason)]);
        answer.token_ids[0].clone()
    };
    let eos = SamplingParams {
        eos_token_ids: vec![third],
        ..greedy(20)
    };
    assert_eq!(ended(eos.clone(), FinishReason::Eos), whole[..=first]);
    let ignored = SamplingParams {
        ignore_eos: true,
        ..eos
    };
    assert_eq!(ended(ignored, FinishReason::Length), whole);
    let stop = SamplingParams {
        stop_token_ids: vec![third],
        ..greedy(20)
    };
    assert_eq!(ended(stop, FinishReason::StopToken(third)), whole[..=first]);
    let watched = run(
        &engine,
        GenerateRequest {
            watcher: Some(Box::new(Counting(4))),
            ..request(greedy(20))
        },
    );
    assert_eq!(watched.ends, [Some(FinishReason::Watcher)]);
    assert_eq!(watched.token_ids[0], whole[..4]);
    let budget = Arc::new(TokenBudget::new(7));
    let limited = run(
        &engine,
        GenerateRequest {
            budget: Some(Arc::clone(&budget)),
            n: 3,
            ..request(greedy(20))
        },
    );
    assert_eq!(limited.ends, [Some(FinishReason::Budget); 3]);
    assert_eq!(limited.token_ids.iter().map(Vec::len).sum::<usize>(), 7);
    let late = run(
        &engine,
        GenerateRequest {
            deadline: Some(Instant::now()),
            ..request(greedy(20))
        },
    );
    assert_eq!(late.ends, [Some(FinishReason::Deadline)]);
    // The context's end is an end too.
    let full = run(&engine, request(greedy(1 << 20)));
    assert_eq!(full.ends, [Some(FinishReason::Length)]);
    assert_eq!(
        full.token_ids[0].len() + prompt().len(),
        engine.config().max_model_len
    );
    wait_until_free(&engine);
}

#[test]
fn the_next_token_of_a_prompt_can_be_read() {
    let engine = phi3();
    let last = prompt().len() - 1;
    let pooling = |positions| {
        GenerateRequest::pooling(
            prompt(),
            PoolingParams {
                positions,
                token_ids: (0..VOCAB_SIZE as u32).collect(),
                hidden_state: false,
                mean: false,
            },
        )
    };
    let answer = run(&engine, pooling(vec![last]));
    assert_eq!(answer.ends, [Some(FinishReason::Pooled)]);
    let logits = answer.logits.iter().map(|logit| f64::from(*logit));
    let total = logits.clone().map(f64::exp).sum::<f64>().ln();
    let logprobs: Vec<_> = (0..)
        .zip(logits.map(|logit| (logit - total) as f32))
        .collect();
    assert_top(&logprobs, &golden("phi3"), BOUND);
    let refused = engine.submit(pooling(vec![0, last])).unwrap_err();
    assert!(matches!(
        refused,
        EngineError::Unsupported {
            capability: Capability::PromptLogits,
            ..
        }
    ));
}

#[test]
fn what_it_lacks_is_refused_by_name() {
    let engine = phi3();
    assert!(engine.capabilities().is_empty());
    let plain = || GenerateRequest::new(prompt(), greedy(1));
    let hidden = SamplingParams {
        hidden_state: true,
        ..greedy(1)
    };
    let prompt_logprobs = SamplingParams {
        prompt_logprobs: Some(0),
        ..greedy(1)
    };
    let adapted = GenerateRequest {
        adaptation: Some(Arc::new(AdaptationConfig::slot())),
        ..plain()
    };
    let drafted = GenerateRequest {
        speculative: Some(Speculative::Swift),
        ..plain()
    };
    let shown = GenerateRequest {
        media: Some(Arc::new(Media { turns: Vec::new() })),
        ..plain()
    };
    for (request, name) in [
        (GenerateRequest::new(prompt(), hidden), "hidden_states"),
        (
            GenerateRequest::new(prompt(), prompt_logprobs),
            "prompt_logits",
        ),
        (adapted, "adaptation"),
        (drafted, "speculation"),
        (shown, "vision"),
    ] {
        let error = engine.submit(request).unwrap_err().to_string();
        assert!(
            error.contains("mistralrs") && error.contains(name),
            "{error}"
        );
    }
    // What needs no drafter is not refused.
    let auto = GenerateRequest {
        speculative: Some(Speculative::Auto),
        ..plain()
    };
    assert_eq!(run(&engine, auto).ends, [Some(FinishReason::Length)]);
    let outside = engine.submit(GenerateRequest::new(vec![VOCAB_SIZE as u32], greedy(1)));
    assert!(matches!(outside, Err(EngineError::TokenOutOfRange { .. })));
    let long = engine.submit(GenerateRequest::new(vec![1; 512], greedy(1)));
    assert!(matches!(long, Err(EngineError::PromptTooLong { .. })));
}

#[test]
fn whoever_hangs_up_is_forgotten() {
    let engine = phi3();
    let endless = || {
        let params = SamplingParams {
            ignore_eos: true,
            ..greedy(1 << 20)
        };
        engine
            .submit(GenerateRequest::new(prompt(), params))
            .unwrap()
    };
    let mut dropped: Vec<_> = (0..12).map(|_| endless()).collect();
    // Some run, some wait; all are dropped.
    assert!(dropped[0].blocking_recv().is_some());
    drop(dropped);
    wait_until_free(&engine);
    let mut aborted = endless();
    assert!(aborted.blocking_recv().is_some());
    engine.abort_choice(aborted.id(), 0);
    assert_eq!(read_end(&mut aborted), FinishReason::Abort);
    // The queue is bounded: eight run and sixteen wait.
    let results = (0..32).map(|_| {
        let request = GenerateRequest::new(prompt(), greedy(400));
        engine.submit(request)
    });
    let (admitted, refused): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
    assert!(admitted.len() >= 16 && !refused.is_empty());
    for refused in refused {
        assert!(matches!(refused, Err(EngineError::Overloaded { .. })));
    }
    let mut streams: Vec<_> = admitted.into_iter().map(Result::unwrap).collect();
    engine.abort_all();
    for stream in &mut streams {
        read_end(stream);
    }
    engine.shutdown();
    assert!(engine.join(Duration::from_secs(30)));
    let closed = engine.submit(GenerateRequest::new(prompt(), greedy(1)));
    assert!(matches!(closed, Err(EngineError::ShuttingDown)));
}

fn read_end(stream: &mut RequestStream) -> FinishReason {
    loop {
        match stream.blocking_recv() {
            Some(StreamEvent::Finished { reason, .. }) => return reason,
            Some(_) => {}
            None => panic!("the stream ended without an end"),
        }
    }
}

/// Serves a model of an architecture that only mistralrs has, without being told so.
#[test]
fn auto_serves_what_the_native_engine_does_not_know() {
    let traces = tempfile::tempdir().unwrap();
    let model = folder("idefics3");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
    let server = Process::start_as(command.arg("serve").arg(&model), traces.path(), &[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = reqwest::Client::new();
    let post = |body: Value| {
        let request = client.post(format!("{}/chat/completions", server.base_url));
        runtime.block_on(async {
            let response = request.body(body.to_string()).send().await.unwrap();
            let status = response.status().as_u16();
            let text = response.text().await.unwrap();
            (status, serde_json::from_str::<Value>(&text).unwrap())
        })
    };
    let image = std::fs::read(model.join("image.png")).unwrap();
    let image = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, image);
    let shown = |url: String| {
        json!([
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "What is this?"}
        ])
    };
    let chat = |content: Value| json!({"messages": [{"role": "user", "content": content}], "max_tokens": 2, "temperature": 0});
    let (status, answer) = post(chat(shown(format!("data:image/png;base64,{image}"))));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        answer["usage"]["prompt_tokens"],
        golden("idefics3")["num_prompt_tokens"]
    );
    for url in [
        "http://127.0.0.1:1/image.png",
        "data:image/png;base64,bm8gaW1hZ2U=",
    ] {
        let (status, answer) = post(chat(shown(url.to_owned())));
        assert_eq!(status, 400, "{answer}");
    }
    let mut searched = chat(shown(format!("data:image/png;base64,{image}")));
    searched["search"] = json!({"strategy": "best_of_n"});
    searched["temperature"] = json!(0.7);
    assert_eq!(post(searched).0, 400);
    assert_eq!(post(chat(json!("Hello"))).0, 200);
}
