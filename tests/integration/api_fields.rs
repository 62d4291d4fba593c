//! Fields of requests: none that another server documents is accepted without effect, and errors
//! name the field. Over the fake model.

use ponder::api::{CHAT, COMPLETIONS, Rule, document_json, known_fields};
use serde_json::{Value, json};

use crate::offline::{Offline, chat, completion};
use crate::support::golden;

/// The request that works, with one more field.
pub fn with(route: &str, name: &str, value: &Value) -> Value {
    let more = Value::Object([(name.to_owned(), value.clone())].into_iter().collect());
    match route {
        CHAT => chat(more),
        _ => completion(more),
    }
}

pub fn refused(offline: &Offline, route: &str, body: Value, param: &str) -> String {
    let (status, error) = offline.post(route, body.clone());
    assert_eq!(status, 400, "{body}: {error}");
    assert_eq!(error["error"]["param"], param, "{body}: {error}");
    error["error"]["message"].as_str().unwrap().to_owned()
}

/// The fields of a request struct.
fn fields(document: &Value, route: &str) -> Vec<String> {
    let schema = match route {
        CHAT => "ChatRequest",
        _ => "CompletionRequest",
    };
    let properties = &document["components"]["schemas"][schema]["properties"];
    properties.as_object().unwrap().keys().cloned().collect()
}

/// Values of all kinds, of which no field takes all.
fn values() -> Vec<Value> {
    vec![
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(7.5),
        json!(-3),
        json!("odd"),
        json!(["odd"]),
        json!({"odd": 1}),
    ]
}

#[test]
fn no_documented_field_is_ignored() {
    let document: Value = serde_json::from_str(&document_json()).unwrap();
    let offline = Offline::start();
    for route in [CHAT, COMPLETIONS] {
        let own = fields(&document, route);
        for field in known_fields().filter(|field| field.routes.contains(&route)) {
            let name = field.name;
            match field.rule {
                Rule::Effect if own.iter().any(|own| own == name) => continue,
                Rule::Alias(of) => {
                    let mut both = with(route, name, &json!(2));
                    both[of] = json!(2);
                    assert!(own.iter().any(|own| own == of), "{name}");
                    refused(&offline, route, both, of);
                    continue;
                }
                _ => {}
            }
            assert!(
                !own.iter().any(|own| own == name),
                "{name} has a rule too many"
            );
            let mut num_refused = 0;
            for value in values() {
                let (status, error) = offline.post(route, with(route, name, &value));
                match status {
                    200 => assert!(matches!(field.rule, Rule::Only(..)), "{name} is ignored"),
                    _ => {
                        num_refused += 1;
                        assert_eq!((status, &error["error"]["param"]), (400, &json!(name)));
                    }
                }
            }
            assert!(num_refused > 0, "{route} ignores {name}, whatever it says");
            assert_eq!(offline.post(route, with(route, name, &Value::Null)).0, 200);
        }
        let unknown = with(route, "nobody_documents_this", &json!([1]));
        assert_eq!(offline.post(route, unknown).0, 200);
    }
}

#[test]
fn every_name_of_the_references_has_a_rule() {
    for line in golden("request_fields.txt").lines() {
        if line.starts_with('#') {
            continue;
        }
        let mut words = line.split(' ').skip(1);
        let route = match words.next() {
            Some("chat") => CHAT,
            _ => COMPLETIONS,
        };
        let name = words.next().unwrap();
        let has_rule = known_fields().any(|it| it.name == name && it.routes.contains(&route));
        assert!(has_rule, "{line}");
    }
}

#[test]
fn null_is_like_nothing() {
    let document: Value = serde_json::from_str(&document_json()).unwrap();
    let offline = Offline::start();
    for route in [CHAT, COMPLETIONS] {
        let needed = ["messages", "prompt"];
        for name in fields(&document, route) {
            if needed.contains(&name.as_str()) {
                continue;
            }
            let (status, error) = offline.post(route, with(route, &name, &Value::Null));
            assert_eq!(status, 200, "{route} {name}: {error}");
        }
    }
}

#[test]
fn types_and_ranges_name_their_field() {
    let offline = Offline::start();
    for (name, value) in [
        ("n", json!(1.5)),
        ("n", json!("2")),
        ("n", json!(0)),
        ("max_tokens", json!("many")),
        ("max_tokens", json!(-2)),
        ("temperature", json!([1])),
        ("top_p", json!(-0.1)),
        ("top_p", json!(1.1)),
        ("top_k", json!(-2)),
        ("min_p", json!(2)),
        ("seed", json!(0.5)),
        ("seed", json!(u64::MAX)),
        ("repetition_penalty", json!(0)),
        ("stop", json!("")),
        ("stop", json!(["a", ""])),
        ("stop", json!([1])),
        ("logit_bias", json!({"-1": 1})),
        ("logit_bias", json!({"1.0": 1})),
        ("logit_bias", json!({"": 1})),
        ("logit_bias", json!([[1, 2]])),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("stream_options", json!({})),
        ("stop_token_ids", json!([260])),
        ("allowed_token_ids", json!([])),
        ("allowed_token_ids", json!([5, 260])),
        ("bad_words", json!("word")),
        ("bad_words", json!([""])),
        ("bad_words", json!(["x".repeat(300)])),
        ("bad_words", json!(vec!["x"; 300])),
        ("truncate_prompt_tokens", json!(0)),
        ("truncate_prompt_tokens", json!(-2)),
        ("truncate_prompt_tokens", json!(100_000)),
        ("truncation_side", json!("left")),
        ("request_id", json!("two words")),
        ("request_id", json!("")),
        ("request_id", json!("x".repeat(200))),
        ("cache_salt", json!("")),
        ("metadata", json!({"key": 5})),
        ("min_tokens", json!(13)),
        ("priority", json!(1)),
        ("response_format", json!("json")),
        ("grammar", json!(5)),
    ] {
        for route in [CHAT, COMPLETIONS] {
            let (status, error) = offline.post(route, with(route, name, &value));
            assert_eq!(status, 400, "{route} {name} {value}: {error}");
            let param = error["error"]["param"].as_str().unwrap_or_default();
            assert!(param.starts_with(name), "{route} {name} {value}: {error}");
        }
    }
    for (name, more) in [
        (
            "prompt_logprobs",
            json!({"stream": true, "prompt_logprobs": 1}),
        ),
        (
            "max_completion_tokens",
            json!({"max_tokens": 4, "max_completion_tokens": 5}),
        ),
    ] {
        refused(&offline, CHAT, chat(more.clone()), name);
        refused(&offline, COMPLETIONS, completion(more), name);
    }
    let reserved = chat(json!({"chat_template_kwargs": {"messages": []}}));
    refused(&offline, CHAT, reserved, "chat_template_kwargs.messages");
    for options in [
        json!({"include_obfuscation": true}),
        json!({"continuous_usage_stats": true}),
    ] {
        let body = chat(json!({"stream": true, "stream_options": options}));
        let name = options.as_object().unwrap().keys().next().unwrap();
        refused(&offline, CHAT, body, &format!("stream_options.{name}"));
    }
    let message = refused(&offline, COMPLETIONS, json!({"max_tokens": 1}), "prompt");
    assert!(message.contains("missing field `prompt`"), "{message}");
    for prompt in [
        json!([]),
        json!([[]]),
        json!([1, "a"]),
        json!([[1], "a"]),
        json!(["a", [1]]),
        json!([-1]),
        json!([1.5]),
        json!(5),
        json!({}),
        json!([260]),
        json!(null),
    ] {
        refused(
            &offline,
            COMPLETIONS,
            completion(json!({"prompt": prompt})),
            "prompt",
        );
    }
    refused(&offline, CHAT, json!({"model": "m"}), "messages");
    let twice = r#"{"prompt": "a", "n": 1, "n": 2}"#.to_owned();
    let (status, text) = offline.server.post_with(COMPLETIONS, twice, &[]);
    let error: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &error["error"]["param"]), (400, &json!("n")));
}
