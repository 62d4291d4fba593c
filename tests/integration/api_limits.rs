//! Work whose size clients choose, over the fake model: each row of ARCHITECTURE.md's list of
//! limits has a case here that runs into it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use ponder::api::ServerConfig;
use ponder::model::testing::uniform;
use serde_json::{Value, json};

use crate::api::CHAT;
use crate::offline::{CONTEXT, Offline, chat, completion};

/// A schema whose check doubles with each of its definitions.
pub fn doubling_schema(num_doublings: usize) -> Value {
    let twice = |at: usize| {
        let next = json!({"$ref": format!("#/$defs/d{}", at + 1)});
        (format!("d{at}"), json!({"allOf": [next, next]}))
    };
    let mut definitions: serde_json::Map<String, Value> = (0..num_doublings).map(twice).collect();
    definitions.insert(format!("d{num_doublings}"), json!({"type": "object"}));
    json!({"$ref": "#/$defs/d0", "$defs": definitions})
}

fn score(reward: Value, candidates: &[String]) -> Value {
    json!({"messages": [{"role": "user", "content": "?"}], "candidates": candidates,
        "reward": reward})
}

fn verifier(more: Value) -> Value {
    let mut reward = json!({"kind": "verifier"});
    for (name, value) in more.as_object().unwrap() {
        reward[name] = value.clone();
    }
    reward
}

/// Too many bytes for the context, whatever they are.
fn long_text() -> String {
    "7".repeat(64 * CONTEXT)
}

/// What a limit answers: status, `code`, and a part of the message.
struct Refusal(u16, Option<&'static str>, &'static str);

fn assert_refused(offline: &Offline, path: &str, body: Value, expected: &Refusal) {
    let (status, answer) = offline.post(path, body);
    let error = &answer["error"];
    let message = error["message"].as_str().unwrap_or_default();
    assert_eq!(status, expected.0, "{path}: {answer}");
    assert_eq!(error["code"].as_str(), expected.1, "{path}: {answer}");
    assert!(message.contains(expected.2), "{path}: {message}");
}

fn session(offline: &Offline) -> String {
    let opened = offline.ask("/v1/branches", chat(json!({})));
    format!("/v1/branches/{}", opened["id"].as_str().unwrap())
}

fn long_texts() {
    let offline = Offline::start();
    let too_long = Refusal(400, Some("context_length_exceeded"), "tokens");
    let message = json!([{"role": "user", "content": long_text()}]);
    assert_refused(
        &offline,
        CHAT,
        chat(json!({"messages": message})),
        &too_long,
    );
    let path = "/v1/completions";
    for prompt in [
        json!(long_text()),
        json!([long_text()]),
        json!(vec![1; 64 * CONTEXT]),
    ] {
        let body = completion(json!({"prompt": prompt}));
        assert_refused(&offline, path, body, &too_long);
    }
    let prediction = json!({"type": "content", "content": long_text()});
    let body = completion(json!({"prediction": prediction}));
    assert_refused(&offline, path, body, &too_long);
    let open = chat(json!({"messages": message}));
    assert_refused(&offline, "/v1/branches", open, &too_long);
    let fork = json!({"node": 0, "text": long_text()});
    assert_refused(
        &offline,
        &format!("{}/fork", session(&offline)),
        fork,
        &too_long,
    );
    let likelihood = score(json!({"kind": "likelihood"}), &[long_text()]);
    assert_refused(&offline, "/v1/score", likelihood, &too_long);
    let unreadable = Refusal(400, Some("too_much_work"), "tokens");
    let judged = score(json!({"kind": "judge"}), &[long_text()]);
    assert_refused(&offline, "/v1/score", judged, &unreadable);
    let step = score(json!({"kind": "prm"}), &[long_text()]);
    assert_refused(&offline, "/v1/score", step, &unreadable);
    let pooled = json!({"input": [format!("{} ки", long_text())]});
    let refusal = Refusal(400, None, "tokens");
    assert_refused(&offline, "/pooling", pooled, &refusal);
}

fn tokenised() {
    let offline = Offline::start();
    // A token is at least one byte, and each byte is one here.
    let body = json!({"prompt": "7".repeat((1 << 20) + 1)});
    let refusal = Refusal(400, None, "1048576 tokens");
    assert_refused(&offline, "/tokenize", body, &refusal);
    // The text of many ids is longer than what they are told by.
    let id = offline.ask("/tokenize", json!({"prompt": "<|im_start|>"}))["tokens"][0].clone();
    let body = json!({"tokens": vec![id; (1 << 20) + 1]});
    let refusal = Refusal(413, Some("body_too_large"), "JSON values");
    assert_refused(&offline, "/detokenize", body, &refusal);
}

fn schemas() {
    let offline = Offline::start();
    let refusal = Refusal(400, Some("too_much_work"), "JSON schema");
    let reward = verifier(json!({"type": "json_schema", "schema": doubling_schema(40)}));
    let body = score(reward, &["{}".to_owned()]);
    assert_refused(&offline, "/v1/score", body, &refusal);
    // What is within limits is checked, and what is no schema is told.
    let small = verifier(json!({"type": "json_schema", "schema": doubling_schema(4)}));
    let answer = offline.ask(
        "/v1/score",
        score(small, &["{}".to_owned(), "1".to_owned()]),
    );
    assert_eq!(answer["data"][0]["score"], 1.0);
    assert_eq!(answer["data"][1]["score"], 0.0);
    let refusal = Refusal(400, None, "65536 bytes");
    let long = verifier(json!({"type": "json_schema", "schema": {"title": "x".repeat(65 << 10)}}));
    assert_refused(
        &offline,
        "/v1/score",
        score(long, &["{}".to_owned()]),
        &refusal,
    );
}

/// A server that gives a piece of work next to no time.
fn impatient() -> Offline {
    Offline::with(ServerConfig {
        max_work_time: Duration::from_millis(30),
        ..ServerConfig::default()
    })
}

fn work_time() {
    let offline = impatient();
    let refusal = Refusal(400, Some("too_much_work"), "processor time");
    let pattern = r"(?:[ -~]?){5000}X";
    let reward = verifier(json!({"type": "regex", "pattern": pattern}));
    let answers: Vec<String> = (0..3).map(|_| "a".repeat(150 << 10)).collect();
    assert_refused(&offline, "/v1/score", score(reward, &answers), &refusal);
}

fn patterns() {
    let offline = Offline::start();
    let refusal = Refusal(400, None, "too complex");
    let step = json!({"regex": r"(?:[ -~\n]?){5000}[\x00\x01]", "max_tokens": 4000});
    let search = json!({"strategy": "beam", "n": 4, "step": step});
    assert_refused(&offline, CHAT, chat(json!({"search": search})), &refusal);
    let generate = json!({"nodes": [0], "step": step});
    let path = format!("{}/generate", session(&offline));
    assert_refused(&offline, &path, generate, &refusal);
    let long = verifier(json!({"type": "regex", "pattern": "a".repeat(17 << 10)}));
    let refusal = Refusal(400, None, "16384 bytes");
    assert_refused(
        &offline,
        "/v1/score",
        score(long, &["a".to_owned()]),
        &refusal,
    );
    let large = verifier(json!({"type": "regex", "pattern": "((a{100}){100}){100}"}));
    let refusal = Refusal(400, None, "compiled");
    assert_refused(
        &offline,
        "/v1/score",
        score(large, &["a".to_owned()]),
        &refusal,
    );
}

fn steps() {
    let offline = Offline::start();
    let search = json!({"strategy": "beam", "n": 4, "step": {"max_tokens": 8193}});
    let refusal = Refusal(400, None, "max_tokens must be 1 to 8192");
    assert_refused(&offline, CHAT, chat(json!({"search": search})), &refusal);
}

fn rewards() {
    let offline = Offline::start();
    let candidates = vec!["a".to_owned(); 257];
    let exact = verifier(json!({"type": "exact", "answer": "a"}));
    let refusal = Refusal(400, None, "1 to 256");
    assert_refused(
        &offline,
        "/v1/score",
        score(exact.clone(), &candidates),
        &refusal,
    );
    let refusal = Refusal(400, None, "1 to 8 rewards");
    let many = json!(vec![exact; 9]);
    assert_refused(
        &offline,
        "/v1/score",
        score(many, &candidates[..1]),
        &refusal,
    );
    let refusal = Refusal(400, None, "65536 bytes");
    let long = verifier(json!({"type": "exact", "answer": "a".repeat(65 << 10)}));
    assert_refused(
        &offline,
        "/v1/score",
        score(long, &candidates[..1]),
        &refusal,
    );
}

fn branch_nodes() {
    let offline = Offline::start();
    let path = session(&offline);
    let fork = |text: &str| {
        let answer = offline.ask(&format!("{path}/fork"), json!({"node": 0, "text": text}));
        answer["node"].as_u64().unwrap()
    };
    let (first, second) = (fork("yes"), fork("no"));
    // Duplicates are one.
    let exact = verifier(json!({"type": "exact", "answer": "yes"}));
    let nodes: Vec<u64> = (0..1500)
        .map(|at| if at % 2 == 0 { first } else { second })
        .collect();
    let body = json!({"nodes": nodes, "reward": exact});
    let answer = offline.ask(&format!("{path}/score"), body);
    assert_eq!(answer["data"].as_array().unwrap().len(), 2);
    let ids: Vec<u64> = (0..256).map(|at| fork(&format!("text {at}"))).collect();
    let nodes = json!([ids, vec![first]].concat());
    let refusal = Refusal(400, None, "256 nodes");
    let body = json!({"nodes": nodes, "reward": exact});
    assert_refused(&offline, &format!("{path}/score"), body, &refusal);
    let body = json!({"nodes": nodes, "n": 1});
    assert_refused(&offline, &format!("{path}/generate"), body, &refusal);
}

fn branch_memory() {
    let offline = Offline::with(ServerConfig {
        max_branch_bytes: 20_000,
        ..ServerConfig::default()
    });
    let path = session(&offline);
    let mut fork = |at: usize| {
        let text = format!("{at}{}", "x".repeat(300));
        offline.post(&format!("{path}/fork"), json!({"node": 0, "text": text}))
    };
    let (status, answer) = (0..40)
        .map(&mut fork)
        .find(|(status, _)| *status != 200)
        .unwrap();
    assert_eq!(
        (status, answer["error"]["code"].as_str()),
        (429, Some("overloaded"))
    );
    // What a session held is free when it ends.
    assert_eq!(offline.server.delete(&path), 204);
    session(&offline);
}

/// Each `a` may be the one that counts, so nearly every byte of a random text leads to a state of its own, which takes
/// thousands of steps to make.
const ENDLESS_PATTERN: &str = "[ab]*a[ab]{5000}X";

fn endless_text() -> String {
    let mut state = 1;
    let letter = |_| if uniform(&mut state) < 0.0 { 'a' } else { 'b' };
    (0..1 << 20).map(letter).collect()
}

fn queued_work() {
    // One thread, one place, and work that ends with whoever waits for it.
    let offline = Offline::with(ServerConfig {
        work_threads: 1,
        max_queued_work: 1,
        max_work_time: Duration::MAX,
        ..ServerConfig::default()
    });
    let reward = verifier(json!({"type": "regex", "pattern": ENDLESS_PATTERN}));
    let body = score(reward, &[endless_text()]).to_string();
    let url = format!("{}/v1/score", offline.server.url);
    let client = reqwest::Client::new();
    let send = || {
        let request = client.post(&url).body(body.clone());
        offline
            .server
            .runtime
            .spawn(async move { request.send().await.unwrap().status().as_u16() })
    };
    let mut sent: FuturesUnordered<_> = (0..4).map(|_| send()).collect();
    // One runs, one waits, and the others are told to come back.
    for _ in 0..2 {
        let status = offline.server.runtime.block_on(sent.next());
        assert_eq!(status.unwrap().unwrap(), 429);
    }
    for request in sent {
        request.abort();
    }
}

fn stop_ids() {
    let offline = Offline::start();
    let body = completion(json!({"stop_token_ids": vec![1; 1025]}));
    let refusal = Refusal(400, None, "1024 ids");
    assert_refused(&offline, "/v1/completions", body, &refusal);
}

fn vector_inputs() {
    let offline = Offline::start();
    let refusal = Refusal(400, None, "1 to 2048");
    let body = json!({"input": vec!["a"; 2049]});
    assert_refused(&offline, "/v1/embeddings", body, &refusal);
    let refusal = Refusal(400, None, "1 to 1024");
    let body = json!({"query": "q", "documents": vec!["a"; 1025]});
    assert_refused(&offline, "/v1/rerank", body, &refusal);
    let body = json!({"text_1": "q", "text_2": vec!["a"; 1025]});
    assert_refused(&offline, "/score", body, &refusal);
    let too_long = Refusal(400, Some("context_length_exceeded"), "tokens");
    let body = json!({"input": [long_text()]});
    assert_refused(&offline, "/v1/embeddings", body, &too_long);
}

/// The case of each row, by the row's name.
fn cases() -> BTreeMap<&'static str, fn()> {
    BTreeMap::from([
        (
            "text of a prompt, fork, candidate or prediction",
            long_texts as fn(),
        ),
        ("`/tokenize`, `/detokenize`", tokenised),
        ("JSON schema", schemas),
        ("work of one piece", work_time),
        ("work that waits", queued_work),
        ("pattern of a verifier or a step", patterns),
        ("`step.max_tokens`", steps),
        ("rewards, candidates, their texts", rewards),
        ("nodes of one branch call", branch_nodes),
        ("branch sessions' memory", branch_memory),
        ("`stop_token_ids`", stop_ids),
        (
            "texts of `/v1/embeddings`; documents, pairs of `/v1/rerank`, `/score`",
            vector_inputs,
        ),
    ])
}

#[test]
fn long_texts_are_refused_before_they_are_worked_on() {
    long_texts();
    tokenised();
}

#[test]
fn schemas_end_with_their_budget() {
    schemas();
}

#[test]
fn work_ends_with_its_budget_and_waits_for_its_turn() {
    work_time();
    queued_work();
}

#[test]
fn patterns_and_rewards_are_bounded() {
    patterns();
    steps();
    rewards();
    stop_ids();
    vector_inputs();
}

#[test]
fn branch_sessions_are_bounded() {
    branch_nodes();
    branch_memory();
}

#[test]
fn others_notice_nothing_of_a_schema_that_takes_for_ever() {
    let offline = Offline::start();
    let reward = verifier(json!({"type": "json_schema", "schema": doubling_schema(40)}));
    let body = score(reward, &["{}".to_owned()]).to_string();
    let request = reqwest::Client::new().post(format!("{}/v1/score", offline.server.url));
    let attack = offline.server.runtime.spawn(request.body(body).send());
    let slowest = (0..50)
        .map(|_| {
            let started = Instant::now();
            assert_eq!(offline.server.get("/health").0, 200);
            started.elapsed()
        })
        .max();
    // Not a measurement: before the change nothing was answered at all until the schema was done.
    assert!(slowest.unwrap() < Duration::from_secs(30));
    // Who hangs up ends the check.
    attack.abort();
}

/// The list in ARCHITECTURE.md and the cases are of the same limits.
#[test]
fn every_limit_on_the_architecture_page_has_a_case() {
    let page = std::fs::read_to_string("ARCHITECTURE.md").unwrap();
    let (_, section) = page.split_once("\n## Limits\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    // The first row is the table's head.
    let names: Vec<&str> = rows
        .skip(1)
        .filter_map(|row| row.split('|').nth(1).map(str::trim))
        .collect();
    let tested_here: Vec<&str> = cases().into_keys().collect();
    for name in &tested_here {
        assert!(names.contains(name), "{name} is not on the page");
    }
    for name in &names {
        let is_elsewhere = ELSEWHERE.iter().any(|(known, _)| known == name);
        assert!(
            tested_here.contains(name) || is_elsewhere,
            "no case for {name}"
        );
    }
    for (name, test) in ELSEWHERE {
        assert!(names.contains(name), "{name} is not on the page");
        let (file, function) = test.split_once("::").unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.contains(&format!("fn {function}(")), "{test} is gone");
    }
}

/// Limits whose tests are beside what they test: file and function.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "responses of one conversation",
        "tests/integration/api_responses.rs::a_conversation_is_no_longer_than_a_body",
    ),
    (
        "JSON values in the arguments of all calls of a history",
        "src/api/openai/messages/tests.rs::arguments_are_bounded",
    ),
    (
        "a grammar, an expression, their depth",
        "src/grammar/tests/hostile.rs::large_and_deep_grammars_are_refused",
    ),
    (
        "compiling a grammar, a mask",
        "src/grammar/tests/hostile.rs::a_text_that_needs_too_much_fails_alone",
    ),
    (
        "background responses",
        "src/api/responses/background.rs::one_key_leaves_places_to_others",
    ),
    (
        "events kept of background responses",
        "src/api/responses/background.rs::a_full_log_still_gets_the_last_event",
    ),
    (
        "texts that wait for an encoder",
        "tests/integration/encoders.rs::a_full_queue_refuses_and_the_shared_one_earlier",
    ),
    (
        "code of an answer",
        "tests/integration/code_tool.rs::errors_limits_and_empty_outputs_are_told",
    ),
    (
        "tested programs",
        "sandbox/tests/confined.rs::each_limit_has_its_error",
    ),
    (
        "branch sessions",
        "src/api/branches/session.rs::sessions_are_their_tenants_own_and_few",
    ),
    (
        "one body",
        "src/api/connections/tests/hostile.rs::chunked_bodies_are_bounded",
    ),
    (
        "bodies in flight",
        "src/api/connections/tests/limits.rs::bodies_share_a_budget",
    ),
    (
        "connections",
        "src/api/connections/tests/limits.rs::silent_connections_shut_nobody_out",
    ),
    (
        "requests of one key",
        "src/api/connections/tests/limits.rs::shares_end_with_answers",
    ),
    (
        "header, idle connection",
        "src/api/connections/tests/timeouts.rs::a_silent_connection_ends",
    ),
    (
        "a body that pauses",
        "src/api/connections/tests/timeouts.rs::a_body_may_be_slow_but_not_for_ever",
    ),
    (
        "an answer that nobody reads",
        "src/api/connections/tests/timeouts.rs::an_answer_that_nobody_reads_ends",
    ),
    (
        "running sequences",
        "src/engine/scheduler/tests.rs::tenants_take_turns_and_leave_places_to_others",
    ),
    (
        "waiting sequences",
        "src/engine/admission.rs::a_tenant_holds_its_share_and_no_more",
    ),
    (
        "adapters",
        "tests/integration/adapter_owners.rs::a_key_has_so_many_adapters_and_names_are_bounded",
    ),
    (
        "readers of traces",
        "tests/integration/trace_damage.rs::no_key_takes_all_seats_of_the_stream",
    ),
    (
        "a stored record",
        "src/trace/store/tests/damage.rs::no_changed_column_or_payload_is_served",
    ),
    (
        "a time",
        "tests/integration/api_faults.rs::deadlines_reach_the_wait_for_a_scorer",
    ),
];
