//! Requests that ask for far more work than they look: refused, or done within bounds.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::plain::CHAT;
use super::prompts;
use crate::cli::bench::soak::client::Client;
use crate::cli::bench::soak::request::Request;
use crate::cli::bench::soak::tally::{Ended, ensure};

/// No such request may take longer to be answered. The server promises a second of processor time a
/// piece, at low priority; this is what that may come to where all processors are busy and pieces of
/// the same key wait before it.
const LONGEST: Duration = Duration::from_secs(60);
const PROGRAM_DEADLINE_MS: u64 = 5000;
/// All that a client may get for such a request.
const STATUSES: [u16; 5] = [200, 400, 408, 413, 422];

fn chat(content: String, fields: Value) -> Request {
    let mut body = json!({"messages": [{"role": "user", "content": content}], "max_tokens": 8,
        "temperature": 1.0});
    if let (Some(body), Value::Object(fields)) = (body.as_object_mut(), fields) {
        body.extend(fields);
    }
    Request::post(CHAT, body)
}

fn score(candidates: Value, reward: Value) -> Request {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let body = json!({"reward": reward, "messages": messages, "candidates": candidates});
    Request::post("/v1/score", body)
}

/// A schema whose parts double with each level.
fn doubling_schema(levels: usize) -> Value {
    let mut definitions = serde_json::Map::new();
    for level in 0..levels {
        let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
        definitions.insert(format!("d{level}"), json!({"allOf": [next, next]}));
    }
    definitions.insert(format!("d{levels}"), json!({"type": "object"}));
    json!({"$ref": "#/$defs/d0", "$defs": definitions})
}

/// A program with a deadline: what programs may take together with those before them in the queue
/// is more than a client waits.
fn python(code: &str) -> Request {
    let candidate = format!("```python\n{code}\n```");
    let reward = json!({"kind": "verifier", "type": "python", "tests": ["assert True"]});
    Request {
        deadline: Some(PROGRAM_DEADLINE_MS.to_string()),
        ..score(json!([candidate, candidate]), reward)
    }
}

fn cases(may_run_code: bool, metadata: &Value) -> Vec<Request> {
    let search = |search: Value| {
        let fields = json!({"search": search, "max_tokens": 64, "metadata": metadata});
        chat("Go.".to_owned(), fields)
    };
    let answers = json!(vec!["answer ".repeat(20_000); 3]);
    let patterns = [
        r"(?:[ -~]?){5000}X",
        r"(\w+\s?)+$",
        r"(?i)(?:a|b|ab)*c{0,999}",
    ];
    let mut cases = vec![
        chat("7".repeat(2_000_000), json!({})),
        chat("word ".repeat(200_000), json!({"stream": true})),
        chat(
            "Hi".to_owned(),
            json!({"stop": vec!["x".repeat(1000); 16], "n": 3}),
        ),
        search(json!({"strategy": "beam", "n": 8,
            "step": {"regex": r"(?:[ -~\n]?){5000}[\x00\x01]", "max_tokens": 4000},
            "budget": {"tokens": 200}})),
        search(
            json!({"strategy": "vm_mcts", "n": 16, "iterations": 1000, "budget": {"tokens": 300}}),
        ),
        search(json!({"strategy": "self_consistency", "n": 64, "budget": {"tokens": 300}})),
        score(
            json!(["{\"a\": 1}", "{}"]),
            json!({"kind": "verifier", "type": "json_schema",
            "schema": doubling_schema(31)}),
        ),
        Request::post("/v1/branches", json!({"prompt": "x ".repeat(500_000)})),
        Request::post("/tokenize", json!({"prompt": "ab ".repeat(300_000)})),
    ];
    let by_pattern = patterns.map(|pattern| {
        let reward = json!({"kind": "verifier", "type": "regex", "pattern": pattern});
        score(answers.clone(), reward)
    });
    cases.extend(by_pattern);
    if may_run_code {
        cases.extend([
            python("while True: pass"),
            python("print('x' * 10**9)"),
            python("x = ['y' * 10**6 for _ in range(10**6)]"),
            python("import os\nfor _ in range(1000): os.fork()"),
            python("import time\ntime.sleep(60)"),
            python(
                "import threading\nfor _ in range(4000): threading.Thread(target=input).start()",
            ),
        ]);
    }
    cases
}

/// One of them, with a deadline or without.
pub(super) async fn ask(client: &mut Client) -> Result<(), Ended> {
    let cases = cases(client.shared.may_run_code, &prompts::metadata(client));
    let case = client.dice.pick(&cases).clone().expecting(&STATUSES);
    let request = client.temper(case);
    // What waits for the server to come back is no fault of its.
    client.address().await?;
    let life = client.life;
    let started = Instant::now();
    let ended = client.ask(&request).await;
    let elapsed = started.elapsed();
    if client.life == life && !matches!(ended, Err(Ended::Cut)) {
        ensure(elapsed <= LONGEST, || {
            let seconds = elapsed.as_secs_f64();
            format!("answered after {seconds:.1} s: {}", request.describe())
        })?;
    }
    ended.map(|_| ())
}
