//! The format by itself: events in, exact JSON out.

use serde_json::{Value, json};

use super::{ResponseHead, ResponseWriter};
use crate::api::answer::event::{
    AnswerEvent, ChoiceEnd, Delta, EndReason, Summary, Token, TokenLogprob, ToolCallDelta,
    ToolCallHead, Usage,
};
use crate::api::error::ApiError;
use crate::search::SearchEvent;

const HEX: &str = "0123456789abcdef0123456789abcdef";

fn head() -> ResponseHead {
    let Value::Object(echo) = json!({"model": "m", "store": true}) else {
        unreachable!()
    };
    ResponseHead {
        hex: HEX.to_owned(),
        created: 5,
        echo,
        is_streamed: true,
        ..ResponseHead::default()
    }
}

fn id(prefix: &str, index: usize) -> String {
    format!("{prefix}_{HEX}{index:02x}")
}

fn text(text: &str) -> Delta {
    Delta {
        text: text.to_owned(),
        ..Delta::default()
    }
}

fn thought(text: &str) -> Delta {
    Delta {
        reasoning: text.to_owned(),
        ..Delta::default()
    }
}

fn call(index: usize, name: Option<&str>, arguments: &str) -> Delta {
    Delta {
        tool_calls: vec![ToolCallDelta {
            index,
            head: name.map(|name| ToolCallHead {
                id: format!("call_{index}"),
                name: name.to_owned(),
            }),
            arguments: arguments.to_owned(),
        }],
        ..Delta::default()
    }
}

fn more(delta: Delta) -> AnswerEvent {
    AnswerEvent::Delta { choice: 0, delta }
}

fn end(last: Delta, reason: EndReason) -> AnswerEvent {
    let end = ChoiceEnd {
        reason,
        stop: None,
        value: None,
    };
    AnswerEvent::End {
        choice: 0,
        last,
        end,
    }
}

fn summary() -> Summary {
    Summary {
        usage: Usage {
            num_prompt_tokens: 3,
            num_cached_tokens: 2,
            num_completion_tokens: 4,
            num_reasoning_tokens: 1,
            ..Usage::default()
        },
        ..Summary::default()
    }
}

/// All events of a stream, whose names and numbers are checked, and the response at its end.
fn stream(head: ResponseHead, events: Vec<AnswerEvent>) -> (Vec<Value>, Value) {
    let mut writer = ResponseWriter::new(head);
    let mut frames = writer.begin();
    for event in events {
        frames.extend(writer.take(event));
    }
    let response = writer.conclude(&summary());
    frames.extend(writer.last(&response));
    let events = frames.iter().enumerate().map(|(number, frame)| {
        let mut event: Value = serde_json::from_str(&frame.data).unwrap();
        let fields = event.as_object_mut().unwrap();
        let name = fields.shift_remove("type").unwrap();
        assert_eq!(frame.name, name.as_str());
        assert_eq!(fields.shift_remove("sequence_number"), Some(json!(number)));
        json!([name, event])
    });
    (events.collect(), response)
}

/// The events between the first two and the last one.
fn middle(head: ResponseHead, events: Vec<AnswerEvent>) -> Vec<Value> {
    let (mut events, _) = stream(head, events);
    events.pop();
    events.split_off(2)
}

fn message(status: &str, text: Option<&str>) -> Value {
    let part =
        |text| json!({"type": "output_text", "annotations": [], "logprobs": [], "text": text});
    let content: Vec<Value> = text.map(part).into_iter().collect();
    json!({"id": id("msg", 0), "type": "message", "status": status, "role": "assistant",
        "content": content})
}

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
fn thoughts_texts_and_calls_are_items_of_their_own() {
    let both = Delta {
        text: "B".to_owned(),
        ..thought("so")
    };
    let events = vec![
        more(thought("If ")),
        more(both),
        more(call(0, Some("f"), "{\"a\"")),
        more(call(0, None, ": 1}")),
        more(call(1, Some("g"), "")),
        end(call(1, None, "{}"), EndReason::ToolCalls),
    ];
    let (_, whole) = stream(head(), events.clone());
    let thought = json!({"id": id("rs", 0), "type": "reasoning", "summary": [],
        "content": [{"type": "reasoning_text", "text": "If so"}], "encrypted_content": null,
        "status": "completed"});
    let text = json!({"id": id("msg", 1), "type": "message", "status": "completed",
        "role": "assistant", "content":
            [{"type": "output_text", "annotations": [], "logprobs": [], "text": "B"}]});
    let call = |index: usize, at: usize, name: &str, arguments: &str| {
        json!({"id": id("fc", at), "type": "function_call", "status": "completed",
            "arguments": arguments, "call_id": format!("call_{index}"), "name": name})
    };
    let first = call(0, 2, "f", "{\"a\": 1}");
    let second = call(1, 3, "g", "{}");
    assert_eq!(whole["output"], json!([thought, text, first, second]));
    assert_eq!(whole["status"], "completed");
    let names: Vec<String> = middle(head(), events.clone())
        .iter()
        .map(|event| event[0].as_str().unwrap().replacen("response.", "", 1))
        .collect();
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
    assert_eq!(names, expected);
    let of_calls = &middle(head(), events.clone())[13..18];
    let place = |more: Value| {
        let mut place = json!({"item_id": id("fc", 2), "output_index": 2});
        place
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        place
    };
    let mut added = first.clone();
    (added["status"], added["arguments"]) = (json!("in_progress"), json!(""));
    assert_eq!(of_calls[0][1], json!({"output_index": 2, "item": added}));
    assert_eq!(of_calls[1][1], place(json!({"delta": "{\"a\""})));
    assert_eq!(
        of_calls[3][1],
        place(json!({"name": "f", "arguments": "{\"a\": 1}"}))
    );
    assert_eq!(of_calls[4][1], json!({"output_index": 2, "item": first}));
    // A whole response is the same as a streamed one.
    let quiet = ResponseHead {
        is_streamed: false,
        ..head()
    };
    let (none, quiet) = stream(quiet, events);
    assert!(none.is_empty());
    assert_eq!(quiet["output"], whole["output"]);
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

#[test]
fn cut_responses_are_incomplete() {
    let (events, response) = stream(head(), vec![end(text("A"), EndReason::Length)]);
    assert_eq!(response["status"], "incomplete");
    assert_eq!(
        response["incomplete_details"],
        json!({"reason": "max_output_tokens"})
    );
    assert_eq!(
        response["output"],
        json!([message("incomplete", Some("A"))])
    );
    assert_eq!(events.last().unwrap()[0], "response.incomplete");
    // An answer without a token has a message without a text.
    let (_, response) = stream(head(), vec![end(Delta::default(), EndReason::Stop)]);
    assert_eq!(response["output"], json!([message("completed", Some(""))]));
    // Calls that were cut are told as such.
    let cut = end(call(0, Some("f"), "{\"a"), EndReason::Length);
    let (_, response) = stream(head(), vec![cut]);
    assert_eq!(response["output"][0]["status"], "incomplete");
    assert_eq!(response["output"].as_array().unwrap().len(), 1);
    let (events, response) = stream(head(), vec![end(text("A"), EndReason::Abort)]);
    assert_eq!(response["status"], "failed");
    assert_eq!(response["error"]["code"], "server_error");
    assert_eq!(events.last().unwrap()[0], "response.failed");
}

#[test]
fn failed_streams_end_with_the_error_and_the_failed_response() {
    let mut writer = ResponseWriter::new(head());
    writer.begin();
    writer.take(more(text("A")));
    let error = ApiError::deadline();
    let response = writer.fail(&error);
    assert_eq!(response["status"], "failed");
    let error_object = json!({"code": "server_error", "message": error.message});
    assert_eq!(response["error"], error_object);
    assert_eq!(
        response["output"],
        json!([message("incomplete", Some("A"))])
    );
    let frames = writer.last_of_failed(&error, &response);
    let names: Vec<Option<&str>> = frames.iter().map(|frame| frame.name).collect();
    let closing = [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ];
    let expected = [&closing[..], &["error", "response.failed"]].concat();
    assert_eq!(names, expected.into_iter().map(Some).collect::<Vec<_>>());
    let told: Value = serde_json::from_str(&frames[3].data).unwrap();
    assert_eq!(
        told,
        json!({"type": "error", "sequence_number": 8, "code": "server_error",
            "message": error.message, "param": null})
    );
}

#[test]
fn background_responses_are_queued_first_and_may_be_cancelled() {
    let head = ResponseHead {
        is_background: true,
        ..head()
    };
    let mut writer = ResponseWriter::new(head);
    assert_eq!(writer.queued()["status"], "queued");
    let names: Vec<Option<&str>> = writer.begin().iter().map(|frame| frame.name).collect();
    let expected = [
        "response.created",
        "response.queued",
        "response.in_progress",
    ];
    assert_eq!(names, expected.map(Some));
    writer.take(more(text("A")));
    let response = writer.cancel();
    assert_eq!(response["status"], "cancelled");
    assert_eq!(response["output"][0]["status"], "incomplete");
    assert_eq!(
        writer.last(&response).last().unwrap().name,
        Some("response.incomplete")
    );
}

#[test]
fn searches_and_traces_are_told() {
    let progress = SearchEvent::Agreed {
        text: "A".to_owned(),
    };
    let events = middle(head(), vec![AnswerEvent::Search(progress.clone())]);
    let expected = json!([["response.search_event", {"search_event": progress}]]);
    assert_eq!(json!(events), expected);
    let mut writer = ResponseWriter::new(head());
    writer.take(end(text("A"), EndReason::Stop));
    let report = json!({"strategy": "best_of_n"});
    let response = writer.conclude(&Summary {
        search: Some(report.clone()),
        traces: Some(vec![Some("trace-1".to_owned())]),
        adaptation: Some(json!({"phases": []})),
        ..summary()
    });
    assert_eq!(response["search"], report);
    assert_eq!(response["trace_id"], "trace-1");
    assert_eq!(response["adaptation"], json!({"phases": []}));
}

#[test]
fn deltas_may_hide_their_lengths() {
    let head = ResponseHead {
        obfuscates: true,
        ..head()
    };
    let events = middle(head, vec![end(text("A"), EndReason::Stop)]);
    let delta = events
        .iter()
        .find(|event| event[0] == "response.output_text.delta");
    assert_eq!(delta.unwrap()[1]["obfuscation"].as_str().unwrap().len(), 31);
}
