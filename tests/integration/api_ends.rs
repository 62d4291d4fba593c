//! How answers end: stop strings and `min_tokens`, shutdown, and what is counted.

use ponder::api::ServerConfig;
use ponder::text::OutputFormat;
use serde_json::{Value, json};

use crate::api::{CHAT, with};
use crate::scripted::{say, start};
use crate::server::Server;

/// How often requests ended so, by `/metrics`.
fn counted(server: &Server, reason: &str) -> u64 {
    let (_, text) = server.get("/metrics");
    let is_it = |line: &&str| {
        line.starts_with("vllm:request_success_total{")
            && line.contains(&format!("finished_reason=\"{reason}\""))
    };
    let line = text.lines().find(is_it);
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

/// Waits until a counter, which may be late, has its value.
fn wait_for(server: &Server, reason: &str, count: u64) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while counted(server, reason) != count {
        assert!(
            std::time::Instant::now() < deadline,
            "{reason}: {}",
            counted(server, reason)
        );
        std::thread::yield_now();
    }
}

#[test]
fn stop_strings_wait_for_min_tokens() {
    let server = start(OutputFormat::default(), ServerConfig::default());
    let text = "a lo b lo c lo d";
    let body = |more: Value| {
        let body = say(text, with(more, "stop", json!([" lo"])));
        with(body, "seed", json!(1))
    };
    let search = json!({"strategy": "best_of_n", "n": 2, "reward": {"kind": "likelihood"}});
    for (min_tokens, expected) in [(0, "a"), (1, "a"), (4, "a"), (5, "a lo b"), (20, text)] {
        // The whole text has 16 tokens, and no more are written.
        let min_tokens = json!(if min_tokens == 20 { 16 } else { min_tokens });
        let plain = body(json!({"min_tokens": min_tokens}));
        let searched = with(
            with(plain.clone(), "search", search.clone()),
            "temperature",
            json!(1),
        );
        for body in [plain, searched] {
            let (status, answer) = server.post(CHAT, body.clone());
            assert_eq!(status, 200, "{answer}");
            let said = &answer["choices"][0]["message"]["content"];
            assert_eq!(said, expected, "{body}");
            assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        }
    }
}

#[test]
fn every_end_is_counted_once() {
    let server = start(OutputFormat::default(), ServerConfig::default());
    let (status, _) = server.post(CHAT, say("abc", json!({"n": 2})));
    assert_eq!(status, 200);
    assert_eq!(counted(&server, "stop"), 2);
    server.post(CHAT, say("abcdef", json!({"max_tokens": 2})));
    assert_eq!(counted(&server, "length"), 1);
    let (status, _) = server.post_with(
        CHAT,
        say(&"abc".repeat(500), json!({"ignore_eos": true})).to_string(),
        &[("Request-Timeout-Ms", "1")],
    );
    assert_eq!(status, 408);
    // A search that fails for want of time, too.
    let search = say(
        "abc",
        json!({"temperature": 1, "search": {"strategy": "best_of_n", "n": 2,
        "reward": {"kind": "likelihood"}}}),
    );
    let (status, _) = server.post_with(CHAT, search.to_string(), &[("Request-Timeout-Ms", "0")]);
    assert_eq!(status, 408);
    let num_late = counted(&server, "timeout");
    assert!(
        (1..=2).contains(&num_late),
        "those whose answers had begun: {num_late}"
    );
    // Clients that hang up, once their requests run.
    let engine = &server.state.served().unwrap().engine;
    for (count, is_stream) in [(1, true), (2, false)] {
        let body = say("abc", json!({"stream": is_stream, "ignore_eos": true}));
        let request = reqwest::Client::new().post(format!("{}{CHAT}", server.url));
        let request = request.body(body.to_string());
        let client = server.runtime.spawn(async move {
            let answer = request.send().await.unwrap();
            let _ = answer.bytes().await;
        });
        while engine.stats().num_requests_running == 0 {
            assert!(!client.is_finished(), "the answer has 4000 tokens");
            std::thread::yield_now();
        }
        client.abort();
        wait_for(&server, "abort", count);
    }
    assert_eq!(counted(&server, "error"), 0);
    assert_eq!(counted(&server, "stop"), 2);
}

#[test]
fn a_shutdown_ends_streams_with_an_error() {
    let config = ServerConfig {
        shutdown_timeout: std::time::Duration::ZERO,
        ..ServerConfig::default()
    };
    let mut server = start(OutputFormat::default(), config);
    let body = say(
        &"abc".repeat(1200),
        json!({"stream": true, "ignore_eos": true}),
    );
    let url = format!("{}{CHAT}", server.url);
    let stop = server.stop.take().unwrap();
    let text = server.runtime.block_on(async {
        let client = reqwest::Client::new();
        let mut answer = client
            .post(url)
            .body(body.to_string())
            .send()
            .await
            .unwrap();
        let mut text = answer.chunk().await.unwrap().unwrap().to_vec();
        stop.send(()).unwrap();
        while let Some(more) = answer.chunk().await.unwrap() {
            text.extend(more);
        }
        String::from_utf8(text).unwrap()
    });
    assert!(!text.contains("\"finish_reason\":\"abort\""), "{text}");
    let last = text
        .lines()
        .rfind(|line| line.starts_with("data: "))
        .unwrap();
    let error: Value = serde_json::from_str(&last["data: ".len()..]).unwrap();
    assert_eq!(error["error"]["code"], "aborted", "{error}");
}
