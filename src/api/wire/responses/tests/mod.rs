//! The format by itself: events in, exact JSON out.

mod ends;
mod items;

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
