//! A search of the client's own, over HTTP.

use serde_json::{Value, json};

use crate::server::{Server, shared_server};

fn call(server: &Server, session: &str, what: &str, body: Value) -> (u16, Value) {
    server.post(&format!("/v1/branches/{session}/{what}"), body)
}

fn open(server: &Server, lease: u64) -> String {
    let (status, session) = server.post(
        "/v1/branches",
        json!({"model": "m", "messages": [{"role": "user", "content": "Count to nine in words."}],
            "max_tokens": 48, "temperature": 0.9, "seed": 5, "lease_seconds": lease}),
    );
    assert_eq!(status, 200, "{session}");
    assert_eq!(session["root"], 0);
    session["id"].as_str().unwrap().to_owned()
}

/// Beam search by hand; returns the answer and the session's usage.
fn beam(server: &Server) -> Value {
    let session = open(server, 60);
    let (mut beams, mut best) = (vec![0_u64], (0, -1.0));
    for _ in 0..4 {
        let step = json!({"max_tokens": 8});
        let body = json!({"nodes": beams, "n": 3, "step": step});
        let (status, children) = call(server, &session, "generate", body);
        assert_eq!(status, 200, "{children}");
        let children = children["data"].as_array().unwrap().clone();
        let nodes: Vec<u64> = children
            .iter()
            .filter(|child| child["is_new"] == true)
            .map(|child| child["node"].as_u64().unwrap())
            .collect();
        let body = json!({"nodes": nodes, "reward": {"kind": "likelihood"}});
        let (status, scores) = call(server, &session, "score", body);
        assert_eq!(status, 200, "{scores}");
        let mut scored: Vec<(u64, f64)> = scores["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| (s["node"].as_u64().unwrap(), s["score"].as_f64().unwrap()))
            .collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1));
        best = scored[0];
        let is_open = |node: &u64| {
            let child = children.iter().find(|child| child["node"] == *node);
            child.is_some_and(|child| child["end"].is_null())
        };
        beams = scored.iter().map(|s| s.0).filter(is_open).take(2).collect();
        if beams.is_empty() {
            break;
        }
    }
    let (status, answer) = call(server, &session, "commit", json!({"node": best.0}));
    assert_eq!(status, 200, "{answer}");
    let (status, _) = call(server, &session, "commit", json!({"node": 0}));
    assert_eq!(status, 404, "a committed session is gone");
    answer
}

#[test]
fn a_beam_search_is_a_few_calls_and_replays() {
    let server = shared_server();
    let (first, second) = (beam(server), beam(server));
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].clone();
    assert_eq!(text(&first), text(&second));
    assert_eq!(first["usage"], second["usage"]);
    assert!(first["usage"]["completion_tokens"].as_u64().unwrap() > 24);
    server.wait_until_free();
}

#[test]
fn clients_may_write_into_a_branch() {
    let server = shared_server();
    let session = open(server, 60);
    let body = json!({"node": 0, "text": "one, two, three, four,"});
    let (status, forked) = call(server, &session, "fork", body);
    assert_eq!(status, 200, "{forked}");
    let body = json!({"nodes": [forked["node"]], "n": 1});
    let (status, children) = call(server, &session, "generate", body);
    assert_eq!(status, 200, "{children}");
    let child = &children["data"][0];
    assert!(child["end"] == "stop" || child["end"] == "length");
    let node = child["node"].clone();
    // What has ended has nothing after it.
    let body = json!({"nodes": [node], "n": 1});
    let (status, error) = call(server, &session, "generate", body);
    assert_eq!((status, &error["error"]["param"]), (400, &json!("nodes")));
    let (_, answer) = call(server, &session, "commit", json!({"node": node}));
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.starts_with("one, two, three, four,"), "{text}");
}

#[test]
fn sessions_have_limits() {
    let server = shared_server();
    let session = open(server, 60);
    for (what, body, param) in [
        ("generate", json!({"nodes": []}), "nodes"),
        ("generate", json!({"nodes": [7]}), "nodes"),
        ("generate", json!({"nodes": [0], "n": 0}), "n"),
        (
            "generate",
            json!({"nodes": [0], "step": {"regex": "("}}),
            "regex",
        ),
        (
            "score",
            json!({"nodes": [0], "reward": {"kind": "x"}}),
            "reward[0].kind",
        ),
        ("fork", json!({"node": 0, "text": ""}), "text"),
        ("commit", json!({"node": 3}), "node"),
    ] {
        let (status, error) = call(server, &session, what, body);
        assert_eq!(
            (status, &error["error"]["param"]),
            (400, &json!(param)),
            "{what}"
        );
    }
    let (status, error) = server.post(
        "/v1/branches",
        json!({"model": "m", "prompt": "x", "search": "mcts"}),
    );
    assert_eq!((status, &error["error"]["param"]), (400, &json!("search")));
    assert_eq!(
        call(server, "branches-0", "commit", json!({"node": 0})).0,
        404
    );
    let mut open_sessions = Vec::new();
    let refused = loop {
        let (status, answer) = server.post("/v1/branches", json!({"model": "m", "prompt": "x"}));
        if status != 200 {
            break (status, answer["error"]["code"].clone());
        }
        open_sessions.push(answer["id"].as_str().unwrap().to_owned());
        assert!(open_sessions.len() < 100);
    };
    assert_eq!(refused, (429, json!("overloaded")));
    for id in open_sessions.into_iter().chain([session]) {
        assert_eq!(server.delete(&format!("/v1/branches/{id}")), 204);
    }
}
