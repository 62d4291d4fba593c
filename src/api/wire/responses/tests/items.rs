//! Items and their events.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::api::answer::event::ToolOutput;
use crate::tool::{CallStatus, CodeCall};

#[test]
fn a_text_is_streamed_in_openais_order() {
    let events = vec![
        more(Delta::default()),
        more(text("A")),
        end(text("é"), EndReason::Stop),
    ];
    let (events, response) = stream(head(), events);
    let around = |status: &str, output: Value, usage: Value| {
        json!({"id": format!("resp_{HEX}"), "object": "response", "created_at": 5,
            "status": status, "background": false, "completed_at": null,
            "incomplete_details": null, "error": null, "model": "m", "store": true,
            "output": output, "usage": usage})
    };
    let usage = json!({"input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 1}, "total_tokens": 7});
    let done = message("completed", Some("Aé"));
    let mut whole = around("completed", json!([done]), usage);
    assert!(response["completed_at"].is_u64());
    whole["completed_at"] = response["completed_at"].clone();
    assert_eq!(response, whole);
    let begun = json!({"response": around("in_progress", json!([]), Value::Null)});
    let part = |text: &str| {
        json!({"item_id": id("msg", 0), "output_index": 0, "content_index": 0, "part":
            {"type": "output_text", "annotations": [], "logprobs": [], "text": text}})
    };
    let delta = |text: &str| {
        json!({"item_id": id("msg", 0), "output_index": 0, "content_index": 0, "delta": text,
            "logprobs": []})
    };
    let expected = vec![
        json!(["response.created", begun]),
        json!(["response.in_progress", begun]),
        json!(["response.output_item.added",
            {"output_index": 0, "item": message("in_progress", None)}]),
        json!(["response.content_part.added", part("")]),
        json!(["response.output_text.delta", delta("A")]),
        json!(["response.output_text.delta", delta("é")]),
        json!(["response.output_text.done", {"item_id": id("msg", 0), "output_index": 0,
            "content_index": 0, "text": "Aé", "logprobs": []}]),
        json!(["response.content_part.done", part("Aé")]),
        json!(["response.output_item.done", {"output_index": 0, "item": done}]),
        json!(["response.completed", {"response": whole}]),
    ];
    assert_eq!(events, expected);
}

#[test]
fn a_program_is_an_item_between_messages() {
    let output = ToolOutput {
        text: "\n```output\n1\n```\n".to_owned(),
        num_tokens: 5,
        num_before: 3,
        call: Arc::new(CodeCall {
            code: "print(1)\n".to_owned(),
            output: "1\n".to_owned(),
            status: CallStatus::Completed,
        }),
    };
    let ran = Delta {
        tool_outputs: vec![output.clone()],
        ..text(&output.text)
    };
    let events = vec![more(text("A")), more(ran), end(text("B"), EndReason::Stop)];
    let (events, response) = stream(head(), events);
    let texts = response["output"].as_array().unwrap().iter();
    let texts = texts.map(|item| item["content"][0]["text"].clone());
    assert_eq!(
        texts.collect::<Vec<_>>(),
        [json!("A"), Value::Null, json!("B")]
    );
    let item = |status: &str, code: &str, outputs: Value| {
        json!({"id": id("ci", 1), "type": "code_interpreter_call", "status": status, "code": code,
            "container_id": format!("cntr_{HEX}"), "outputs": outputs})
    };
    let place = json!({"item_id": id("ci", 1), "output_index": 1});
    let with = |name: &str| {
        let mut place = place.clone();
        place[name] = "print(1)\n".into();
        place
    };
    let logs = json!([{"type": "logs", "logs": "1\n"}]);
    let begun = json!({"output_index": 1, "item": item("in_progress", "", Value::Null)});
    let done = json!({"output_index": 1, "item": item("completed", "print(1)\n", logs)});
    let expected = [
        json!(["response.output_item.added", begun]),
        json!(["response.code_interpreter_call.in_progress", place]),
        json!(["response.code_interpreter_call_code.delta", with("delta")]),
        json!(["response.code_interpreter_call_code.done", with("code")]),
        json!(["response.code_interpreter_call.interpreting", place]),
        json!(["response.code_interpreter_call.completed", place]),
        json!(["response.output_item.done", done]),
    ];
    let of_program: Vec<Value> = events
        .into_iter()
        .filter(|event| event[1]["output_index"] == 1)
        .collect();
    assert_eq!(of_program, expected);
}

/// A thought, a text and two calls.
fn everything() -> Vec<AnswerEvent> {
    let both = Delta {
        text: "B".to_owned(),
        ..thought("so")
    };
    vec![
        more(thought("If ")),
        more(both),
        more(call(0, Some("f"), "{\"a\"")),
        more(call(0, None, ": 1}")),
        more(call(1, Some("g"), "")),
        end(call(1, None, "{}"), EndReason::ToolCalls),
    ]
}

fn call_item(index: usize, at: usize, name: &str, arguments: &str) -> Value {
    json!({"id": id("fc", at), "type": "function_call", "status": "completed",
        "arguments": arguments, "call_id": format!("call_{index}"), "name": name})
}

#[test]
fn thoughts_texts_and_calls_are_items_of_their_own() {
    let (_, whole) = stream(head(), everything());
    let thought = json!({"id": id("rs", 0), "type": "reasoning", "summary": [],
        "content": [{"type": "reasoning_text", "text": "If so"}], "encrypted_content": null,
        "status": "completed"});
    let text = json!({"id": id("msg", 1), "type": "message", "status": "completed",
        "role": "assistant", "content":
            [{"type": "output_text", "annotations": [], "logprobs": [], "text": "B"}]});
    let first = call_item(0, 2, "f", "{\"a\": 1}");
    let second = call_item(1, 3, "g", "{}");
    assert_eq!(whole["output"], json!([thought, text, first, second]));
    assert_eq!(whole["status"], "completed");
    // A whole response is the same as a streamed one.
    let quiet = ResponseHead {
        is_streamed: false,
        ..head()
    };
    let (none, quiet) = stream(quiet, everything());
    assert!(none.is_empty());
    assert_eq!(quiet["output"], whole["output"]);
}

#[test]
fn items_come_one_after_the_other() {
    let events = middle(head(), everything());
    let names = events
        .iter()
        .map(|event| event[0].as_str().unwrap().replacen("response.", "", 1));
    let expected = [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ];
    assert_eq!(names.collect::<Vec<_>>(), expected);
    let of_calls = &events[13..18];
    let place = |more: Value| {
        let mut place = json!({"item_id": id("fc", 2), "output_index": 2});
        let fields = more.as_object().unwrap().clone();
        place.as_object_mut().unwrap().extend(fields);
        place
    };
    let first = call_item(0, 2, "f", "{\"a\": 1}");
    let mut added = first.clone();
    (added["status"], added["arguments"]) = (json!("in_progress"), json!(""));
    assert_eq!(of_calls[0][1], json!({"output_index": 2, "item": added}));
    assert_eq!(of_calls[1][1], place(json!({"delta": "{\"a\""})));
    let done = json!({"name": "f", "arguments": "{\"a\": 1}"});
    assert_eq!(of_calls[3][1], place(done));
    assert_eq!(of_calls[4][1], json!({"output_index": 2, "item": first}));
}

#[test]
fn thoughts_may_be_told_as_summaries_and_encoded() {
    let head = ResponseHead {
        summarises: true,
        encrypts: true,
        ..head()
    };
    let events = vec![more(thought("Hm")), end(text("x"), EndReason::Stop)];
    let events = middle(head, events);
    let place = |name: &str, value: Value| {
        let mut place = json!({"item_id": id("rs", 0), "output_index": 0, "summary_index": 0});
        place[name] = value;
        place
    };
    let part = |text: &str| place("part", json!({"type": "summary_text", "text": text}));
    let item = |summary: Value, encrypted: Value, status: &str| {
        json!({"output_index": 0, "item": {"id": id("rs", 0), "type": "reasoning",
            "summary": summary, "content": [], "encrypted_content": encrypted, "status": status}})
    };
    let summary = json!([{"type": "summary_text", "text": "Hm"}]);
    let expected = vec![
        json!([
            "response.output_item.added",
            item(json!([]), Value::Null, "in_progress")
        ]),
        json!(["response.reasoning_summary_part.added", part("")]),
        json!([
            "response.reasoning_summary_text.delta",
            place("delta", json!("Hm"))
        ]),
        json!([
            "response.reasoning_summary_text.done",
            place("text", json!("Hm"))
        ]),
        json!(["response.reasoning_summary_part.done", part("Hm")]),
        json!([
            "response.output_item.done",
            item(summary, json!("ponder1:SG0="), "completed")
        ]),
    ];
    assert_eq!(events[..6], expected);
}

#[test]
fn logprobs_wait_for_their_text() {
    let entry = |bytes: &[u8]| {
        let token = Token {
            id: 1,
            bytes: bytes.to_vec(),
            is_special: false,
        };
        TokenLogprob {
            token: token.clone(),
            logprob: -0.5,
            top: vec![(token, -0.5)],
        }
    };
    let with = |delta: Delta, tokens: &[&[u8]]| Delta {
        logprobs: Some(tokens.iter().map(|bytes| entry(bytes)).collect()),
        ..delta
    };
    let events = vec![
        more(with(thought("no"), &[b"no"])),
        more(with(text(""), &[&[0xc3]])),
        more(with(text("é"), &[&[0xa9]])),
        end(with(text(""), &[b"end"]), EndReason::Stop),
    ];
    let (events, response) = stream(head(), events);
    let short = |text: &str| json!({"token": text, "logprob": -0.5, "top_logprobs": [{"token": text, "logprob": -0.5}]});
    let named = |name: &str| {
        let found = events.iter().find(|event| event[0] == name).unwrap();
        found[1]["logprobs"].clone()
    };
    let part = json!([short("\u{fffd}"), short("\u{fffd}")]);
    assert_eq!(named("response.output_text.delta"), part);
    let all = json!([short("\u{fffd}"), short("\u{fffd}"), short("end")]);
    assert_eq!(named("response.output_text.done"), all);
    let last = &response["output"][1]["content"][0]["logprobs"][2];
    let long = json!({"token": "end", "bytes": [101, 110, 100], "logprob": -0.5,
        "top_logprobs": [{"token": "end", "bytes": [101, 110, 100], "logprob": -0.5}]});
    assert_eq!(*last, long);
}
