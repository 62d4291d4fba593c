//! Searches over HTTP with the small model of `support.rs`.

use futures::FutureExt;
use ponder::api::ServerConfig;
use ponder::engine::{EngineOptions, GenerateRequest, SamplingParams, StreamEvent};
use ponder::reward::{
    Candidate, Programs, PythonRunner, RemoteScorer, RewardContext, RewardResources, RewardServer,
    RewardSpec, Scorer, ValueHead, build,
};
use ponder::trace::TraceRecord;
use ponder::train::{TrainOptions, load_examples, train};
use ponder_sandbox::{Limits, Sandbox};
use serde_json::{Value, json};

use crate::api::{CHAT, ask, sse, with};
use crate::server::{Server, options, shared_server, start, start_with};

const STRATEGIES: [&str; 10] = [
    "auto",
    "self_consistency",
    "deepconf",
    "best_of_n",
    "beam",
    "dvts",
    "rebase",
    "particle_filtering",
    "mcts",
    "vm_mcts",
];

fn searched(search: Value) -> Value {
    let body = with(
        ask("What is 17 + 25? Think in short steps."),
        "search",
        search,
    );
    let body = with(body, "temperature", json!(0.8));
    with(with(body, "seed", json!(3)), "max_tokens", json!(40))
}

fn content(body: &Value) -> &str {
    body["choices"][0]["message"]["content"]
        .as_str()
        .unwrap_or_else(|| panic!("no answer: {body}"))
}

fn small(strategy: &str) -> Value {
    json!({"strategy": strategy, "n": 4, "branch": 2, "iterations": 3, "return_tree": true,
        "step": {"max_tokens": 12}, "budget": {"tokens": 200}})
}

#[test]
fn every_strategy_answers_within_its_budget_and_replays() {
    let server = shared_server();
    for strategy in STRATEGIES {
        let (status, first) = server.post(CHAT, searched(small(strategy)));
        assert_eq!(status, 200, "{strategy}: {first}");
        let search = &first["search"];
        assert_eq!(search["strategy"], strategy);
        assert!(search["trace_id"].as_str().unwrap().starts_with("trace-"));
        let tokens = search["tokens"].as_u64().unwrap();
        assert!(tokens > 0 && tokens <= 200, "{strategy}: {search}");
        assert_eq!(first["usage"]["completion_tokens"], tokens);
        let details = &first["usage"]["completion_tokens_details"];
        assert!(details["reasoning_tokens"].as_u64().unwrap() < tokens);
        let nodes = search["tree"]["nodes"].as_array().unwrap();
        assert_eq!(nodes.len() as u64, search["nodes"].as_u64().unwrap() + 1);
        assert!(!content(&first).is_empty(), "{strategy}");
        let (_, second) = server.post(CHAT, searched(small(strategy)));
        assert_eq!(content(&first), content(&second), "{strategy}");
        if search["stopped"] != "budget" {
            assert_eq!(
                search["tree"]["nodes"], second["search"]["tree"]["nodes"],
                "{strategy}"
            );
        }
    }
    server.wait_until_free();
}

#[test]
fn a_search_replays_under_load() {
    let server = shared_server();
    let body = || {
        searched(
            json!({"strategy": "mcts", "branch": 2, "iterations": 3, "return_tree": true,
            "step": {"max_tokens": 8}}),
        )
    };
    let (_, alone) = server.post(CHAT, body());
    let crowded = std::thread::scope(|scope| {
        for seed in 0..6 {
            scope.spawn(move || {
                let noise = with(ask("Tell me a story."), "temperature", json!(1));
                server.post(CHAT, with(noise, "seed", json!(seed)))
            });
        }
        server.post(CHAT, body()).1
    });
    assert_eq!(
        alone["search"]["tree"]["nodes"],
        crowded["search"]["tree"]["nodes"]
    );
    assert_eq!(alone["search"]["value"], crowded["search"]["value"]);
    assert_eq!(content(&alone), content(&crowded));
}

#[test]
fn a_streamed_search_spells_the_same_answer() {
    let server = shared_server();
    for strategy in ["best_of_n", "beam", "rebase", "particle_filtering"] {
        let mut search = small(strategy);
        // The first one leaves the prompt in the cache: usage tells.
        let whole = [(); 2].map(|()| server.post(CHAT, searched(search.clone())).1);
        let [_, whole] = whole;
        search["stream_events"] = json!(true);
        let body = with(searched(search), "stream", json!(true));
        let body = with(body, "stream_options", json!({"include_usage": true}));
        let chunks = sse(&server.post_with(CHAT, body.to_string(), &[]).1);
        let text: String = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
            .collect();
        assert_eq!(text, content(&whole), "{strategy}");
        let events: Vec<&str> = chunks
            .iter()
            .filter_map(|chunk| chunk["search_event"]["event"].as_str())
            .collect();
        assert!(events.contains(&"spawn") && events.contains(&"score"));
        let last = chunks.last().unwrap();
        assert_eq!(last["search"]["strategy"], strategy);
        assert_eq!(last["usage"], whole["usage"], "{strategy}");
        let ends = chunks
            .iter()
            .filter(|chunk| chunk["choices"][0]["finish_reason"].is_string());
        assert_eq!(ends.count(), 1);
    }
}

#[test]
fn n_returns_the_best_ranked_and_a_verifier_chooses() {
    let server = shared_server();
    let search = json!({"strategy": "best_of_n", "n": 6,
        "reward": [{"kind": "verifier", "type": "regex", "pattern": "42"}, {"kind": "likelihood", "weight": 0.01}]});
    let body = with(searched(search), "n", json!(3));
    let (status, answer) = server.post(CHAT, with(body, "logprobs", json!(true)));
    assert_eq!(status, 200, "{answer}");
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    let values: Vec<f64> = choices
        .iter()
        .map(|c| c["value"].as_f64().unwrap())
        .collect();
    assert!(values.is_sorted_by(|a, b| a >= b), "{values:?}");
    for choice in choices {
        let text = choice["message"]["content"].as_str().unwrap();
        assert_eq!(choice["value"].as_f64().unwrap() > 0.5, text.contains("42"));
        assert!(choice["logprobs"]["content"].as_array().unwrap().len() > 1);
    }
}

#[test]
fn stop_strings_hold_and_presets_search() {
    let server = shared_server();
    let body = with(searched(json!("best_of_n")), "stop", json!(["+"]));
    let (_, answer) = server.post(CHAT, body);
    assert!(!content(&answer).contains('+'), "{answer}");
    let (_, models) = server.get("/v1/models");
    assert!(models.contains("m:vm_mcts"));
    let body = with(ask("Say yes or no."), "temperature", json!(0.7));
    let (_, answer) = server.post(
        CHAT,
        with(body.clone(), "model", json!("m:self_consistency")),
    );
    assert_eq!(answer["search"]["strategy"], "self_consistency");
    let (_, answer) = server.post(
        CHAT,
        with(body.clone(), "reasoning_effort", json!("medium")),
    );
    assert_eq!(answer["search"]["strategy"], "self_consistency");
    let (_, answer) = server.post(CHAT, with(body, "reasoning_effort", json!("low")));
    assert!(answer["search"].is_null());
    let (_, metrics) = server.get("/metrics");
    assert!(metrics.contains("ponder_searches_total{"), "{metrics}");
}

#[test]
fn mistakes_name_the_field() {
    let server = shared_server();
    for (search, param) in [
        (json!({"strategy": "magic"}), "search.strategy"),
        (json!({"strategy": "mcts", "width": 2}), "search.width"),
        (json!({"strategy": "mcts", "branch": 0}), "search.branch"),
        (
            json!({"strategy": "beam", "n": 4, "branch": 5}),
            "search.branch",
        ),
        (json!({"strategy": "best_of_n", "n": 100_000}), "search.n"),
        (
            json!({"strategy": "best_of_n", "budget": {"tokens": 0}}),
            "search.budget.tokens",
        ),
        (
            json!({"strategy": "beam", "step": {"regex": "("}}),
            "search.step.regex",
        ),
        (
            json!({"strategy": "beam", "reward": {"kind": "majority"}}),
            "search.reward",
        ),
        (
            json!({"strategy": "best_of_n", "reward": {"kind": "nothing"}}),
            "search.reward[0].kind",
        ),
        (
            json!({"strategy": "best_of_n", "reward": {"kind": "verifier", "type": "python", "tests": ["assert f()"]}}),
            "search.reward[0].type",
        ),
    ] {
        let (status, body) = server.post(CHAT, searched(search.clone()));
        assert_eq!(status, 400, "{search}: {body}");
        assert_eq!(body["error"]["param"], param, "{search}: {body}");
    }
    let greedy = with(searched(json!("best_of_n")), "temperature", json!(0));
    let (status, body) = server.post(CHAT, greedy);
    assert_eq!(
        (status, &body["error"]["param"]),
        (400, &json!("temperature"))
    );
}

fn prompt_of(words: usize) -> Value {
    let text: Vec<String> = (0..words).map(|i| format!("w{}", i * 7919 % 100)).collect();
    json!({"model": "m", "prompt": text.join(" "), "max_tokens": 8, "temperature": 1, "seed": 1})
}

/// Prompt tokens that the engine was asked for, and those it found in the cache.
fn prefix_counts(server: &Server) -> (u64, u64) {
    server.wait_until_free();
    let stats = server.state.served().unwrap().engine.stats();
    (stats.prefix_cache_queries, stats.prefix_cache_hits)
}

#[test]
fn sixty_four_leaves_store_a_long_prompt_once() {
    // A thousand tokens take 63 blocks. 64 leaves that each had their own would need 4,000.
    let server = start(
        ServerConfig::default(),
        &EngineOptions {
            kv_cache_bytes: 96 << 20,
            ..options()
        },
    );
    let engine = &server.state.served().unwrap().engine;
    let num_blocks = engine.config().num_blocks;
    assert!(num_blocks < 64 * 63);
    let mut body = prompt_of(340);
    body["search"] = json!({"strategy": "best_of_n", "n": 64});
    let (status, answer) = server.post("/v1/completions", body);
    assert_eq!(status, 200, "{answer}");
    let prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!((900..1016).contains(&prompt), "{prompt}");
    let stats = engine.stats();
    // The prompt was computed once: one prefill, then eight tokens of each leaf.
    assert_eq!(stats.num_preemptions, 0);
    let steps = stats.num_steps;
    assert!(steps < 20, "{steps} steps");
    server.wait_until_free();
}

#[test]
fn deeper_nodes_find_their_prefix_in_the_cache() {
    let server = start(ServerConfig::default(), &options());
    let mut body = prompt_of(100);
    body["max_tokens"] = json!(96);
    body["search"] = json!({"strategy": "beam", "n": 4, "branch": 2, "max_depth": 4,
        "step": {"max_tokens": 16}});
    let before = prefix_counts(&server);
    let (status, answer) = server.post("/v1/completions", body);
    assert_eq!(status, 200, "{answer}");
    let prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    // Three more rounds of two beams, and the best of all that is then finished, read everything from the cache but
    // the token that was sampled last.
    let after = prefix_counts(&server);
    let (queries, hits) = (after.0 - before.0, after.1 - before.1);
    assert!(queries > 7 * prompt, "{queries} of {prompt}");
    assert!(queries - hits <= prompt + 7, "{} computed", queries - hits);
}

#[test]
fn a_reader_who_leaves_ends_the_search() {
    let server = start(ServerConfig::default(), &options());
    let body = with(
        searched(json!({"strategy": "mcts", "iterations": 500, "stream_events": true})),
        "stream",
        json!(true),
    );
    let body = with(with(body, "max_tokens", json!(900)), "seed", json!(1));
    server.runtime.block_on(async {
        let client = reqwest::Client::new();
        let request = client
            .post(format!("{}{CHAT}", server.url))
            .body(body.to_string());
        let mut response = request.send().await.unwrap();
        let chunk = response.chunk().await.unwrap();
        assert!(chunk.is_some());
    });
    server.wait_until_free();
}

#[test]
fn python_tests_score_the_code_of_an_answer() {
    let exe = std::path::PathBuf::from(env!("CARGO_BIN_EXE_ponder"));
    let sandbox = Sandbox::new(exe, None, Limits::default()).unwrap();
    let resources = RewardResources {
        python: Some(PythonRunner::new(sandbox, Programs::new(2, false))),
        ..RewardResources::default()
    };
    let spec: RewardSpec = serde_json::from_value(json!({
        "kind": "verifier", "type": "python", "prefix": "import math\n",
        "tests": ["assert area(1) > 3", "assert area(0) == 0", "assert area(2) == 4 * math.pi"],
    }))
    .unwrap();
    let context = RewardContext::default();
    let scorer = build(&[spec], &resources, &context, None).now_or_never();
    let scorer = scorer.expect("nothing is waited for").unwrap();
    let answer = |text: &str| Candidate {
        text: text.to_owned(),
        is_complete: true,
        ..Candidate::default()
    };
    let scores = futures::executor::block_on(async {
        // The scorer runs programs on the runtime's blocking threads.
        let runtime = &shared_server().runtime;
        let candidates = [
            answer("Like so:\n```python\ndef area(r):\n    return math.pi * r ** 2\n```\nUse it."),
            answer("def area(r):\n    return 3 * r"),
            answer("def area(r): syntax error"),
            answer("import os\nos._exit(0)"),
        ];
        let scorer = std::sync::Arc::new(scorer);
        let run = runtime.spawn(async move { scorer.score(&candidates, None).await });
        run.await.unwrap().unwrap()
    });
    assert_eq!(scores[0], 1.0);
    assert!((scores[1] - 1.0 / 3.0).abs() < 1e-9, "{scores:?}");
    assert_eq!(scores[2..], [0.0, 0.0]);
}

/// Search, outcomes, training, search again: the states that training computes are those that a search taps.
#[test]
fn a_value_head_trained_on_traces_steers_a_search() {
    let folder = tempfile::tempdir().unwrap();
    let (traces, head) = (
        folder.path().join("traces.ndjson"),
        folder.path().join("head.safetensors"),
    );
    let server = shared_server();
    let mut lines = String::new();
    for question in ["2 + 3", "4 + 4", "7 - 2", "9 - 1", "3 + 3", "6 + 1"] {
        let body = with(
            ask(&format!("What is {question}?")),
            "search",
            json!({"strategy": "best_of_n", "n": 4, "return_tree": true}),
        );
        let body = with(with(body, "temperature", json!(1)), "seed", json!(2));
        let (_, mut answer) = server.post(CHAT, body);
        let trace = &mut answer["search"]["tree"];
        for node in trace["nodes"].as_array_mut().unwrap().iter_mut().skip(1) {
            let is_short = node["token_ids"].as_array().unwrap().len() < 12;
            node["outcome"] = json!(f64::from(u8::from(is_short)));
        }
        lines.push_str(&format!("{trace}\n"));
    }
    std::fs::write(&traces, lines).unwrap();
    let engine = &server.state.served().unwrap().engine;
    let target = ponder::trace::Target::RestMcts;
    let mut seen = 0;
    let data = load_examples(&[traces], engine.as_ref(), target, |done, _| seen = done).unwrap();
    assert_eq!(seen, data.examples.len());
    let options = TrainOptions {
        held_out: 0.34,
        max_epochs: 3,
        ..TrainOptions::default()
    };
    let report = train(&data, &options, &head, |_, _, _| {}).unwrap();
    assert!(report.num_held_out > 0);
    let hidden_size = engine.model_info().hidden_size;
    let head = std::sync::Arc::new(ValueHead::load(&head, hidden_size).unwrap());
    let resources = RewardResources {
        value_head: Some(std::sync::Arc::clone(&head)),
        ..RewardResources::default()
    };
    let searching = start_with(ServerConfig::default(), &options_for_search(), resources);
    for strategy in ["mcts", "vm_mcts"] {
        let (status, answer) = searching.post(CHAT, searched(small(strategy)));
        assert_eq!(status, 200, "{answer}");
        // The value that the search gave an answer is the head's word on the state that training would compute.
        let nodes = answer["search"]["tree"]["nodes"].as_array().unwrap();
        let checked = nodes
            .iter()
            .skip(1)
            .filter(|node| node["score"].is_number());
        let trace: TraceRecord = serde_json::from_value(answer["search"]["tree"].clone()).unwrap();
        assert!(checked.count() > 0, "{strategy}: {answer}");
        for (id, node) in trace.nodes.iter().enumerate().skip(1) {
            let Some(score) = node.score.filter(|score| *score > 0.0) else {
                continue;
            };
            let mut tokens = trace.prompt_token_ids.clone();
            tokens.extend(trace.answer_token_ids(id));
            tokens.pop();
            let num_tokens = trace.answer_token_ids(id).len() as f64;
            let likelihood = (trace.nodes[id].logprob / num_tokens) as f32;
            assert_eq!(
                head.value(&state_after(&searching, tokens), likelihood),
                score,
                "{strategy} {id}"
            );
        }
    }
}

fn options_for_search() -> EngineOptions {
    EngineOptions {
        max_model_len: Some(512),
        ..options()
    }
}

fn state_after(server: &Server, token_ids: Vec<u32>) -> Vec<f32> {
    let params = SamplingParams {
        max_tokens: 1,
        hidden_state: true,
        ..SamplingParams::default()
    };
    let engine = &server.state.served().unwrap().engine;
    let mut stream = engine
        .submit(GenerateRequest::new(token_ids, params))
        .unwrap();
    while let Some(event) = stream.blocking_recv() {
        if let StreamEvent::Token {
            hidden_state: Some(state),
            ..
        } = event
        {
            return state;
        }
    }
    panic!("no hidden state");
}

#[test]
fn rewards_score_by_themselves() {
    let server = shared_server();
    let messages = json!([{"role": "user", "content": "What is the capital of France?"}]);
    let score = |reward: Value, candidates: Value| {
        let body = json!({"messages": messages, "reward": reward, "candidates": candidates});
        let (status, body) = server.post("/v1/score", body);
        assert_eq!(status, 200, "{body}");
        let data = body["data"].as_array().unwrap().clone();
        data.iter()
            .map(|entry| entry["score"].as_f64().unwrap())
            .collect::<Vec<f64>>()
    };
    let texts = json!(["The capital of France is Paris.", "Xylophone 7 of under."]);
    let likelihood = score(json!({"kind": "likelihood"}), texts.clone());
    assert!(likelihood[0] > 2.0 * likelihood[1], "{likelihood:?}");
    let exact = json!({"kind": "verifier", "type": "regex", "pattern": "Paris"});
    assert_eq!(score(exact, texts.clone()), [1.0, 0.0]);
    let judged = score(json!({"kind": "judge"}), texts.clone());
    assert!(judged.iter().all(|score| (0.0..=1.0).contains(score)));
    assert_ne!(judged[0], judged[1]);
    let votes = json!(["It is 4", "4", "5"]);
    let share = score(json!({"kind": "majority"}), votes);
    assert!(share[0] > 0.6 && share[2] < 0.4, "{share:?}");
    for (body, param) in [
        (
            json!({"reward": {"kind": "likelihood"}, "candidates": []}),
            "candidates",
        ),
        (
            json!({"reward": {"kind": "likelihood"}, "candidates": ["x"]}),
            "messages",
        ),
        (
            json!({"reward": {"kind": "http"}, "candidates": ["x"]}),
            "reward[0].kind",
        ),
    ] {
        let (status, answer) = server.post("/v1/score", body);
        assert_eq!(
            (status, answer["error"]["param"].as_str()),
            (400, Some(param)),
            "{answer}"
        );
    }
}

#[test]
fn a_reward_server_is_retried_and_left_alone_when_it_only_fails() {
    use axum::routing::post;
    let server = shared_server();
    let calls = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&calls);
    let reply = move |axum::Json(body): axum::Json<Value>| {
        let call = counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async move {
            let texts = body["candidates"].as_array().unwrap();
            let scores: Vec<f64> = texts
                .iter()
                .map(|c| c["text"].as_str().unwrap().len() as f64 / 10.0)
                .collect();
            // The first call of all fails, and every one about the question "fail".
            match call == 0 || body["question"] == "fail" {
                true => Err(axum::http::StatusCode::INTERNAL_SERVER_ERROR),
                false => Ok(axum::Json(json!({"scores": scores}))),
            }
        }
    };
    let url = server.runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let app = axum::Router::new().route("/", post(reply));
        tokio::spawn(async move { axum::serve(listener, app).await });
        url
    });
    let remote = RewardServer::new(&url, std::time::Duration::from_secs(5)).unwrap();
    let remote = std::sync::Arc::new(remote);
    let scorer = |question: &str| RemoteScorer {
        server: std::sync::Arc::clone(&remote),
        question: question.to_owned(),
    };
    let candidate = Candidate {
        text: "abcd".to_owned(),
        ..Candidate::default()
    };
    let score = |question: &str| {
        let scorer = scorer(question);
        let candidates = [candidate.clone()];
        server
            .runtime
            .block_on(async move { scorer.score(&candidates, None).await })
    };
    assert_eq!(score("good").unwrap(), [0.4]);
    for _ in 0..5 {
        assert!(score("fail").is_err());
    }
    let before = calls.load(std::sync::atomic::Ordering::Relaxed);
    let error = score("good").unwrap_err();
    assert!(error.to_string().contains("left alone"), "{error}");
    assert_eq!(calls.load(std::sync::atomic::Ordering::Relaxed), before);
}

#[test]
fn an_answer_that_fills_the_context_is_whole() {
    let server = start(ServerConfig::default(), &options_for_search());
    let mut body = prompt_of(150);
    body["max_tokens"] = json!(400);
    body["ignore_eos"] = json!(true);
    body["search"] = json!({"strategy": "beam", "n": 2, "branch": 2, "step": {"max_tokens": 16}});
    let (status, answer) = server.post("/v1/completions", body);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let usage = &answer["usage"];
    let kept = usage["completion_tokens"].as_u64().unwrap()
        - usage["completion_tokens_details"]["reasoning_tokens"]
            .as_u64()
            .unwrap();
    assert_eq!(usage["prompt_tokens"].as_u64().unwrap() + kept, 512);
}
