//! Chats and completions without a search.

use serde_json::{Value, json};

use super::prompts;
use crate::cli::bench::soak::answers::{Asked, Read, streamed, whole};
use crate::cli::bench::soak::child::locked;
use crate::cli::bench::soak::client::Client;
use crate::cli::bench::soak::request::{Answer, Request, quoted};
use crate::cli::bench::soak::tally::{Ended, ensure};

pub(super) const CHAT: &str = "/v1/chat/completions";
pub(super) const COMPLETIONS: &str = "/v1/completions";
const MAX_TOKENS: usize = 24;

/// Reads an answer and checks that it adds up.
pub(super) fn read(answer: &Answer, body: &Value, asked: Asked) -> Result<Read, Ended> {
    let is_stream = body["stream"] == true;
    let read = match is_stream {
        true => streamed(&answer.text, asked),
        false => whole(&answer.json()?, asked),
    };
    let read = read.map_err(|error| {
        let (text, body) = (quoted(&answer.text), body.to_string());
        Ended::Failed(format!("{error}: {text} to {}", quoted(&body)))
    })?;
    match &read.error {
        None => Ok(read),
        Some(error) => Err(match error["type"].as_str() {
            Some("timeout_error") => Ended::Expired,
            Some("rate_limit_error" | "service_unavailable_error") => Ended::Refused,
            _ => Ended::Failed(format!("a stream ended with {error}")),
        }),
    }
}

/// Asks for an answer, whole or streamed, and reads it.
pub(super) async fn ask(
    client: &mut Client,
    path: &str,
    body: Value,
    asked: Asked,
) -> Result<Read, Ended> {
    let request = client.temper(Request::post(path, body.clone()));
    let answer = client.ask(&request).await?;
    match read(&answer, &body, asked) {
        // What was said before the end of the server is no answer.
        Err(Ended::Failed(_)) if !client.is_same_life() => Err(Ended::Cut),
        Err(Ended::Expired) => Err(request.expired()),
        read => read,
    }
}

/// Whether an answer with a seed is that of every time before.
pub(super) fn compare(client: &Client, name: Option<String>, read: &Read) -> Result<(), Ended> {
    let Some(name) = name else { return Ok(()) };
    let is_same = locked(&client.shared.same).is_same(name.clone(), &read.texts);
    ensure(is_same, || format!("another answer to {name}"))
}

/// A chat with a random set of what chats take, the name to compare under if it has a seed, and what
/// its answer must show.
fn chat_body(client: &mut Client) -> (Value, Option<String>, Asked) {
    let (model, dice) = (client.shared.model.clone(), &mut client.dice);
    let n = *dice.pick(&[1, 1, 1, 2, 3]);
    let max_tokens = 4 + dice.below(MAX_TOKENS);
    let mut asked = Asked {
        is_chat: true,
        is_search: false,
        num_choices: n,
        max_tokens: max_tokens as u64,
        logprobs: dice.chance(0.25),
    };
    let mut body = json!({"model": model, "n": n, "max_tokens": max_tokens, "temperature": 0.9});
    if asked.logprobs {
        body["logprobs"] = true.into();
        body["top_logprobs"] = dice.below(4).into();
    }
    if dice.chance(0.25) {
        body["stop"] = json!(["\n\n", ".", "the "]);
    }
    if dice.chance(0.2) {
        body["frequency_penalty"] = 0.5.into();
        body["top_p"] = 0.9.into();
        body["logit_bias"] = json!({"11": -5.0});
    }
    if dice.chance(0.2) {
        body["speculative"] = json!(*dice.pick(&["off", "prompt-lookup", "auto"]));
    }
    if dice.chance(0.4) {
        body["store"] = true.into();
        body["metadata"] = prompts::metadata(client);
    }
    let is_seeded = client.dice.chance(0.4);
    if !is_seeded {
        body["messages"] = prompts::messages(client);
        return (body, None, asked);
    }
    // All that changes the answer is fixed but for what must not change it.
    let (name, messages, seed) = prompts::seeded(client, "chat");
    for field in ["stop", "frequency_penalty", "top_p", "logit_bias"] {
        body.as_object_mut().map(|body| body.remove(field));
    }
    body["messages"] = messages;
    body["seed"] = seed.into();
    body["n"] = 2.into();
    body["max_tokens"] = MAX_TOKENS.into();
    asked.num_choices = 2;
    asked.max_tokens = MAX_TOKENS as u64;
    (body, Some(name), asked)
}

pub(super) async fn chat(client: &mut Client) -> Result<(), Ended> {
    let (body, name, asked) = chat_body(client);
    let read = ask(client, CHAT, body, asked).await?;
    compare(client, name, &read)
}

/// The same requests, so that streams and whole answers are compared with each other.
pub(super) async fn chat_stream(client: &mut Client) -> Result<(), Ended> {
    let (mut body, name, asked) = chat_body(client);
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let asked = Asked {
        logprobs: false,
        ..asked
    };
    let read = ask(client, CHAT, body, asked).await?;
    compare(client, name, &read)
}

pub(super) async fn completions(client: &mut Client) -> Result<(), Ended> {
    let texts = ["Once upon a time", "The answer is", "1, 2, 3,", "Ünïcödé"];
    let (model, dice) = (client.shared.model.clone(), &mut client.dice);
    let num_prompts = 1 + dice.below(texts.len());
    let max_tokens = 1 + dice.below(16);
    let mut body = json!({"model": model, "max_tokens": max_tokens, "temperature": 0.8});
    let is_text = dice.chance(0.7);
    body["prompt"] = match (is_text, num_prompts) {
        (true, 1) => texts[0].into(),
        (true, num) => texts[..num].into(),
        (false, 1) => json!([40, 41, 42, 43]),
        (false, num) => vec![json!([44, 45, 46]); num].into(),
    };
    let has_echo = dice.chance(0.3);
    body["echo"] = has_echo.into();
    let mut asked = Asked {
        is_chat: false,
        is_search: false,
        num_choices: num_prompts,
        max_tokens: max_tokens as u64,
        logprobs: dice.chance(0.3),
    };
    if asked.logprobs {
        body["logprobs"] = 2.into();
    }
    if dice.chance(0.3) {
        body["n"] = 2.into();
        asked.num_choices *= 2;
    }
    if dice.chance(0.3) {
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        asked.logprobs = false;
    }
    if dice.chance(0.3) {
        body["store"] = true.into();
        body["metadata"] = prompts::metadata(client);
    }
    let read = ask(client, COMPLETIONS, body, asked).await?;
    let per_prompt = asked.num_choices / num_prompts;
    for (index, text) in read.texts.iter().enumerate() {
        let prompt = texts[index / per_prompt];
        let is_right = !(has_echo && is_text) || text.starts_with(prompt);
        ensure(is_right, || format!("{text:?} does not echo {prompt:?}"))?;
    }
    Ok(())
}
