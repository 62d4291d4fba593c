//! Chat chunks.

use serde_json::{Value, json};

use super::{and, around, body, echoed, head, stream, texts, two_choices, usage};
use crate::api::wire::Wire;
use crate::api::wire::envelope::Head;

#[test]
fn chat_chunks() {
    let chunk = |index: usize, delta: Value, reason: Value| {
        let choice = json!({"index": index, "delta": delta, "logprobs": null,
            "finish_reason": reason});
        around("chat.completion.chunk", json!([choice]))
    };
    let role = json!({"role": "assistant", "content": ""});
    let expected = vec![
        chunk(0, role.clone(), Value::Null),
        chunk(1, role, Value::Null),
        chunk(1, json!({"content": "a"}), Value::Null),
        chunk(0, json!({"content": "b"}), Value::Null),
        chunk(1, json!({}), json!("stop")),
        chunk(0, json!({"content": "c"}), Value::Null),
        chunk(0, json!({}), json!("length")),
        json!("[DONE]"),
    ];
    assert_eq!(
        stream(Wire::Chat, head(), two_choices()),
        texts(expected.clone())
    );
    // With the usage: null in each chunk, and a last chunk of its own.
    let with_usage = Head {
        include_usage: true,
        ..head()
    };
    let (done, chunks) = expected.split_last().unwrap();
    let chunks = chunks
        .iter()
        .map(|it| and(it.clone(), json!({"usage": null})));
    let mut expected: Vec<Value> = chunks.collect();
    let last = around("chat.completion.chunk", json!([]));
    expected.push(and(last, json!({"usage": usage()})));
    expected.push(done.clone());
    assert_eq!(
        stream(Wire::Chat, with_usage, two_choices()),
        texts(expected)
    );
}

#[test]
fn chat_logprobs() {
    let token = |text: &str, logprob: f64| {
        let bytes = text.as_bytes();
        json!({"token": text, "logprob": logprob, "bytes": bytes})
    };
    let one = |text: &str, logprob: f64, other: &str| {
        let top = json!([token(text, logprob), token(other, -2.5)]);
        and(token(text, logprob), json!({"top_logprobs": top}))
    };
    let chunk = |delta: Value, logprobs: Value, reason: Value| {
        let choice = json!({"index": 0, "delta": delta, "logprobs": logprobs,
            "finish_reason": reason});
        around("chat.completion.chunk", json!([choice]))
    };
    let (a, c) = (one("a", -0.5, "b"), one("c", -0.25, "d"));
    let of = |entries: Value| json!({"content": entries, "refusal": null});
    let expected = vec![
        chunk(
            json!({"role": "assistant", "content": ""}),
            Value::Null,
            Value::Null,
        ),
        chunk(json!({"content": "a"}), of(json!([a])), Value::Null),
        chunk(json!({}), of(json!([c])), Value::Null),
        chunk(json!({}), Value::Null, json!("stop")),
        json!("[DONE]"),
    ];
    assert_eq!(stream(Wire::Chat, head(), echoed()), texts(expected));
    let whole: Value = serde_json::from_str(&body(Wire::Chat, head(), echoed())).unwrap();
    assert_eq!(whole["choices"][0]["logprobs"], of(json!([a, c])));
    assert_eq!(
        whole["choices"][0]["message"]["content"], "a",
        "chats echo nothing"
    );
    assert_eq!(whole.get("prompt_logprobs"), None);
}
