//! What is asked about.

use serde_json::{Value, json};

use crate::cli::bench::soak::client::Client;

const QUESTIONS: [&str; 8] = [
    "What is 17 + 25 - 9?",
    "Name three colours.",
    "Write `def median(xs)` in a code block.",
    "Say something about the river 🌊 and the stone.",
    "Count to nine in words.",
    "Tell me a story about a quiet engine.",
    "Answer with JSON that has a field `name`.",
    "What is the capital of France?",
];
/// Requests with a seed that are asked again and again.
const NUM_SEEDS: usize = 6;
/// What several requests begin with: most of it is in the prefix cache.
const LONG_SYSTEM: &str = "You answer briefly, in plain words, without lists, without headings, and \
     you never repeat the question. When a question has numbers, you think in one short step.";

pub(super) fn question(client: &mut Client) -> &'static str {
    QUESTIONS[client.dice.below(QUESTIONS.len())]
}

/// Messages of a chat: sometimes behind a long beginning, sometimes with a number that is new.
pub(super) fn messages(client: &mut Client) -> Value {
    let mut text = question(client).to_owned();
    if client.dice.chance(0.5) {
        text = format!("{text} ({})", client.dice.below(100_000));
    }
    let user = json!({"role": "user", "content": text});
    match client.dice.below(3) {
        0 => json!([{"role": "system", "content": LONG_SYSTEM}, user]),
        1 => json!([
            {"role": "user", "content": question(client)},
            {"role": "assistant", "content": "I do not know."},
            user
        ]),
        _ => json!([user]),
    }
}

/// A question that is asked with the same seed every time, and the name under which its answers
/// are compared.
pub(super) fn seeded(client: &mut Client, what: &str) -> (String, Value, usize) {
    let seed = client.dice.below(NUM_SEEDS);
    let messages = json!([{"role": "user", "content": QUESTIONS[seed % QUESTIONS.len()]}]);
    (format!("{what}, seed {seed}"), messages, seed)
}

/// The labels by which readers tell keys apart.
pub(super) fn metadata(client: &Client) -> Value {
    json!({"key": client.key.to_string()})
}
