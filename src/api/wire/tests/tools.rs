//! Calls and thoughts in chats.

use serde_json::{Value, json};

use super::{around, body, done, end, head, stream, texts};
use crate::api::answer::event::{AnswerEvent, Delta, EndReason, ToolCallDelta, ToolCallHead};
use crate::api::wire::Wire;
use crate::api::wire::envelope::Head;

fn begin(index: usize, name: &str) -> ToolCallDelta {
    ToolCallDelta {
        index,
        head: Some(ToolCallHead {
            id: format!("call_{index}"),
            name: name.to_owned(),
        }),
        arguments: String::new(),
    }
}

fn more(index: usize, arguments: &str) -> ToolCallDelta {
    ToolCallDelta {
        index,
        head: None,
        arguments: arguments.to_owned(),
    }
}

fn part(delta: Delta) -> AnswerEvent {
    AnswerEvent::Delta { choice: 0, delta }
}

fn calling(tool_calls: Vec<ToolCallDelta>) -> AnswerEvent {
    part(Delta {
        tool_calls,
        ..Delta::default()
    })
}

/// A thought, then two calls in pieces.
fn thoughts_and_calls() -> Vec<AnswerEvent> {
    let thought = |text: &str| {
        part(Delta {
            reasoning: text.to_owned(),
            ..Delta::default()
        })
    };
    vec![
        part(Delta::default()),
        thought("hm"),
        thought(", well"),
        calling(vec![begin(0, "a"), more(0, "{\"x\"")]),
        calling(vec![more(0, ":1}"), begin(1, "b")]),
        calling(vec![more(1, "{}")]),
        end(0, "", EndReason::ToolCalls, None),
        done(),
    ]
}

fn chunk(delta: Value, reason: Value) -> Value {
    let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason});
    around("chat.completion.chunk", json!([choice]))
}

#[test]
fn calls_and_thoughts_in_chunks() {
    let role = chunk(json!({"role": "assistant", "content": ""}), Value::Null);
    let thought = |text: &str| {
        chunk(
            json!({"reasoning_content": text, "reasoning": text}),
            Value::Null,
        )
    };
    let call = |index: usize, name: &str| {
        let function = json!({"name": name, "arguments": ""});
        let id = format!("call_{index}");
        let call = json!({"index": index, "id": id, "type": "function", "function": function});
        chunk(json!({"tool_calls": [call]}), Value::Null)
    };
    let arguments = |index: usize, text: &str| {
        let call = json!({"index": index, "function": {"arguments": text}});
        chunk(json!({"tool_calls": [call]}), Value::Null)
    };
    let expected = vec![
        role.clone(),
        thought("hm"),
        thought(", well"),
        call(0, "a"),
        arguments(0, "{\"x\""),
        arguments(0, ":1}"),
        call(1, "b"),
        arguments(1, "{}"),
        chunk(json!({}), json!("tool_calls")),
        json!("[DONE]"),
    ];
    let events = thoughts_and_calls();
    assert_eq!(stream(Wire::Chat, head(), events.clone()), texts(expected));
    // As OpenAI had it before there were tools: one call.
    let legacy = Head {
        is_legacy: true,
        ..head()
    };
    let call = |function: Value| chunk(json!({"function_call": function}), Value::Null);
    let expected = vec![
        role,
        call(json!({"name": "a", "arguments": ""})),
        call(json!({"arguments": "{}"})),
        chunk(json!({}), json!("function_call")),
        json!("[DONE]"),
    ];
    let events = vec![
        part(Delta::default()),
        calling(vec![begin(0, "a"), more(0, "{}")]),
        end(0, "", EndReason::ToolCalls, None),
        done(),
    ];
    assert_eq!(
        stream(Wire::Chat, legacy.clone(), events.clone()),
        texts(expected)
    );
    let whole: Value = serde_json::from_str(&body(Wire::Chat, legacy, events)).unwrap();
    let message = json!({"role": "assistant", "content": null, "refusal": null,
        "function_call": {"name": "a", "arguments": "{}"}});
    assert_eq!(whole["choices"][0]["message"], message);
    assert_eq!(whole["choices"][0]["finish_reason"], "function_call");
}

#[test]
fn calls_and_thoughts_in_bodies() {
    let message = |events: Vec<AnswerEvent>| {
        let whole: Value = serde_json::from_str(&body(Wire::Chat, head(), events)).unwrap();
        whole["choices"][0]["message"].clone()
    };
    let call = |index: usize, name: &str, arguments: &str| {
        json!({"id": format!("call_{index}"), "type": "function",
            "function": {"name": name, "arguments": arguments}})
    };
    let expected = json!({"role": "assistant", "content": null, "refusal": null,
        "reasoning_content": "hm, well", "reasoning": "hm, well",
        "tool_calls": [call(0, "a", "{\"x\":1}"), call(1, "b", "{}")]});
    assert_eq!(message(thoughts_and_calls()), expected);
    // Text beside a call stays; without a call even no text is a text.
    let said = part(Delta {
        text: "Let me see.".to_owned(),
        ..Delta::default()
    });
    let events = vec![said, calling(vec![begin(0, "a")]), done()];
    let expected = json!({"role": "assistant", "content": "Let me see.", "refusal": null,
        "tool_calls": [call(0, "a", "")]});
    assert_eq!(message(events), expected);
    let thought = part(Delta {
        reasoning: "hm".to_owned(),
        ..Delta::default()
    });
    let events = vec![thought, end(0, "", EndReason::Length, None), done()];
    let expected = json!({"role": "assistant", "content": "", "refusal": null,
        "reasoning_content": "hm", "reasoning": "hm"});
    assert_eq!(message(events), expected);
}

#[test]
fn log_probabilities_come_once_whatever_their_tokens_say() {
    let logprobs = || Some(vec![super::entry("a", -0.5, "b")]);
    let delta = |reasoning: &str, text: &str, tool_calls| Delta {
        reasoning: reasoning.to_owned(),
        text: text.to_owned(),
        tool_calls,
        logprobs: logprobs(),
        ..Delta::default()
    };
    for delta in [
        delta("r", "t", vec![]),
        delta("", "t", vec![begin(0, "a"), more(0, "{")]),
        delta("", "", vec![more(0, "{")]),
        delta("", "", vec![]),
    ] {
        let frames = stream(Wire::Chat, head(), vec![part(delta)]);
        let chunks = frames.iter().map(|frame| {
            let chunk: Value = serde_json::from_str(frame).unwrap();
            chunk["choices"][0]["logprobs"].clone()
        });
        let told: Vec<Value> = chunks.filter(|logprobs| !logprobs.is_null()).collect();
        assert_eq!(told.len(), 1, "{frames:?}");
        assert_eq!(told[0]["content"][0]["token"], "a");
    }
}
