//! Completion chunks, with log-probabilities and echoes.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{and, around, body, echoed, entry, head, stream, texts, two_choices, usage};
use crate::api::answer::event::{
    AnswerEvent, ChoiceEnd, Delta, EndReason, TokenLogprob, ToolOutput,
};
use crate::api::wire::Wire;
use crate::api::wire::envelope::Head;
use crate::tool::{CallStatus, CodeCall};

#[test]
fn completion_chunks() {
    let chunk = |index: usize, text: &str, reason: Value, stop: Value| {
        let choice = json!({"index": index, "text": text, "logprobs": null,
            "finish_reason": reason, "stop_reason": stop});
        around("text_completion", json!([choice]))
    };
    let expected = vec![
        chunk(0, "", Value::Null, Value::Null),
        chunk(1, "a", Value::Null, Value::Null),
        chunk(0, "b", Value::Null, Value::Null),
        chunk(1, "", json!("stop"), json!("!")),
        chunk(0, "c", json!("length"), Value::Null),
        json!("[DONE]"),
    ];
    assert_eq!(
        stream(Wire::Completions, head(), two_choices()),
        texts(expected)
    );
}

#[test]
fn completion_logprobs_and_echo() {
    let logprobs = |tokens: Value, values: Value, top: Value, offsets: Value| {
        json!({"tokens": tokens, "token_logprobs": values, "top_logprobs": top,
            "text_offset": offsets})
    };
    let chunk = |text: &str, logprobs: Value, reason: Value, stop: Value| {
        json!({"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason,
            "stop_reason": stop})
    };
    let y = json!({"y": -1.5, "x": -2.5});
    let a = json!({"a": -0.5, "b": -2.5});
    let c = json!({"c": -0.25, "d": -2.5});
    let first = logprobs(
        json!(["é", "y", "a"]),
        json!([null, -1.5, -0.5]),
        json!([null, y, a]),
        json!([0, 1, 2]),
    );
    let second = logprobs(json!(["c"]), json!([-0.25]), json!([c]), json!([3]));
    let around = |choice: Value| around("text_completion", json!([choice]));
    let expected = vec![
        around(chunk("éya", first, Value::Null, Value::Null)),
        around(chunk("", second, json!("stop"), json!(99))),
        json!("[DONE]"),
    ];
    assert_eq!(stream(Wire::Completions, head(), echoed()), texts(expected));
    // The body says the same at once, and the prompt's own log-probabilities when asked.
    let all = logprobs(
        json!(["é", "y", "a", "c"]),
        json!([null, -1.5, -0.5, -0.25]),
        json!([null, y, a, c]),
        json!([0, 1, 2, 3]),
    );
    let prompt = json!([null, {
        "121": {"logprob": -1.5, "decoded_token": "y"},
        "120": {"logprob": -2.5, "decoded_token": "x"},
    }]);
    let choice = chunk("éya", all, json!("stop"), json!(99));
    let choice = and(choice, json!({"prompt_logprobs": prompt}));
    let shown = Head {
        shows_prompt_logprobs: true,
        ..head()
    };
    let expected = and(around(choice), json!({"usage": usage()}));
    assert_eq!(
        body(Wire::Completions, shown, echoed()),
        expected.to_string()
    );
}

#[test]
fn offsets_skip_what_programs_print() {
    let part = |text: &str, logprobs: Option<Vec<TokenLogprob>>| Delta {
        text: text.to_owned(),
        logprobs,
        ..Delta::default()
    };
    let printed = Delta {
        tool_outputs: vec![ToolOutput {
            text: "[é]".to_owned(),
            num_tokens: 2,
            num_before: 1,
            call: Arc::new(CodeCall {
                code: "x".to_owned(),
                output: "é".to_owned(),
                status: CallStatus::Completed,
            }),
        }],
        ..part("[é]", None)
    };
    let delta = |delta| AnswerEvent::Delta { choice: 0, delta };
    let [a, b] = ["a", "b"].map(|text| entry(text, -0.5, "x"));
    let stop = || ChoiceEnd {
        reason: EndReason::Stop,
        stop: None,
        value: None,
    };
    let end = |last| AnswerEvent::End {
        choice: 0,
        last,
        end: stop(),
    };
    // Token by token, and all of them at the end, as a search tells them.
    for events in [
        vec![
            delta(part("a", Some(vec![a.clone()]))),
            delta(printed.clone()),
            end(part("b", Some(vec![b.clone()]))),
        ],
        vec![
            delta(part("a", None)),
            delta(printed),
            end(part("b", Some(vec![a, b]))),
        ],
    ] {
        let frames = stream(Wire::Completions, head(), events.clone());
        let frames = frames
            .iter()
            .map(|it| serde_json::from_str::<Value>(it).unwrap());
        let choices: Vec<Value> = frames.map(|it| it["choices"][0].clone()).collect();
        let offsets = choices.iter();
        let offsets = offsets.flat_map(|it| it["logprobs"]["text_offset"].as_array().cloned());
        assert_eq!(offsets.flatten().collect::<Vec<_>>(), [0, 4]);
        let outputs = json!([{"type": "code_interpreter", "code": "x", "output": "é",
            "status": "completed", "text": "[é]", "num_tokens": 2}]);
        assert_eq!(choices[1]["ponder_tool_outputs"], outputs);
        let done = AnswerEvent::Done(Box::default());
        let whole = body(Wire::Completions, head(), [events, vec![done]].concat());
        let choice = &serde_json::from_str::<Value>(&whole).unwrap()["choices"][0];
        assert_eq!(choice["logprobs"]["text_offset"], json!([0, 4]));
        assert_eq!(choice["text"], "a[é]b");
        assert_eq!(choice["ponder_tool_outputs"], outputs);
    }
}
