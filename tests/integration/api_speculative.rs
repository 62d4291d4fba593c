//! Speculation as a client sees it: the same answers, what came of the drafts, and what is refused.

use ponder::api::ServerConfig;
use ponder::engine::{EngineOptions, Speculative, SpeculativeConfig};
use serde_json::{Value, json};

use crate::api::{CHAT, ask, with};
use crate::server::{Server, options, shared_server, start};

/// A server that drafts whatever it can: what is tested must not hang on how busy this machine is.
fn drafting() -> Server {
    let options = EngineOptions {
        speculative: SpeculativeConfig {
            default: Speculative::Auto,
            ignores_costs: true,
            ..SpeculativeConfig::default()
        },
        ..options()
    };
    start(ServerConfig::default(), &options)
}

fn content(body: &Value) -> &str {
    body["choices"][0]["message"]["content"].as_str().unwrap()
}

/// Accepted and rejected draft tokens.
fn drafts(body: &Value) -> (u64, u64) {
    let details = &body["usage"]["completion_tokens_details"];
    let of = |name: &str| details[name].as_u64().unwrap();
    (
        of("accepted_prediction_tokens"),
        of("rejected_prediction_tokens"),
    )
}

#[test]
fn a_prediction_is_accepted_where_it_is_right_and_the_answer_stays() {
    let server = drafting();
    let body = with(
        ask("Name ten animals, comma-separated."),
        "speculative",
        json!("off"),
    );
    let (status, plain) = server.post(CHAT, body.clone());
    assert_eq!(status, 200, "{plain}");
    assert_eq!(drafts(&plain), (0, 0));
    let body = with(body, "speculative", json!("prompt-lookup"));
    for content_of in [
        json!(content(&plain)),
        json!([{"type": "text", "text": content(&plain)}]),
    ] {
        let prediction = json!({"type": "content", "content": content_of});
        let (status, drafted) = server.post(CHAT, with(body.clone(), "prediction", prediction));
        assert_eq!(status, 200, "{drafted}");
        assert_eq!(content(&drafted), content(&plain));
        let (accepted, rejected) = drafts(&drafted);
        assert!(accepted >= 10 && rejected < accepted, "{drafted}");
    }
    let wrong = json!({"type": "content", "content": "Nothing of this will be said."});
    let (_, drafted) = server.post(CHAT, with(body.clone(), "prediction", wrong));
    assert_eq!(content(&drafted), content(&plain));
    let (_, metrics) = server.get("/metrics");
    for name in [
        "vllm:spec_decode_num_drafts_total",
        "vllm:spec_decode_num_draft_tokens_total",
        "ponder_spec_decode_num_accepted_tokens_total",
    ] {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(name) && line.contains("drafter=\"prompt-lookup\""));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        assert!(value.is_some_and(|value| value > 0.0), "{name}:\n{metrics}");
    }
}

#[test]
fn a_search_finds_the_same_answers_with_drafts() {
    let server = drafting();
    let body = ask("Repeat this list three times: red, green, blue, yellow.");
    let body = with(with(body, "seed", json!(3)), "temperature", json!(0.6));
    let search = json!({"strategy": "best_of_n", "n": 3, "reward": {"kind": "likelihood"}});
    let body = with(body, "search", search);
    let (status, plain) = server.post(CHAT, with(body.clone(), "speculative", json!("off")));
    assert_eq!(status, 200, "{plain}");
    let (_, drafted) = server.post(CHAT, body);
    assert_eq!(drafted["choices"], plain["choices"]);
    assert_eq!(drafted["search"]["tokens"], plain["search"]["tokens"]);
    assert_eq!(drafts(&plain), (0, 0));
    assert!(drafts(&drafted).0 > 0, "{drafted}");
}

#[test]
fn what_cannot_draft_is_refused() {
    let server = shared_server();
    let refused = |key: &str, value: Value, param: &str, says: &str| {
        let (status, body) = server.post(CHAT, with(ask("Hi"), key, value));
        assert_eq!(status, 400, "{body}");
        assert_eq!(body["error"]["param"], param, "{body}");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
    };
    let names = "off, prompt-lookup, swift, draft-model, auto";
    refused("speculative", json!("fast"), "speculative", names);
    refused("speculative", json!({"n": 3}), "speculative", names);
    refused(
        "speculative",
        json!("draft-model"),
        "speculative",
        "--draft-model",
    );
    refused("prediction", json!("text"), "prediction", "an object");
    let kind = json!({"type": "image", "content": "x"});
    refused("prediction", kind, "prediction.type", "content");
    let none = json!({"type": "content"});
    refused("prediction", none, "prediction.content", "a string");
    let parts = json!({"type": "content", "content": [{"type": "image"}]});
    refused("prediction", parts, "prediction.content", "text");
    for fine in [json!(null), json!(false), json!("auto"), json!("off")] {
        let (status, body) = server.post(CHAT, with(ask("Hi"), "speculative", fine));
        assert_eq!(status, 200, "{body}");
    }
}
