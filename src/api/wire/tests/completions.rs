//! Completion chunks, with log-probabilities and echoes.

use serde_json::{Value, json};

use super::{and, around, body, echoed, head, stream, texts, two_choices, usage};
use crate::api::wire::Wire;
use crate::api::wire::envelope::Head;

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
