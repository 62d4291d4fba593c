//! The limits that the code checks, one row for each field. The checks themselves are where the
//! fields are read.

use serde_json::{Value, json};

use super::rewards;
use super::walk::{Row, reference};
use crate::api::branches::routes::MAX_NAMED;
use crate::api::config::{
    MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_PROMPTS, MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
};
use crate::api::presets::effort_names;
use crate::api::responses::query::MAX_LIMIT;
use crate::api::responses::request::INCLUDES;
use crate::api::score::MAX_CANDIDATES;
use crate::api::traces::query;
use crate::engine::Speculative;
use crate::search::{MAX_DELIMITER_BYTES, MAX_STEP_TOKENS, MAX_TAGS};
use crate::trace::{Format, MAX_LEAVES};

/// Requests that generate text.
pub(super) const GENERATING: [&str; 2] = ["ChatRequest", "CompletionRequest"];
/// The largest number that the store keeps.
const MAX_STORED: i64 = i64::MAX;
const CURSOR: &str = "^[0-9]{1,18}(-[0-9]{1,18})?$";

fn ranged(low: f64, high: f64) -> Value {
    json!({"minimum": low, "maximum": high})
}

/// What requests that generate text have in common.
fn generation() -> Vec<(&'static str, Value)> {
    let drafters = Speculative::ALL.map(Speculative::name);
    let part = json!({
        "type": "object",
        "required": ["text"],
        "properties": {"text": {"type": "string"}},
    });
    let efforts: Vec<Option<&str>> = effort_names().map(Some).chain([None]).collect();
    vec![
        ("n", json!({"minimum": 1})),
        ("temperature", ranged(0.0, 2.0)),
        ("top_p", ranged(0.0, 1.0)),
        ("top_k", json!({"minimum": -1})),
        ("min_p", ranged(0.0, 1.0)),
        ("presence_penalty", ranged(-2.0, 2.0)),
        ("frequency_penalty", ranged(-2.0, 2.0)),
        (
            "repetition_penalty",
            json!({"exclusiveMinimum": 0.0, "maximum": 100.0}),
        ),
        ("prompt_logprobs", json!({"maximum": MAX_LOGPROBS})),
        ("stop_token_ids", json!({"maxItems": MAX_STOP_TOKEN_IDS})),
        (
            "logit_bias",
            json!({
                "maxProperties": MAX_LOGIT_BIAS,
                "propertyNames": {"pattern": "^[0-9]{1,10}$"},
                "additionalProperties": ranged(-100.0, 100.0),
            }),
        ),
        (
            "metadata",
            json!({"additionalProperties": {"type": "string"}}),
        ),
        ("reasoning_effort", json!({"enum": efforts})),
        (
            "speculative",
            json!({"type": null, "oneOf": [
                {"type": "string", "enum": drafters},
                {"const": false},
                {"type": "null"},
            ]}),
        ),
        (
            "prediction",
            json!({
                "required": ["type", "content"],
                "properties": {
                    "type": {"const": "content"},
                    "content": {"oneOf": [{"type": "string"}, {"type": "array", "items": part}]},
                },
            }),
        ),
    ]
}

/// Limits of the schemas' properties.
pub(super) fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = GENERATING
        .iter()
        .flat_map(|schema| {
            generation()
                .into_iter()
                .map(|(field, limit)| (*schema, field, limit))
        })
        .collect();
    rows.extend(rewards::rows());
    rows.extend(texts());
    rows.extend(nodes());
    rows
}

/// Requests with texts and conversations.
fn texts() -> Vec<Row> {
    let messages = json!({"minItems": 1, "items": {
        "required": ["role"],
        "properties": {"role": {"type": "string"}},
    }});
    let input = json!({"type": null, "oneOf": [reference("OneOrMany"), {"type": "null"}]});
    // -1 is no limit.
    let of_answers = json!({"minimum": -1});
    let of_chats = json!({"minimum": -1, "not": {"const": 0}});
    let alternatives = json!({"maximum": MAX_LOGPROBS});
    vec![
        ("OneOrMany", "", stop()),
        ("ChatRequest", "messages", messages.clone()),
        ("ChatRequest", "max_tokens", of_chats.clone()),
        ("ChatRequest", "max_completion_tokens", of_chats),
        ("ChatRequest", "top_logprobs", alternatives.clone()),
        ("CompletionRequest", "logprobs", alternatives),
        ("CompletionRequest", "max_tokens", of_answers.clone()),
        ("CompletionRequest", "max_completion_tokens", of_answers),
        ("Prompt", "", prompts()),
        (
            "TokenizeRequest",
            "",
            either("prompt", "string", "messages"),
        ),
        ("TokenizeRequest", "messages", messages),
        (
            "PoolingRequest",
            "encoding_format",
            json!({"enum": ["float", null]}),
        ),
        ("PoolingRequest", "input", input),
    ]
}

/// Requests about searches, their nodes and their answers.
fn nodes() -> Vec<Row> {
    let leaf = json!({
        "required": ["node", "outcome"],
        "properties": {
            "node": {"type": "integer", "minimum": 0},
            "outcome": {"type": "number", "minimum": 0, "maximum": 1},
        },
    });
    let leaves = json!({"maxItems": MAX_LEAVES, "items": leaf});
    let named = json!({"minItems": 1, "maxItems": MAX_NAMED});
    let candidates = json!({"minItems": 1, "maxItems": MAX_CANDIDATES});
    let delimiter = json!({"minLength": 1, "maxLength": MAX_DELIMITER_BYTES});
    vec![
        ("ScoreRequest", "candidates", candidates),
        ("ScoreBranches", "nodes", named.clone()),
        ("GenerateBranches", "nodes", named),
        ("GenerateBranches", "n", json!({"minimum": 1})),
        ("OutcomeRequest", "outcome", ranged(0.0, 1.0)),
        ("OutcomeRequest", "leaves", leaves),
        (
            "StepSpec",
            "max_tokens",
            json!({"minimum": 1, "maximum": MAX_STEP_TOKENS}),
        ),
        ("StepSpec", "delimiter", delimiter),
        ("SearchRequest", "tags", json!({"maxItems": MAX_TAGS})),
    ]
}

fn stop() -> Value {
    let text = json!({"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_BYTES});
    json!({"oneOf": [text, {"type": "array", "maxItems": MAX_STOP_STRINGS, "items": text}]})
}

/// One of two fields, and not both.
fn either(first: &str, kind: &str, second: &str) -> Value {
    json!({"oneOf": [
        {"required": [first], "properties": {first: {"type": kind}, second: {"type": "null"}}},
        {"required": [second], "properties": {second: {"type": "array"}, first: {"type": "null"}}},
    ]})
}

fn prompts() -> Value {
    let id = json!({"type": "integer", "minimum": 0, "maximum": u32::MAX});
    json!({"oneOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": {"type": "string"}},
        {"type": "array", "minItems": 1, "items": id},
        {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items":
            {"type": "array", "items": id}},
    ]})
}

/// Limits of parameters in a query.
pub(super) fn parameters() -> Vec<Row> {
    let formats = Format::ALL.map(Format::name);
    let stored = json!({"maximum": MAX_STORED});
    vec![
        (
            "/v1/traces",
            "limit",
            json!({"minimum": 1, "maximum": query::MAX_LIMIT}),
        ),
        ("/v1/traces/stream", "limit", stored.clone()),
        (
            "/v1/responses/{id}/input_items",
            "limit",
            json!({"minimum": 1, "maximum": MAX_LIMIT}),
        ),
        ("/v1/traces", "after", json!({"pattern": CURSOR})),
        ("/v1/traces/stream", "after", json!({"pattern": CURSOR})),
        ("", "order", json!({"enum": ["desc", "asc"]})),
        (
            "",
            "include",
            json!({"items": {"type": "string", "enum": INCLUDES}}),
        ),
        ("", "created_from", stored.clone()),
        ("", "created_before", stored.clone()),
        ("", "format", json!({"enum": formats})),
        ("", "level", json!({"enum": ["answer", "step"]})),
        ("", "max_per_prompt", stored),
        (
            "",
            "max_wrong_branches",
            json!({"maximum": query::MAX_WRONG_BRANCHES}),
        ),
    ]
}
