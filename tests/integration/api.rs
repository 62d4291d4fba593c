//! The HTTP room over real sockets, with the small model of `support.rs`.

use ponder::api::{ServerConfig, document_json};
use ponder::engine::EngineOptions;
use serde_json::{Value, json};

use crate::server::{options, shared_server, start};

pub const CHAT: &str = "/v1/chat/completions";

pub fn ask(text: &str) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": text}], "temperature": 0,
        "max_tokens": 24})
}

pub fn with(mut body: Value, key: &str, value: Value) -> Value {
    body[key] = value;
    body
}

pub fn sse(text: &str) -> Vec<Value> {
    let mut lines: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .collect();
    assert_eq!(lines.pop(), Some("[DONE]"));
    lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_stream_spells_the_same_answer() {
    let server = shared_server();
    let body = ask("What is the capital of France? One sentence.");
    let (status, whole) = server.post(CHAT, body.clone());
    assert_eq!(status, 200, "{whole}");
    let answer = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(answer.contains("Paris"), "{answer}");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    let streamed = with(body, "stream", json!(true));
    let streamed = with(streamed, "stream_options", json!({"include_usage": true}));
    let chunks = sse(&server.post_with(CHAT, streamed.to_string(), &[]).1);
    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, answer);
    let usage = &chunks.last().unwrap()["usage"];
    assert_eq!(
        usage["completion_tokens"],
        whole["usage"]["completion_tokens"]
    );
    assert!(
        usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
            > 0
    );
    assert_eq!(
        chunks[chunks.len() - 2]["choices"][0]["finish_reason"],
        "stop"
    );
}

#[test]
fn stops_choices_logprobs_and_seeds() {
    let server = shared_server();
    let (_, full) = server.post(CHAT, ask("Count from one to ten in words."));
    let full = full["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned();
    let stop: String = full.chars().skip(8).take(4).collect();
    let stopped = with(
        ask("Count from one to ten in words."),
        "stop",
        json!([stop]),
    );
    let (_, cut) = server.post(CHAT, stopped);
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        cut["choices"][0]["message"]["content"],
        full[..full.find(&stop).unwrap()]
    );

    let mut sampled = with(ask("Invent a name."), "temperature", json!(1.2));
    for (key, value) in [
        ("n", json!(3)),
        ("seed", json!(-5)),
        ("logprobs", json!(true)),
        ("top_logprobs", json!(2)),
    ] {
        sampled[key] = value;
    }
    let (_, first) = server.post(CHAT, sampled.clone());
    let (_, again) = server.post(CHAT, sampled);
    assert_eq!(first["choices"], again["choices"]);
    let choices = first["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    assert_ne!(choices[0]["message"], choices[1]["message"]);
    let entry = &choices[0]["logprobs"]["content"][0];
    assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 2);
    assert!(entry["logprob"].as_f64().unwrap() <= 0.0 && entry["bytes"].is_array());
}

#[test]
fn completions_take_every_prompt_form_and_echo() {
    let server = shared_server();
    let (_, tokens) = server.post("/tokenize", json!({"prompt": "The sky is"}));
    let ids = tokens["tokens"].clone();
    let (_, text) = server.post("/detokenize", json!({"tokens": ids}));
    assert_eq!(text["prompt"], "The sky is");
    let body = |prompt: Value| json!({"prompt": prompt, "temperature": 0, "max_tokens": 5, "echo": true, "logprobs": 1});
    let (_, one) = server.post("/v1/completions", body(json!("The sky is")));
    let (_, same) = server.post("/v1/completions", body(ids.clone()));
    let (_, many) = server.post("/v1/completions", body(json!([ids, ids])));
    assert_eq!(one["choices"], same["choices"]);
    assert_eq!(one["choices"][0]["text"], many["choices"][1]["text"]);
    assert!(
        one["choices"][0]["text"]
            .as_str()
            .unwrap()
            .starts_with("The sky is")
    );
    let logprobs = &one["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"][0], "The");
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    assert_eq!(logprobs["text_offset"][1], 3);
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 3 + 5);
}

#[test]
fn bad_input_names_the_parameter() {
    let server = shared_server();
    let good = ask("x");
    for (key, value) in [
        ("messages", json!([])),
        ("messages", json!("hi")),
        ("messages[0].role", json!([{"content": "x"}])),
        (
            "messages[0].content[0].type",
            json!([{"role": "user", "content": [{"type": "input_audio"}]}]),
        ),
        (
            "messages[0].content[0].image_url",
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
        ),
        ("temperature", json!("hot")),
        ("temperature", json!(9)),
        ("top_p", json!(-1)),
        ("n", json!(0)),
        ("n", json!(100_000)),
        ("n", json!(-1)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-5)),
        ("logit_bias", json!({"abc": 1})),
        ("logit_bias", json!({"5": 1000})),
        ("logit_bias", json!({"99999999": 1})),
        ("stop", json!(vec!["x"; 99])),
        ("top_logprobs", json!(50)),
        ("response_format.type", json!({"type": "yaml"})),
        ("tool_choice", json!("sometimes")),
        ("speculative", json!("fastest")),
    ] {
        let field = key.split(['[', '.']).next().unwrap();
        let (status, body) = server.post(CHAT, with(good.clone(), field, value.clone()));
        assert_eq!(status, 400, "{key} {value}: {body}");
        assert_eq!(body["error"]["param"], key, "{value}: {body}");
        assert_eq!(body["error"]["type"], "invalid_request_error");
    }
    let (status, body) = server.post(CHAT, with(good.clone(), "model", json!("gpt-9")));
    assert_eq!(
        (status, &body["error"]["code"]),
        (404, &json!("model_not_found"))
    );
    let long = "word ".repeat(5000);
    let (status, body) = server.post(CHAT, ask(&long));
    assert_eq!(
        (status, &body["error"]["code"]),
        (400, &json!("context_length_exceeded"))
    );
    for bad in ["", "{", "[1]", "{\"messages\": [{\"role\": \"\u{1}\"}]}"] {
        assert_eq!(
            server.post_with(CHAT, bad.to_owned(), &[]).0,
            400,
            "{bad:?}"
        );
    }
    assert_eq!(server.get(CHAT).0, 405);
    assert_eq!(server.get("/nowhere").0, 404);
    assert_eq!(
        server
            .post(CHAT, with(good, "unknown_field", json!({"a": 1})))
            .0,
        200
    );
}

#[test]
fn keys_are_needed_everywhere_but_health() {
    let config = ServerConfig {
        api_keys: vec!["secret".to_owned(), "other".to_owned()],
        max_body_bytes: 4096,
        cors_allow_origins: vec!["https://app.example".to_owned()],
        ..ServerConfig::default()
    };
    let mut server = start(config, &options());
    for path in ["/v1/models", "/metrics", "/version", "/openapi.json"] {
        assert_eq!(server.get(path).0, 401, "{path}");
    }
    assert_eq!(
        (server.get("/health").0, server.get("/ready").0),
        (200, 200)
    );
    let post = |key: &str| {
        server
            .post_with(CHAT, ask("x").to_string(), &[("authorization", key)])
            .0
    };
    assert_eq!(post("Bearer wrong"), 401);
    assert_eq!(post("Bearer other"), 200);
    let huge = "x".repeat(5000);
    assert_eq!(
        server.post_with(CHAT, huge, &[("x-api-key", "secret")]).0,
        413
    );
    // Shutting down: a request that runs is answered, readiness ends, the server stops by itself.
    server.wait_until_free();
    let (url, body) = (
        server.url.clone(),
        with(ask("Tell me a story."), "max_tokens", json!(60)),
    );
    let running = server.runtime.spawn(async move {
        let request = reqwest::Client::new()
            .post(format!("{url}{CHAT}"))
            .bearer_auth("secret");
        request
            .body(body.to_string())
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    });
    let engine = server.state.served().unwrap().engine.clone();
    while engine.stats().num_requests_running == 0 && !running.is_finished() {
        std::thread::yield_now();
    }
    server.stop.take().unwrap().send(()).unwrap();
    assert_eq!(server.runtime.block_on(running).unwrap(), 200);
    server
        .runtime
        .block_on(server.task.take().unwrap())
        .unwrap()
        .unwrap();
}

#[test]
fn overload_deadlines_and_hang_ups() {
    let tight = EngineOptions {
        max_num_seqs: 2,
        max_num_waiting_seqs: 2,
        ..options()
    };
    let server = start(ServerConfig::default(), &tight);
    let long = with(ask("Tell me a story."), "ignore_eos", json!(true));
    let long = with(with(long, "max_tokens", json!(400)), "stream", json!(true));
    let statuses: Vec<(u16, bool)> = server.runtime.block_on(async {
        let requests = (0..12).map(|_| {
            let request = reqwest::Client::new().post(format!("{}{CHAT}", server.url));
            request.body(long.to_string()).send()
        });
        let responses = futures::future::join_all(requests).await;
        // Dropping the unread responses hangs up.
        let status =
            |r: reqwest::Response| (r.status().as_u16(), r.headers().contains_key("retry-after"));
        responses
            .into_iter()
            .map(|response| status(response.unwrap()))
            .collect()
    });
    assert!(statuses.contains(&(429, true)), "{statuses:?}");
    assert!(statuses.contains(&(200, false)), "{statuses:?}");
    server.wait_until_free();
    let late = with(ask("Tell me a story."), "max_tokens", json!(900));
    let late = with(late, "ignore_eos", json!(true)).to_string();
    let (status, _) = server.post_with(CHAT, late.clone(), &[("request-timeout-ms", "40")]);
    assert_eq!(status, 408);
    assert_eq!(
        server
            .post_with(CHAT, late, &[("request-timeout-ms", "soon")])
            .0,
        400
    );
    server.wait_until_free();
    let (_, metrics) = server.get("/metrics");
    for name in [
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
        "vllm:cache_config_info",
        "ponder_kv_cache_bytes",
        "vllm:prefix_cache_queries_total",
        "ponder_generation_tokens_total",
        "vllm:time_to_first_token_seconds_bucket",
    ] {
        assert!(metrics.contains(name), "{name} is missing:\n{metrics}");
    }
}

#[test]
fn the_openapi_document_is_up_to_date() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/openapi.json");
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, document_json()).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == document_json(),
        "run UPDATE_OPENAPI=1 cargo test openapi"
    );
}
