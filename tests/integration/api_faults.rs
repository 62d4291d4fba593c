//! Faults that the API had, over the fake model: effects whose reply is lost, deadlines that did
//! not reach a wait, numbers that are too large or too small, nodes named twice.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ponder::api::ServerConfig;
use serde_json::{Value, json};

use crate::api::CHAT;
use crate::offline::{Offline, adapter_folder, chat, completion};

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Waits for something that is about to happen.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        std::thread::yield_now();
    }
}

fn late(offline: &Offline, path: &str, body: &Value, timeout_ms: &str) -> (u16, Value) {
    let headers = [("request-timeout-ms", timeout_ms)];
    let (status, text) = offline.server.post_with(path, body.to_string(), &headers);
    (status, serde_json::from_str(&text).unwrap_or(json!(text)))
}

#[test]
fn an_adapter_is_loaded_whether_or_not_its_client_waits() {
    let offline = Offline::start();
    let (server, backend) = (&offline.server, &offline.backend);
    let folder = adapter_folder(offline.folder.path());
    let load = |name: &str| json!({"lora_name": name, "lora_path": folder});
    // One client gives up by its deadline, one hangs up.
    let path = "/v1/load_lora_adapter";
    assert_eq!(late(&offline, path, &load("late"), "5").0, 408);
    wait_until("the load", || backend.num_loading() == 1);
    backend.permit_load();
    wait_until("the end", || server.get("/v1/models/late").0 == 200);
    let url = format!("{}{path}", server.url);
    let request = reqwest::Client::new().post(url);
    let request = request.body(load("gone").to_string()).send();
    let client = server.runtime.spawn(request);
    wait_until("the load", || backend.num_loading() == 1);
    client.abort();
    // Answers to others are later than the server's word of the hang-up.
    for _ in 0..20 {
        assert_eq!(server.get("/health").0, 200);
    }
    backend.permit_load();
    wait_until("the end", || server.get("/v1/models/gone").0 == 200);
    assert_eq!(backend.num_adapters(), 2);
    for name in ["late", "gone"] {
        let body = json!({"lora_name": name});
        assert_eq!(offline.post("/v1/unload_lora_adapter", body).0, 200);
    }
    assert_eq!(
        backend.num_adapters(),
        0,
        "nothing is left that has no name"
    );
}

#[test]
fn deadlines_reach_the_wait_for_a_scorer() {
    let offline = Offline::start();
    let conversation = json!([{"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"}]);
    let judged = json!({"candidates": ["2"], "reward": {"kind": "judge"}});
    let session = offline.ask("/v1/branches", chat(json!({})));
    let branch = |what: &str| format!("/v1/branches/{}/{what}", session["id"].as_str().unwrap());
    offline.ask(&branch("fork"), json!({"node": 0, "text": "2"}));
    let node = json!({"nodes": [1], "reward": {"kind": "judge"}});
    offline
        .backend
        .refuses_pooling
        .store(true, Ordering::Release);
    for (path, body) in [
        ("/v1/score", &judged),
        ("/pooling", &json!({"messages": conversation})),
        (branch("score").as_str(), &node),
    ] {
        let (status, error) = late(&offline, path, body, "20");
        assert_eq!(
            (status, &error["error"]["code"]),
            (408, &json!("timeout")),
            "{path}"
        );
    }
    // A search gives what it has: by then it has answers, and waits for their judge.
    let search = json!({"strategy": "best_of_n", "n": 2, "reward": {"kind": "judge"}});
    let body = chat(json!({"search": search}));
    let (status, answer) = late(&offline, CHAT, &body, "3000");
    let stopped = (status, &answer["search"]["stopped"]);
    assert_eq!(stopped, (200, &json!("budget")), "{answer}");
    // The session was not harmed.
    offline
        .backend
        .refuses_pooling
        .store(false, Ordering::Release);
    offline.ask(&branch("score"), node);
}

#[test]
fn no_timeout_is_too_large() {
    let largest = u64::MAX.to_string();
    for request_timeout in [
        Duration::from_secs(u64::MAX),
        Duration::MAX,
        Duration::from_secs(i64::MAX as u64),
    ] {
        let offline = Offline::with(ServerConfig {
            request_timeout,
            ..ServerConfig::default()
        });
        let search = json!({"strategy": "best_of_n", "n": 2, "reward": {"kind": "judge"},
            "budget": {"ms": u64::MAX}});
        for body in [chat(json!({})), chat(json!({"search": search}))] {
            assert_eq!(offline.post(CHAT, body.clone()).0, 200);
            assert_eq!(late(&offline, CHAT, &body, &largest).0, 200);
        }
        let session = offline.ask("/v1/branches", completion(json!({})));
        let session = session["id"].as_str().unwrap();
        let generate = format!("/v1/branches/{session}/generate");
        assert_eq!(
            late(&offline, &generate, &json!({"nodes": [0]}), &largest).0,
            200
        );
    }
    let offline = Offline::start();
    for lease in [
        json!(0),
        json!(3601),
        json!(u64::MAX),
        json!(-1),
        json!(1.5),
    ] {
        let (status, error) = offline.post("/v1/branches", chat(json!({"lease_seconds": lease})));
        assert_eq!(
            (status, &error["error"]["param"]),
            (400, &json!("lease_seconds"))
        );
    }
}

#[test]
fn a_node_is_named_once_a_call() {
    let offline = Offline::start();
    let session = offline.ask("/v1/branches", chat(json!({"ignore_eos": true})));
    let path = |what: &str| format!("/v1/branches/{}/{what}", session["id"].as_str().unwrap());
    let step = json!({"max_tokens": 3});
    let body = json!({"nodes": [0], "n": 2, "step": step});
    let children = offline.ask(&path("generate"), body);
    assert_ne!(children["data"][0]["text"], children["data"][1]["text"]);
    let likelihood = json!({"kind": "likelihood"});
    for (what, body) in [
        ("generate", json!({"nodes": [0, 0], "step": step})),
        ("generate", json!({"nodes": [1, 2, 1], "step": step})),
    ] {
        let (status, error) = offline.post(&path(what), body);
        assert_eq!((status, &error["error"]["param"]), (400, &json!("nodes")));
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains("twice"), "{message}");
    }
    // A node has one score, however often it is named.
    let scored = offline.ask(
        &path("score"),
        json!({"nodes": [1, 1], "reward": likelihood}),
    );
    assert_eq!(scored["data"].as_array().unwrap().len(), 1);
    // Refused calls cost nothing: what follows is what would have followed.
    let again = offline.ask("/v1/branches", chat(json!({"ignore_eos": true})));
    let again = again["id"].as_str().unwrap();
    let next = json!({"nodes": [0], "n": 2, "step": step});
    offline.ask(&format!("/v1/branches/{again}/generate"), next.clone());
    assert_eq!(
        offline.ask(&path("generate"), next.clone()),
        offline.ask(&format!("/v1/branches/{again}/generate"), next)
    );
}

#[test]
fn a_session_outlives_a_call_that_nobody_waits_for() {
    let offline = Offline::start();
    let session = offline.ask("/v1/branches", chat(json!({})));
    let path = |what: &str| format!("/v1/branches/{}/{what}", session["id"].as_str().unwrap());
    let (status, _) = late(&offline, &path("generate"), &json!({"nodes": [0]}), "0");
    assert!(matches!(status, 200 | 408), "{status}");
    offline.ask(&path("generate"), json!({"nodes": [0], "n": 2}));
    offline.ask(&path("commit"), json!({"node": 1}));
    offline.server.wait_until_free();
}

#[test]
fn latencies_are_counted_by_choice() {
    let offline = Offline::start();
    let body = json!({"n": 8, "ignore_eos": true, "max_tokens": 5});
    offline.ask(CHAT, chat(body.clone()));
    let mut streamed = body;
    streamed["stream"] = json!(true);
    offline
        .server
        .post_with(CHAT, chat(streamed).to_string(), &[]);
    let (_, metrics) = offline.server.get("/metrics");
    let count = |name: &str| -> u64 {
        let head = format!("vllm:{name}_count{{model_name=\"m\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&head));
        line.unwrap_or_else(|| panic!("{name} is not in\n{metrics}"))
            .parse()
            .unwrap()
    };
    assert_eq!(count("time_to_first_token_seconds"), 2);
    assert_eq!(count("inter_token_latency_seconds"), 2 * 8 * 4);
    assert_eq!(count("request_generation_tokens"), 16);
}

#[test]
fn legal_numbers_make_answers() {
    let offline = Offline::start();
    for more in [
        json!({"temperature": 1e-39}),
        json!({"repetition_penalty": 1e-39}),
        json!({"temperature": 1e-39, "repetition_penalty": 1e-39, "presence_penalty": -2}),
        json!({"repetition_penalty": 100, "frequency_penalty": 2, "temperature": 1e-300}),
        json!({"min_p": 1, "top_p": 1e-30, "top_k": 1}),
        json!({"logit_bias": {"65": 100, "66": -100}, "temperature": 1e-39}),
    ] {
        let answer = offline.ask(CHAT, chat(more));
        assert_ne!(answer["usage"]["completion_tokens"], 0, "{answer}");
    }
    // The least that a float of the engine can say is above 0; what is below is 0.
    let (status, error) = offline.post(CHAT, chat(json!({"repetition_penalty": 1e-60})));
    let param = json!("repetition_penalty");
    assert_eq!((status, &error["error"]["param"]), (400, &param));
    let greedy = offline.ask(CHAT, chat(json!({"temperature": 0})));
    let least = offline.ask(CHAT, chat(json!({"top_p": 1e-60})));
    assert_eq!(least["choices"], greedy["choices"]);
}

/// An engine that stands still answers nobody: whoever balances loads is told.
#[test]
fn health_tells_of_an_engine_that_stands_still() {
    let offline = Offline::start();
    let metric = |value: &str| {
        let metrics = offline.server.get("/metrics").1;
        let mut lines = metrics.lines();
        lines.any(|line| line.starts_with("ponder_engine_stalled{") && line.ends_with(value))
    };
    assert_eq!(offline.server.get("/health").0, 200);
    assert!(metric(" 0"));
    offline.backend.is_stalled.store(true, Ordering::Release);
    let (status, body) = offline.server.get("/health");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 503);
    assert_eq!(body["status"], "stalled");
    assert_eq!(body["seconds_without_progress"], 60);
    assert_eq!(body["num_requests_waiting"], 0);
    assert!(metric(" 1"));
    offline.backend.is_stalled.store(false, Ordering::Release);
    assert_eq!(offline.server.get("/health").0, 200);
}
