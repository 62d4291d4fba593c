//! Routes that answer at once: scores, tokens, models, probes.

use serde_json::{Value, json};

use super::{prompts, rewards};
use crate::cli::bench::soak::client::Client;
use crate::cli::bench::soak::request::{Key, Request};
use crate::cli::bench::soak::tally::{Ended, ensure};

pub(super) async fn score(client: &mut Client) -> Result<(), Ended> {
    let candidates = [
        "33",
        "The answer is 33.",
        "```python\ndef median(xs):\n    return sorted(xs)[len(xs) // 2]\n```",
        "{\"name\": \"x\"}",
        "",
    ];
    let num = 1 + client.dice.below(candidates.len());
    let body = json!({"model": client.shared.model, "reward": rewards::any(client),
        "messages": prompts::messages(client), "candidates": candidates[..num]});
    let request = client.temper(Request::post("/v1/score", body));
    let answer = client.ask(&request).await?.json()?;
    let scores = answer["data"].as_array().cloned().unwrap_or_default();
    let is_score = |score: &Value| {
        let score = score["score"].as_f64();
        score.is_some_and(|score| (0.0..=1.0).contains(&score))
    };
    let is_right = scores.len() == num && scores.iter().all(is_score);
    ensure(is_right, || {
        format!("{num} candidates are scored as {answer}")
    })
}

/// Of the process reward model, if there is one.
pub(super) async fn pooling(client: &mut Client) -> Result<(), Ended> {
    let messages = json!([{"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "One and one.\n\nThat is 2."}]);
    let request = Request::post("/pooling", json!({"messages": messages}));
    if !client.shared.has_prm {
        return client.ask(&request.expecting(&[400])).await.map(|_| ());
    }
    let answer = client.ask(&request).await?.json()?;
    let steps = answer["data"][0]["data"].as_array().map_or(0, Vec::len);
    ensure(steps > 0, || format!("no steps in {answer}"))
}

/// There and back again.
pub(super) async fn tokenize(client: &mut Client) -> Result<(), Ended> {
    let text = format!("{} {}", prompts::question(client), client.dice.next());
    let body = json!({"prompt": text, "add_special_tokens": false});
    let tokens = client
        .ask(&Request::post("/tokenize", body))
        .await?
        .json()?;
    let ids = &tokens["tokens"];
    let count = ids.as_array().map_or(0, Vec::len);
    ensure(tokens["count"] == count, || format!("{tokens}"))?;
    let body = json!({"tokens": ids});
    let answer = client.ask(&Request::post("/detokenize", body)).await?;
    let back = answer.json()?["prompt"].clone();
    // Some tokenizers put a space before the first word.
    let is_same = back.as_str().is_some_and(|back| back.trim_start() == text);
    ensure(is_same, || format!("{text:?} comes back as {back}"))
}

pub(super) async fn models(client: &mut Client) -> Result<(), Ended> {
    let list = client.ask(&Request::get("/v1/models")).await?.json()?;
    let model = client.shared.model.clone();
    ensure(list["data"][0]["id"] == model, || format!("{list}"))?;
    let one = Request::get(format!("/v1/models/{model}"));
    let one = client.ask(&one).await?.json()?;
    ensure(one["id"] == model, || format!("{one}"))
}

/// What nobody needs a key for, and the documents.
pub(super) async fn probes(client: &mut Client) -> Result<(), Ended> {
    for path in ["/health", "/ready", "/metrics"] {
        let answer = client.ask(&Request::get(path).of(Key::None)).await?;
        ensure(!answer.text.is_empty(), || format!("{path} is empty"))?;
    }
    client.ask(&Request::get("/version")).await?.json()?;
    client.ask(&Request::get("/openapi.json")).await?.json()?;
    Ok(())
}
