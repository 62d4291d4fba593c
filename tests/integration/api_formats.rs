//! Answers over the fake model: a stream spells what a body says, in every format, plain and
//! searched; and every choice ends once.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::api::{CHAT, sse};
use crate::offline::{Offline, chat, completion};

const COMPLETIONS: &str = "/v1/completions";

/// What a choice says: text, finish reason, stop reason, tokens with logprobs.
#[derive(Debug, Default, PartialEq)]
struct Choice {
    text: String,
    finish_reason: Value,
    stop_reason: Value,
    tokens: Vec<Value>,
    offsets: Vec<Value>,
}

impl Choice {
    fn take(&mut self, part: &Value) {
        for text in [
            &part["text"],
            &part["delta"]["content"],
            &part["message"]["content"],
        ] {
            self.text.push_str(text.as_str().unwrap_or_default());
        }
        for (own, name) in [
            (&mut self.finish_reason, "finish_reason"),
            (&mut self.stop_reason, "stop_reason"),
        ] {
            if !part[name].is_null() {
                assert!(own.is_null(), "{name} comes once: {part}");
                *own = part[name].clone();
            }
        }
        let logprobs = &part["logprobs"];
        for tokens in [&logprobs["content"], &logprobs["tokens"]] {
            self.tokens
                .extend(tokens.as_array().into_iter().flatten().cloned());
        }
        let offsets = logprobs["text_offset"].as_array();
        self.offsets.extend(offsets.into_iter().flatten().cloned());
    }
}

fn choices<'a>(bodies: impl IntoIterator<Item = &'a Value>) -> BTreeMap<u64, Choice> {
    let mut choices = BTreeMap::<u64, Choice>::new();
    for part in bodies
        .into_iter()
        .filter_map(|body| body["choices"].as_array())
        .flatten()
    {
        choices
            .entry(part["index"].as_u64().unwrap())
            .or_default()
            .take(part);
    }
    choices
}

/// The choices of a request, once its stream has said the same.
fn both_ways(offline: &Offline, path: &str, body: &Value) -> BTreeMap<u64, Choice> {
    let whole = offline.ask(path, body.clone());
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let (status, text) = offline.server.post_with(path, streamed.to_string(), &[]);
    assert_eq!(status, 200, "{text}");
    let chunks = sse(&text);
    let told = choices([&whole]);
    assert_eq!(choices(&chunks), told, "{body}");
    let last = chunks.last().unwrap();
    for part in [
        "prompt_tokens",
        "completion_tokens",
        "completion_tokens_details",
    ] {
        assert_eq!(last["usage"][part], whole["usage"][part], "{body}");
    }
    assert_eq!(last["search"]["value"], whole["search"]["value"]);
    let told_early = &chunks[..chunks.len() - 1];
    assert!(told_early.iter().all(|chunk| chunk["usage"].is_null()));
    told
}

#[test]
fn streams_spell_what_bodies_say() {
    let offline = Offline::start();
    let search = |strategy: &str| json!({"strategy": strategy, "n": 3, "step": {"max_tokens": 4}});
    for more in [
        json!({"n": 3}),
        json!({"n": 2, "ignore_eos": true, "min_tokens": 3}),
        json!({"search": search("best_of_n"), "n": 2}),
        json!({"search": search("beam"), "max_tokens": 24}),
        json!({"search": search("mcts"), "max_tokens": 24}),
        json!({"temperature": 0}),
        json!({"reasoning_effort": "medium"}),
    ] {
        let mut logprobs = more.clone();
        logprobs["logprobs"] = json!(true);
        logprobs["top_logprobs"] = json!(2);
        both_ways(&offline, CHAT, &chat(more.clone()));
        both_ways(&offline, CHAT, &chat(logprobs.clone()));
        logprobs.as_object_mut().unwrap().remove("top_logprobs");
        logprobs["logprobs"] = json!(2);
        both_ways(&offline, COMPLETIONS, &completion(more));
        both_ways(&offline, COMPLETIONS, &completion(logprobs));
    }
    let echo = json!({"prompt": ["Say it:", "Or this: é"], "n": 2, "echo": true, "logprobs": 0});
    let echoed = both_ways(&offline, COMPLETIONS, &completion(echo));
    assert!(echoed[&3].text.starts_with("Or this: é"));
    assert_eq!(echoed[&3].offsets[..3], [json!(0), json!(1), json!(2)]);
    offline.server.wait_until_free();
}

/// A greedy answer's tokens, by their ids.
fn greedy(offline: &Offline, max_tokens: usize) -> Vec<u32> {
    let body = completion(
        json!({"temperature": 0, "max_tokens": max_tokens, "store": true,
        "ignore_eos": true}),
    );
    let answer = offline.ask(COMPLETIONS, body);
    let id = answer["trace_id"].as_str().unwrap();
    let trace = offline.get(&format!("/v1/traces/{id}"));
    serde_json::from_value(trace["nodes"][1]["token_ids"].clone()).unwrap()
}

fn text_of(offline: &Offline, token_ids: &[u32]) -> String {
    let told = offline.ask("/detokenize", json!({"tokens": token_ids}));
    told["prompt"].as_str().unwrap().to_owned()
}

#[test]
fn a_stop_token_ends_a_choice_and_has_no_text() {
    let offline = Offline::start();
    let tokens = greedy(&offline, 12);
    let at = (1..tokens.len())
        .find(|at| !tokens[..*at].contains(&tokens[*at]))
        .unwrap();
    let stop = json!({"temperature": 0, "ignore_eos": true, "stop_token_ids": [tokens[at]]});
    let mut with_logprobs = stop.clone();
    with_logprobs["logprobs"] = json!(0);
    let told = both_ways(&offline, COMPLETIONS, &completion(with_logprobs));
    let choice = &told[&0];
    assert_eq!(choice.text, text_of(&offline, &tokens[..at]));
    assert_eq!(
        (&choice.finish_reason, &choice.stop_reason),
        (&json!("stop"), &json!(tokens[at]))
    );
    assert_eq!(
        choice.tokens.len(),
        at + 1,
        "the token that ended it is reported"
    );
    // Before `min_tokens` it cannot be sampled.
    let mut later = stop;
    later["min_tokens"] = json!(at + 1);
    let told = both_ways(&offline, COMPLETIONS, &completion(later));
    let whole = text_of(&offline, &tokens[..at]);
    assert!(
        told[&0]
            .text
            .starts_with(whole.trim_end_matches('\u{FFFD}'))
    );
}

#[test]
fn a_stop_string_ends_a_choice_where_it_begins() {
    let offline = Offline::start();
    let plain = completion(json!({"temperature": 0, "max_tokens": 40, "ignore_eos": true}));
    let full = both_ways(&offline, COMPLETIONS, &plain)[&0].text.clone();
    let stop: String = full.chars().skip(5).take(3).collect();
    let at = full.find(&stop).unwrap();
    let mut stopped = plain.clone();
    stopped["stop"] = json!(["never", stop]);
    let told = both_ways(&offline, COMPLETIONS, &stopped);
    assert_eq!(told[&0].text, full[..at]);
    assert_eq!(
        (&told[&0].finish_reason, &told[&0].stop_reason),
        (&json!("stop"), &json!(stop))
    );
    stopped["include_stop_str_in_output"] = json!(true);
    let told = both_ways(&offline, COMPLETIONS, &stopped);
    assert_eq!(told[&0].text, full[..at + stop.len()]);
    offline.server.wait_until_free();
}

#[test]
fn a_stream_shows_a_search_while_it_runs() {
    let offline = Offline::start();
    let search = json!({"strategy": "beam", "n": 2, "stream_events": true,
        "step": {"max_tokens": 4}});
    let body = chat(json!({"search": search, "stream": true})).to_string();
    let (_, text) = offline.server.post_with(CHAT, body, &[]);
    let chunks = sse(&text);
    let events: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &chunk["search_event"]["event"])
        .filter(|event| !event.is_null())
        .collect();
    assert!(events.contains(&&json!("spawn")) && events.contains(&&json!("score")));
    let last = chunks.last().unwrap();
    assert_eq!(last["search"]["strategy"], "beam");
    assert_eq!(last["choices"], json!([]));
}

#[test]
fn failures_keep_their_shape_in_streams() {
    let offline = Offline::start();
    // Checked before the stream begins: a status.
    let bad = chat(json!({"stream": true, "n": 0})).to_string();
    assert_eq!(offline.server.post_with(CHAT, bad, &[]).0, 400);
    // Too late for a status: an event, and no mark of a whole answer.
    let late = chat(json!({"stream": true, "ignore_eos": true, "max_tokens": 400}));
    let headers = [("request-timeout-ms", "1")];
    let (status, text) = offline.server.post_with(CHAT, late.to_string(), &headers);
    assert_eq!(status, 200);
    let last = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .next_back();
    let error: Value = serde_json::from_str(last.unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "timeout", "{text}");
    offline.server.wait_until_free();
}
