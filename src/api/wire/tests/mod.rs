//! Each format by itself: events in, exact JSON out.

mod chat;
mod completions;
mod tools;

use serde_json::{Value, json};

use super::Wire;
use super::envelope::Head;
use super::format::Frame;
use crate::api::answer::event::{
    AnswerEvent, ChoiceEnd, Delta, EndReason, PromptReport, StopReason, Summary, Token,
    TokenLogprob, Usage,
};
use crate::api::answer::whole::Whole;
use crate::api::error::ApiError;
use crate::search::SearchEvent;

fn head() -> Head {
    Head {
        id: "id-1".to_owned(),
        model: "m".to_owned(),
        created: 5,
        n: 1,
        ..Head::default()
    }
}

/// The object around choices.
fn around(object: &str, choices: Value) -> Value {
    json!({"id": "id-1", "object": object, "created": 5, "model": "m",
        "system_fingerprint": concat!("ponder-", env!("CARGO_PKG_VERSION")), "choices": choices})
}

/// With more fields at the end.
fn and(mut body: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn entry(text: &str, logprob: f32, other: &str) -> TokenLogprob {
    let token = |text: &str| Token {
        id: u32::from(text.as_bytes()[0]),
        bytes: text.as_bytes().to_vec(),
        is_special: false,
    };
    TokenLogprob {
        token: token(text),
        logprob,
        top: vec![(token(text), logprob), (token(other), -2.5)],
    }
}

fn delta(choice: usize, text: &str) -> AnswerEvent {
    let delta = Delta {
        text: text.to_owned(),
        ..Delta::default()
    };
    AnswerEvent::Delta { choice, delta }
}

fn end(choice: usize, text: &str, reason: EndReason, stop: Option<StopReason>) -> AnswerEvent {
    AnswerEvent::End {
        choice,
        last: Delta {
            text: text.to_owned(),
            ..Delta::default()
        },
        end: ChoiceEnd {
            reason,
            stop,
            value: None,
        },
    }
}

fn done() -> AnswerEvent {
    AnswerEvent::Done(Box::new(Summary {
        usage: Usage {
            num_prompt_tokens: 3,
            num_cached_tokens: 2,
            num_completion_tokens: 4,
            num_reasoning_tokens: 1,
            ..Usage::default()
        },
        ..Summary::default()
    }))
}

fn usage() -> Value {
    json!({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 1, "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}})
}

/// Data of all frames, byte for byte.
fn stream(wire: Wire, head: Head, events: Vec<AnswerEvent>) -> Vec<String> {
    let mut format = wire.format(head);
    let frames = events.into_iter().flat_map(|event| format.frames(event));
    let data = |Frame { name, data }: Frame| {
        assert_eq!(name, None, "these formats do not name their events");
        data
    };
    frames.map(data).collect()
}

fn body(wire: Wire, head: Head, events: Vec<AnswerEvent>) -> String {
    let mut whole = Whole::default();
    for event in events {
        whole.take(event);
    }
    wire.format(head).body(whole).to_string()
}

fn texts(values: Vec<Value>) -> Vec<String> {
    let texts = values.iter().map(|value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    });
    texts.collect()
}

/// Two choices whose parts come in turns; the second ends with a stop string.
fn two_choices() -> Vec<AnswerEvent> {
    let stop = StopReason::Text("!".to_owned());
    vec![
        delta(0, ""),
        delta(1, "a"),
        delta(0, "b"),
        end(1, "", EndReason::Stop, Some(stop)),
        end(0, "c", EndReason::Length, None),
        done(),
    ]
}

/// An echoed prompt, then two tokens with log-probabilities, then a stop token.
fn echoed() -> Vec<AnswerEvent> {
    let some = |tokens: Vec<TokenLogprob>| Some(tokens);
    let part = |text: &str, entry| Delta {
        text: text.to_owned(),
        logprobs: some(vec![entry]),
        ..Delta::default()
    };
    let first = entry("é", -0.5, "x");
    vec![
        AnswerEvent::Prompt(PromptReport {
            prompt: 0,
            echo: Some("éy".to_owned()),
            tokens: Some(vec![
                (first.token.clone(), None),
                (entry("y", -1.5, "x").token, Some(entry("y", -1.5, "x"))),
            ]),
            token_ids: None,
        }),
        AnswerEvent::Delta {
            choice: 0,
            delta: part("a", entry("a", -0.5, "b")),
        },
        AnswerEvent::End {
            choice: 0,
            last: part("", entry("c", -0.25, "d")),
            end: ChoiceEnd {
                reason: EndReason::Stop,
                stop: Some(StopReason::Token(99)),
                value: None,
            },
        },
        done(),
    ]
}

#[test]
fn bodies() {
    let choice = |index: usize, text: &str, reason: &str| {
        json!({"index": index,
            "message": {"role": "assistant", "content": text, "refusal": null},
            "logprobs": null, "finish_reason": reason})
    };
    let choices = json!([choice(0, "bc", "length"), choice(1, "a", "stop")]);
    let expected = and(
        around("chat.completion", choices),
        json!({"usage": usage()}),
    );
    assert_eq!(
        body(Wire::Chat, head(), two_choices()),
        expected.to_string()
    );
    let choice = |index: usize, text: &str, reason: &str, stop: Value| {
        json!({"index": index, "text": text, "logprobs": null, "finish_reason": reason,
            "stop_reason": stop})
    };
    let choices = json!([
        choice(0, "bc", "length", Value::Null),
        choice(1, "a", "stop", json!("!"))
    ]);
    let expected = and(
        around("text_completion", choices),
        json!({"usage": usage()}),
    );
    assert_eq!(
        body(Wire::Completions, head(), two_choices()),
        expected.to_string()
    );
}

#[test]
fn searches_traces_and_adaptation() {
    let report = json!({"strategy": "mcts", "trace_id": "trace-1"});
    let summary = |search: Option<&Value>| {
        let AnswerEvent::Done(mut summary) = done() else {
            unreachable!()
        };
        summary.search = search.cloned();
        summary.traces = Some(vec![Some("trace-1".to_owned())]);
        summary.adaptation = Some(json!({"phases": []}));
        AnswerEvent::Done(summary)
    };
    let object = "chat.completion.chunk";
    let progress = SearchEvent::Prune { node: 3 };
    let events = vec![AnswerEvent::Search(progress), summary(Some(&report))];
    let told = json!({"trace_id": "trace-1", "adaptation": {"phases": []}});
    let expected = vec![
        and(
            around(object, json!([])),
            json!({"search_event": {"event": "prune", "node": 3}}),
        ),
        and(
            and(around(object, json!([])), json!({"search": report})),
            told.clone(),
        ),
        json!("[DONE]"),
    ];
    assert_eq!(stream(Wire::Chat, head(), events), texts(expected));
    // A plain answer's trace is told to those who asked for it.
    assert_eq!(stream(Wire::Chat, head(), vec![summary(None)]), ["[DONE]"]);
    let asked = Head {
        tells_trace: true,
        ..head()
    };
    let expected = vec![and(around(object, json!([])), told), json!("[DONE]")];
    assert_eq!(
        stream(Wire::Chat, asked.clone(), vec![summary(None)]),
        texts(expected)
    );
    assert_eq!(
        stream(Wire::Chat, asked, vec![done()]),
        ["[DONE]"],
        "none was kept"
    );
    // A searched choice has its value.
    let ranked = AnswerEvent::End {
        choice: 0,
        last: Delta::default(),
        end: ChoiceEnd {
            reason: EndReason::Stop,
            stop: None,
            value: Some(0.5),
        },
    };
    for wire in [Wire::Chat, Wire::Completions] {
        let events = vec![ranked.clone(), summary(Some(&report))];
        let body: Value = serde_json::from_str(&body(wire, head(), events)).unwrap();
        assert_eq!(body["choices"][0]["value"], 0.5);
        assert_eq!(body["search"], report);
    }
}

#[test]
fn failed_streams_end_with_the_error() {
    for wire in [Wire::Chat, Wire::Completions] {
        let mut format = wire.format(head());
        let frames = format.error(&ApiError::deadline());
        assert_eq!(frames, [Frame::of(&ApiError::deadline().body())]);
    }
}
