//! The short form of the soak: many streaming clients at once, a third of which hang up.

use std::collections::HashMap;

use futures::StreamExt;
use ponder::api::ServerConfig;
use ponder::engine::EngineOptions;
use ponder::model::testing::uniform;
use serde_json::{Value, json};

use crate::server::{options, start};

const NUM_CLIENTS: u64 = 200;
const OUTPUT_LEN: usize = 10;
const PROMPTS: [&str; 8] = [
    "The capital of France is",
    "1, 2, 3, 4,",
    "def add(a, b):",
    "Water boils at",
    "Once upon a time",
    "The opposite of hot is",
    "SELECT name FROM",
    "Dear Sir or Madam,",
];

fn body(prompt: &str) -> Value {
    json!({"model": "m", "prompt": prompt, "max_tokens": OUTPUT_LEN, "temperature": 0.8, "seed": 3,
        "ignore_eos": true, "stream": true})
}

/// Reads a streamed answer up to `max_chunks` and hangs up.
async fn read(url: String, prompt: &'static str, max_chunks: usize) -> String {
    let request = reqwest::Client::new().post(format!("{url}/v1/completions"));
    let response = request.json(&body(prompt)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let mut bytes = response.bytes_stream();
    let (mut received, mut text, mut num_chunks) = (Vec::new(), String::new(), 0);
    while let Some(bytes) = bytes.next().await {
        received.extend_from_slice(&bytes.unwrap());
        while let Some(end) = received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = received.drain(..=end).collect();
            let Some(data) = line.strip_prefix(b"data: {") else {
                continue;
            };
            let event: Value = serde_json::from_slice(&[b"{", data].concat()).unwrap();
            text.push_str(event["choices"][0]["text"].as_str().expect("a text chunk"));
            num_chunks += 1;
            if num_chunks == max_chunks {
                return text;
            }
        }
    }
    text
}

#[test]
fn two_hundred_clients_get_their_answers_while_a_third_hangs_up() {
    let options = EngineOptions {
        max_num_seqs: 48,
        max_num_batched_tokens: 256,
        ..options()
    };
    let server = start(ServerConfig::default(), &options);
    let alone: HashMap<&str, String> = PROMPTS
        .iter()
        .map(|prompt| {
            let answer = read(server.url.clone(), prompt, usize::MAX);
            (*prompt, server.runtime.block_on(answer))
        })
        .collect();
    let mut state = 11;
    let clients: Vec<_> = (0..NUM_CLIENTS)
        .map(|client| {
            let prompt = PROMPTS[client as usize % PROMPTS.len()];
            let hangs_up = client % 3 == 0;
            let after = 1 + (uniform(&mut state).abs() * (OUTPUT_LEN - 1) as f32) as usize;
            let max_chunks = if hangs_up { after } else { usize::MAX };
            let task = server
                .runtime
                .spawn(read(server.url.clone(), prompt, max_chunks));
            (prompt, hangs_up, task)
        })
        .collect();
    for (prompt, hangs_up, task) in clients {
        let text = server.runtime.block_on(task).expect("the client is served");
        let expected = &alone[prompt];
        if hangs_up {
            assert!(expected.starts_with(&text), "{text:?} of {expected:?}");
        } else {
            assert_eq!(&text, expected, "{prompt}");
        }
    }
    server.wait_until_free();
}
