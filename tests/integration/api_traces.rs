//! Traces over HTTP, with the small model of `support.rs`.

use std::collections::HashSet;

use futures::StreamExt;
use ponder::api::ServerConfig;
use ponder::trace::TraceRecord;
use serde_json::{Value, json};

use crate::api::{CHAT, ask, sse, with};
use crate::server::{Server, options, start};

const ALICE: &[(&str, &str)] = &[("authorization", "Bearer alice")];
const BOB: &[(&str, &str)] = &[("authorization", "Bearer bob")];
const TRAINER: &[(&str, &str)] = &[("authorization", "Bearer trainer")];
type Headers<'a> = &'a [(&'a str, &'a str)];

fn post(server: &Server, path: &str, body: &Value, headers: Headers) -> (u16, Value) {
    let (status, text) = server.post_with(path, body.to_string(), headers);
    (status, serde_json::from_str(&text).unwrap_or(json!(text)))
}

fn call(server: &Server, method: &str, path: &str, headers: Headers) -> (u16, String) {
    server.runtime.block_on(async {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let url = format!("{}{path}", server.url);
        let mut request = reqwest::Client::new().request(method, url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    })
}

fn get(server: &Server, path: &str, headers: Headers) -> (u16, Value) {
    let (status, text) = call(server, "GET", path, headers);
    (status, serde_json::from_str(&text).unwrap_or(json!(text)))
}

fn rows(text: &str) -> Vec<Value> {
    let lines = text.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn events(text: &str) -> Vec<Value> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("data: "));
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn search(seed: u64, tag: &str) -> Value {
    let search =
        json!({"strategy": "best_of_n", "n": 3, "reward": {"kind": "likelihood"}, "tags": [tag]});
    let body = with(ask("Name a colour."), "search", search);
    let body = with(
        with(body, "max_tokens", json!(5)),
        "temperature",
        json!(1.2),
    );
    with(body, "seed", json!(seed))
}

/// Keeps a search by a key; returns its trace's id.
fn kept(server: &Server, seed: u64, tag: &str, headers: Headers) -> String {
    let (status, answer) = post(server, CHAT, &search(seed, tag), headers);
    assert_eq!(status, 200, "{answer}");
    answer["search"]["trace_id"].as_str().unwrap().to_owned()
}

fn guarded() -> Server {
    let config = ServerConfig {
        api_keys: vec!["alice".to_owned(), "bob".to_owned()],
        trace_keys: vec!["trainer".to_owned()],
        ..ServerConfig::default()
    };
    start(config, &options())
}

#[test]
fn keys_have_their_own_traces_and_readers_have_all() {
    let server = guarded();
    let (of_alice, of_bob) = (kept(&server, 1, "x", ALICE), kept(&server, 2, "y", BOB));
    let listed = |headers: Headers, query: &str| -> Vec<String> {
        let (status, list) = get(&server, &format!("/v1/traces{query}"), headers);
        assert_eq!(status, 200, "{list}");
        let data = list["data"].as_array().unwrap().iter();
        data.map(|trace| trace["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(listed(ALICE, ""), [of_alice.as_str()]);
    assert_eq!(listed(BOB, ""), [of_bob.as_str()]);
    assert_eq!(listed(TRAINER, ""), [of_bob.as_str(), of_alice.as_str()]);
    assert_eq!(listed(TRAINER, "?tag=x"), [of_alice.as_str()]);
    assert_eq!(listed(TRAINER, "?order=asc&limit=1"), [of_alice.as_str()]);
    let (_, first) = get(&server, "/v1/traces?limit=1", TRAINER);
    assert_eq!(first["has_more"], true);
    let next = first["next"].as_str().unwrap();
    assert_eq!(
        listed(TRAINER, &format!("?after={next}")),
        [of_alice.as_str()]
    );

    let path = format!("/v1/traces/{of_bob}");
    for method in ["GET", "DELETE"] {
        assert_eq!(call(&server, method, &path, ALICE).0, 404);
    }
    let outcome = json!({"outcome": 1});
    let outcome_path = format!("{path}/outcome");
    assert_eq!(post(&server, &outcome_path, &outcome, ALICE).0, 404);
    let (status, stream) = call(&server, "GET", "/v1/traces/stream", ALICE);
    assert_eq!((status, rows(&stream).len()), (200, 1));

    // A reader's key reads and nothing else; nobody reads without a key.
    let (status, error) = post(&server, CHAT, &search(1, "x"), TRAINER);
    assert_eq!(
        (status, &error["error"]["code"]),
        (403, &json!("insufficient_scope"))
    );
    assert_eq!(get(&server, "/v1/traces", &[]).0, 401);
    assert_eq!(post(&server, &outcome_path, &outcome, TRAINER).0, 200);
    assert_eq!(call(&server, "DELETE", &path, BOB).0, 204);
    assert_eq!(get(&server, &path, BOB).0, 404);
}

#[test]
fn a_trace_says_what_was_asked_and_sampled() {
    let server = start(ServerConfig::default(), &options());
    let id = kept(&server, 3, "t", &[]);
    let (_, trace) = get(&server, &format!("/v1/traces/{id}"), &[]);
    let record: TraceRecord = serde_json::from_value(trace).unwrap();
    assert_eq!(
        record.request["messages"],
        ask("Name a colour.")["messages"]
    );
    assert!(record.prompt_text.contains("Name a colour."));
    assert_eq!((record.seed, record.chosen.len()), (3, 1));
    assert_eq!(
        record.usage.prompt_tokens as usize,
        record.prompt_token_ids.len()
    );
    for node in &record.nodes[1..] {
        assert_eq!(node.token_logprobs.len(), node.token_ids.len());
        let sum: f64 = node.token_logprobs.iter().sum();
        assert!((sum - node.logprob).abs() < 1e-3, "{sum} {}", node.logprob);
    }

    // Right, one answer; wrong, the others: the steps' values follow, and the trace comes again.
    let best = record.chosen[0];
    let others = (1..record.nodes.len()).filter(|node| *node != best);
    let leaves: Vec<Value> = others
        .map(|node| json!({"node": node, "outcome": 0}))
        .collect();
    let body = json!({"outcome": 1, "leaves": leaves});
    let (status, said) = server.post(&format!("/v1/traces/{id}/outcome"), body);
    assert_eq!(status, 200, "{said}");
    assert_eq!(
        (&said["revision"], &said["outcome"]),
        (&json!(2), &json!(1.0))
    );
    assert_eq!(said["nodes"][best]["process"]["quality_value"], 1.0);
    let streamed = |format: &str| {
        let path = format!("/v1/traces/stream?format={format}&has_outcome=true");
        rows(&server.get(&path).1)
    };
    let sft = &streamed("sft")[0];
    let answer = record.answer_text(best);
    assert_eq!(
        sft["messages"][1],
        json!({"role": "assistant", "content": answer})
    );
    assert_eq!(
        (&sft["trace_id"], &sft["tags"]),
        (&json!(id), &json!(["t"]))
    );
    let pairs = streamed("preferences");
    assert!(!pairs.is_empty());
    assert!(
        pairs
            .iter()
            .all(|pair| pair["chosen"][0]["content"] == answer)
    );
    let (_, of_one) = server.get(&format!("/v1/traces/{id}?format=preferences"));
    let of_one: Value = serde_json::from_str(&of_one).unwrap();
    assert_eq!(of_one["data"].as_array().unwrap().len(), pairs.len());
    assert!(!streamed("step_values").is_empty() && !streamed("groups").is_empty());
    for (body, param) in [
        (json!({}), "outcome"),
        (json!({"outcome": 2}), "outcome"),
        (json!({"leaves": [{"node": 0, "outcome": 1}]}), "leaves"),
        (json!({"leaves": [{"node": 1}]}), "leaves"),
        (json!({"right": true}), "right"),
    ] {
        let (status, error) = server.post(&format!("/v1/traces/{id}/outcome"), body);
        assert_eq!((status, &error["error"]["param"]), (400, &json!(param)));
    }
}

#[test]
fn plain_answers_are_kept_when_asked_for() {
    let server = start(ServerConfig::default(), &options());
    let plain = with(ask("Say hello."), "max_tokens", json!(6));
    let (_, answer) = server.post(CHAT, plain.clone());
    assert!(answer.get("trace_id").is_none());
    let stored = with(plain.clone(), "store", json!(true));
    let stored = with(stored, "metadata", json!({"run": "a"}));
    let (_, answer) = server.post(CHAT, stored.clone());
    let id = answer["trace_id"].as_str().unwrap();
    let (_, trace) = get(&server, &format!("/v1/traces/{id}"), &[]);
    let content = &answer["choices"][0]["message"]["content"];
    assert_eq!(&trace["nodes"][1]["text"], content);
    assert_eq!(
        (&trace["strategy"], &trace["tags"]),
        (&json!("none"), &json!(["run:a"]))
    );
    assert_eq!(
        trace["nodes"][1]["token_logprobs"]
            .as_array()
            .unwrap()
            .len(),
        6
    );
    assert!(answer["choices"][0]["logprobs"].is_null(), "{answer}");

    let (_, text) = server.post_with(CHAT, with(stored, "stream", json!(true)).to_string(), &[]);
    let chunks = sse(&text);
    let last = chunks.last().unwrap();
    let id = last["trace_id"]
        .as_str()
        .unwrap_or_else(|| panic!("{text}"));
    let (_, streamed) = get(&server, &format!("/v1/traces/{id}"), &[]);
    assert_eq!(streamed["nodes"][1]["text"], trace["nodes"][1]["text"]);

    let completion = json!({"model": "m", "prompt": ["One, two,", "A, b,"], "max_tokens": 2, "n": 2, "store": true});
    let (_, answer) = server.post("/v1/completions", completion);
    let ids = answer["trace_ids"].as_array().unwrap();
    let (_, second) = get(
        &server,
        &format!("/v1/traces/{}", ids[1].as_str().unwrap()),
        &[],
    );
    assert_eq!(second["request"]["prompt"], "A, b,");
    assert_eq!(second["nodes"][2]["text"], answer["choices"][3]["text"]);

    let kept_before = rows(&server.get("/v1/traces/stream").1).len();
    let off = with(search(9, "off"), "store", json!(false));
    let (_, answer) = server.post(CHAT, off);
    assert!(answer["search"]["trace_id"].is_null());
    assert_eq!(rows(&server.get("/v1/traces/stream").1).len(), kept_before);
    let (status, error) = server.post(CHAT, with(plain, "metadata", json!({"k": "v".repeat(600)})));
    assert_eq!(
        (status, &error["error"]["param"]),
        (400, &json!("metadata"))
    );
    let (_, metrics) = server.get("/metrics");
    assert!(metrics.contains("ponder_traces_total{"), "{metrics}");
}

/// However a reader is cut off, by its cursor it gets every row once.
#[test]
fn a_reader_that_comes_back_misses_and_repeats_nothing() {
    let server = start(ServerConfig::default(), &options());
    for seed in 0..4 {
        let id = kept(&server, seed, "r", &[]);
        let leaves = json!([{"node": 1, "outcome": 1}, {"node": 2, "outcome": 1}]);
        server.post(
            &format!("/v1/traces/{id}/outcome"),
            json!({"leaves": leaves}),
        );
    }
    for format in ["tree", "sft", "step_values"] {
        let all = rows(&server.get(&format!("/v1/traces/stream?format={format}")).1);
        assert!(!all.is_empty(), "{format}");
        let mut seen = Vec::new();
        let mut after = String::new();
        loop {
            let path = format!("/v1/traces/stream?format={format}&limit=1{after}");
            let row = rows(&server.get(&path).1);
            let Some(row) = row.first() else { break };
            after = format!("&after={}", row["cursor"].as_str().unwrap());
            seen.push(row.clone());
        }
        assert_eq!(seen, all, "{format}");
        let cursors: HashSet<String> = all.iter().map(|row| row["cursor"].to_string()).collect();
        assert_eq!(cursors.len(), all.len());
    }
    // The same as events; Last-Event-ID wins over the URL.
    let accept = ("accept", "text/event-stream");
    let (_, text) = call(&server, "GET", "/v1/traces/stream", &[accept]);
    let all = events(&text);
    assert_eq!(all.len(), 4);
    let id = text
        .lines()
        .find_map(|line| line.strip_prefix("id: "))
        .unwrap();
    let (_, rest) = call(
        &server,
        "GET",
        "/v1/traces/stream?after=0",
        &[accept, ("last-event-id", id)],
    );
    assert_eq!(events(&rest), all[1..]);
    for path in [
        "stream?after=x",
        "stream?format=csv",
        "?limit=0",
        "?color=red",
    ] {
        let path = format!(
            "/v1/traces{}{path}",
            if path.starts_with('?') { "" } else { "/" }
        );
        let (status, error) = get(&server, &path, &[]);
        assert_eq!(status, 400, "{path}: {error}");
    }
}

#[test]
fn a_reader_that_follows_gets_what_comes() {
    let mut server = start(ServerConfig::default(), &options());
    let first = kept(&server, 1, "f", &[]);
    let url = format!("{}/v1/traces/stream?follow=true", server.url);
    let mut body = server.runtime.block_on(async {
        let response = reqwest::get(url).await.unwrap();
        response.bytes_stream().boxed()
    });
    let mut text = String::new();
    let mut next = |server: &Server| -> Value {
        while !text.contains('\n') {
            let chunk = server.runtime.block_on(body.next()).unwrap().unwrap();
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        let (line, rest) = text.split_once('\n').unwrap();
        let row = serde_json::from_str(line).unwrap();
        text = rest.to_owned();
        row
    };
    assert_eq!(next(&server)["id"], first);
    let second = kept(&server, 2, "f", &[]);
    assert_eq!(next(&server)["id"], second);
    server.post(
        &format!("/v1/traces/{first}/outcome"),
        json!({"outcome": 0.5}),
    );
    let again = next(&server);
    assert_eq!(
        (&again["id"], &again["revision"]),
        (&json!(first), &json!(2))
    );
    assert_eq!(server.state.trace_readers_now(), 1);
    // A server that shuts down lets nobody wait.
    let _ = server.stop.take().unwrap().send(());
    assert!(server.runtime.block_on(body.next()).is_none());
    let task = server.task.take().unwrap();
    server.runtime.block_on(task).unwrap().unwrap();
}
