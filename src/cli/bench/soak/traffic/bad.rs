//! Requests that are wrong in a way that the server must name.

use reqwest::Method;
use serde_json::{Value, json};

use super::plain::{CHAT, COMPLETIONS};
use crate::cli::bench::soak::client::Client;
use crate::cli::bench::soak::request::{Body, Key, Request};
use crate::cli::bench::soak::tally::{Ended, ensure};

/// Cases that are asked one after the other.
const CASES_AT_ONCE: usize = 4;

/// A chat with one field that is wrong.
fn chat(field: &str, value: Value) -> Request {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2});
    body[field] = value;
    Request::post(CHAT, body).expecting(&[400])
}

fn chats() -> Vec<Request> {
    vec![
        chat("messages", json!("Hi")),
        chat("messages", json!([])),
        chat("temperature", json!("warm")),
        chat("temperature", json!(-1)),
        chat("n", json!(0)),
        chat("n", json!(100_000)),
        chat("max_tokens", json!(-5)),
        chat("top_logprobs", json!(1000)),
        chat("stop", json!(vec!["x"; 100])),
        chat("logit_bias", json!({"-1": 1})),
        chat("search", json!({"strategy": "magic"})),
        chat(
            "search",
            json!({"strategy": "mcts", "budget": {"tokens": 0}}),
        ),
        chat(
            "search",
            json!({"strategy": "beam", "reward": {"kind": "majority"}}),
        ),
        chat(
            "search",
            json!({"strategy": "beam", "step": {"regex": "("}}),
        ),
        chat(
            "search",
            json!({"strategy": "best_of_n", "resume": "trace-0"}),
        )
        .expecting(&[400, 404]),
        chat("model", json!("no-such-model")).expecting(&[404]),
        chat("speculative", json!("maybe")),
        chat("metadata", json!({"long": "x".repeat(1000)})),
    ]
}

fn others() -> Vec<Request> {
    let post = |path: &str, body: Value| Request::post(path, body).expecting(&[400]);
    let get = |path: &str, status: u16| Request::get(path).expecting(&[status]);
    vec![
        post(COMPLETIONS, json!({"prompt": []})),
        post(COMPLETIONS, json!({"prompt": [4_000_000_000_u32]})),
        post(COMPLETIONS, json!({"prompt": "x", "best_of": 5})),
        post("/detokenize", json!({"tokens": [4_000_000_000_u32]})),
        post("/tokenize", json!({"prompt": "x", "messages": []})),
        post(
            "/v1/score",
            json!({"messages": [], "candidates": [], "reward": {"kind": "judge"}}),
        ),
        post("/v1/branches", json!({"prompt": "x", "stream": true})),
        post("/v1/branches/none/commit", json!({"node": 0})).expecting(&[404]),
        post("/v1/traces/trace-0/outcome", json!({"outcome": 1})).expecting(&[404]),
        post(
            "/v1/load_lora_adapter",
            json!({"lora_name": "x", "lora_path": "/etc"}),
        )
        .expecting(&[400, 403]),
        get("/v1/traces?limit=0", 400),
        get("/v1/traces?colour=red", 400),
        get("/v1/traces/trace-0", 404),
        get("/v1/traces/stream?after=soon", 400),
        get("/v1/traces/stream?after=999999999999", 410),
        get("/v1/chat/completions", 405),
        get("/v1/nothing", 404),
        get("/v1/models/no-such-model", 404),
        Request::delete("/v1/traces/trace-0").expecting(&[404]),
        Request::delete("/v1/branches/none").expecting(&[404]),
    ]
}

/// Bodies that are no JSON, keys that are none, deadlines that are no numbers.
fn malformed() -> Vec<Request> {
    let raw = |text: String| Request {
        method: Method::POST,
        body: Body::Raw(text),
        ..Request::get(CHAT).expecting(&[400])
    };
    vec![
        raw("{".to_owned()),
        raw(String::new()),
        raw("[".repeat(100_000)),
        raw("\u{0}\u{1}".to_owned()),
        raw("{\"messages\": \"\\ud800\"}".to_owned()),
        Request::get("/v1/models").of(Key::None).expecting(&[401]),
        Request::get("/v1/traces").of(Key::Wrong).expecting(&[401]),
        chat("n", json!(1)).of(Key::OfTraces).expecting(&[403]),
        Request {
            deadline: Some("soon".to_owned()),
            ..chat("n", json!(1))
        },
    ]
}

/// Some of them, each of which must be answered with the status of its mistake.
pub(super) async fn ask(client: &mut Client) -> Result<(), Ended> {
    let all: Vec<Request> = [chats(), others(), malformed()].concat();
    for _ in 0..CASES_AT_ONCE {
        let request = client.dice.pick(&all).clone();
        let answer = client.ask(&request).await?;
        let error = answer.json()?["error"].clone();
        let has_message = error["message"]
            .as_str()
            .is_some_and(|text| !text.is_empty());
        let path = request.path;
        ensure(has_message && error["type"].is_string(), || {
            format!("{path} answers {} with {error}", answer.status)
        })?;
    }
    Ok(())
}
