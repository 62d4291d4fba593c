//! Limits that the code checks and that the types of Rust do not tell: ranges, lengths, names. One
//! row for each field; a test fails where a row names a field that the document does not have.

use serde_json::{Value, json};
use utoipa::PartialSchema;

use super::merge;
use crate::api::config::{
    MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_PROMPTS, MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
};
use crate::reward::RewardSpec;
use crate::trace::{Format, MAX_LEAVES};

/// A schema, one of its properties (or none, for the schema itself), and what is added.
type Row = (&'static str, &'static str, Value);

/// Requests that generate text.
const GENERATING: [&str; 2] = ["ChatRequest", "CompletionRequest"];
/// The largest number that the store keeps.
const MAX_STORED: i64 = i64::MAX;
const TRACES_AT_ONCE: usize = 1000;
const MAX_WRONG_BRANCHES: usize = 1000;
const CURSOR: &str = "^[0-9]{1,18}(-[0-9]{1,18})?$";

fn ranged(low: f64, high: f64) -> Value {
    json!({"minimum": low, "maximum": high})
}

/// What requests that generate text have in common.
fn generation() -> Vec<(&'static str, Value)> {
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
    ]
}

fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = GENERATING
        .iter()
        .flat_map(|schema| {
            generation()
                .into_iter()
                .map(|(field, limit)| (*schema, field, limit))
        })
        .collect();
    let messages = json!({"minItems": 1, "items": {
        "required": ["role"],
        "properties": {"role": {"type": "string"}},
    }});
    let stop = json!({"oneOf": [
        {"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_BYTES},
        {"type": "array", "maxItems": MAX_STOP_STRINGS, "items":
            {"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_BYTES}},
    ]});
    let reward = json!({"type": null, "oneOf": [
        reference("RewardSpec"),
        {"type": "array", "minItems": 1, "maxItems": 8, "items": reference("RewardSpec")},
    ]});
    let mut maybe_reward = reward.clone();
    maybe_reward["oneOf"] = json!([reward["oneOf"][0], reward["oneOf"][1], {"type": "null"}]);
    let leaf = json!({
        "required": ["node", "outcome"],
        "properties": {"node": {"type": "integer", "minimum": 0}, "outcome": {"type": "number", "minimum": 0, "maximum": 1}},
    });
    rows.extend([
        ("ScoreRequest", "reward", reward.clone()),
        ("ScoreBranches", "reward", reward),
        ("SearchRequest", "reward", maybe_reward),
        ("RewardSpec", "kind", json!({"enum": REWARDS})),
        ("RewardSpec", "type", json!({"enum": VERIFIERS})),
        ("RewardSpec", "weight", json!({"exclusiveMinimum": 0.0})),
        (
            "OutcomeRequest",
            "leaves",
            json!({"maxItems": MAX_LEAVES, "items": leaf}),
        ),
        (
            "TokenizeRequest",
            "",
            either("prompt", "string", "messages"),
        ),
        ("TokenizeRequest", "messages", messages.clone()),
        (
            "PoolingRequest",
            "input",
            json!({"type": null, "oneOf": [reference("OneOrMany"), {"type": "null"}]}),
        ),
        (
            "PoolingRequest",
            "encoding_format",
            json!({"enum": ["float", null]}),
        ),
        ("OneOrMany", "", stop),
        ("ChatRequest", "messages", messages),
        (
            "ChatRequest",
            "top_logprobs",
            json!({"maximum": MAX_LOGPROBS}),
        ),
        (
            "CompletionRequest",
            "logprobs",
            json!({"maximum": MAX_LOGPROBS}),
        ),
        ("Prompt", "", prompts()),
        (
            "ScoreRequest",
            "candidates",
            json!({"minItems": 1, "maxItems": 256}),
        ),
        (
            "ScoreBranches",
            "nodes",
            json!({"minItems": 1, "maxItems": 256}),
        ),
        (
            "GenerateBranches",
            "nodes",
            json!({"minItems": 1, "maxItems": 256}),
        ),
        ("GenerateBranches", "n", json!({"minimum": 1})),
        ("OutcomeRequest", "outcome", ranged(0.0, 1.0)),
        (
            "StepSpec",
            "max_tokens",
            json!({"minimum": 1, "maximum": 8192}),
        ),
        (
            "StepSpec",
            "delimiter",
            json!({"minLength": 1, "maxLength": 64}),
        ),
        ("SearchRequest", "tags", json!({"maxItems": 16})),
    ]);
    rows
}

const REWARDS: [&str; 7] = [
    "likelihood",
    "majority",
    "verifier",
    "value_head",
    "prm",
    "judge",
    "http",
];
const VERIFIERS: [Option<&str>; 6] = [
    Some("math"),
    Some("exact"),
    Some("regex"),
    Some("json_schema"),
    Some("python"),
    None,
];

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
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

/// Limits of parameters in a path or a query, by their name.
fn parameters() -> Vec<(&'static str, &'static str, Value)> {
    let formats = Format::ALL.map(Format::name);
    let time = json!({"maximum": MAX_STORED});
    vec![
        (
            "/v1/traces",
            "limit",
            json!({"minimum": 1, "maximum": TRACES_AT_ONCE}),
        ),
        ("/v1/traces/stream", "limit", time.clone()),
        ("", "order", json!({"enum": ["desc", "asc"]})),
        ("/v1/traces", "after", json!({"pattern": CURSOR})),
        ("/v1/traces/stream", "after", json!({"pattern": CURSOR})),
        ("", "created_from", time.clone()),
        ("", "created_before", time.clone()),
        ("", "format", json!({"enum": formats})),
        ("", "level", json!({"enum": ["answer", "step"]})),
        ("", "max_per_prompt", time),
        (
            "",
            "max_wrong_branches",
            json!({"maximum": MAX_WRONG_BRANCHES}),
        ),
    ]
}

/// Adds the limits to the document.
pub(super) fn add(document: &mut Value) {
    let reward = serde_json::to_value(RewardSpec::schema());
    let reward = reward.expect("the schema serialises; this is a bug");
    document["components"]["schemas"]["RewardSpec"] = reward;
    let body = json!({"anyOf": GENERATING.map(reference)});
    let open = &mut document["paths"]["/v1/branches"]["post"]["requestBody"];
    open["content"]["application/json"]["schema"] = body;
    for (schema, property, limit) in rows() {
        if let Some(target) = find(document, schema, property) {
            merge(target, &limit);
        }
    }
    for (path, operation) in super::operations(document) {
        let given = operation
            .get_mut("parameters")
            .and_then(Value::as_array_mut);
        for parameter in given.into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap_or_default().to_owned();
            let is_own =
                |row: &&(&str, &str, Value)| (row.0.is_empty() || row.0 == path) && row.1 == name;
            if let Some((.., limit)) = parameters().iter().find(is_own) {
                merge(&mut parameter["schema"], limit);
            }
        }
    }
    tighten_integers(document);
}

/// The schema of a property, or the whole schema.
fn find<'a>(document: &'a mut Value, schema: &str, property: &str) -> Option<&'a mut Value> {
    let schema = document["components"]["schemas"].get_mut(schema)?;
    match property.is_empty() {
        true => Some(schema),
        false => schema.get_mut("properties")?.get_mut(property),
    }
}

/// Rust's integers end where their width ends; the document says so in numbers. `format: int64`
/// comes of `u64` and `i64`, `int32` of `u32`; `usize` has no format.
fn tighten_integers(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let kind = fields.get("type");
            let is_integer = kind.is_some_and(|kind| match kind {
                Value::String(kind) => kind == "integer",
                Value::Array(kinds) => kinds.iter().any(|kind| kind == "integer"),
                _ => false,
            });
            if is_integer {
                let format = fields.get("format").and_then(Value::as_str);
                let is_unsigned = fields
                    .get("minimum")
                    .and_then(Value::as_i64)
                    .is_some_and(|low| low >= 0);
                let high = match (format, is_unsigned) {
                    (Some("int32"), true) => u64::from(u32::MAX),
                    (_, true) => u64::MAX,
                    (_, false) => i64::MAX as u64,
                };
                fields.entry("maximum").or_insert(high.into());
                if !is_unsigned {
                    fields.entry("minimum").or_insert(i64::MIN.into());
                }
            }
            fields.values_mut().for_each(tighten_integers);
        }
        Value::Array(items) => items.iter_mut().for_each(tighten_integers),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_of_a_field_that_there_is() {
        let mut document = crate::api::router::document();
        for (schema, property, limit) in rows() {
            let found = find(&mut document, schema, property);
            let found = found.unwrap_or_else(|| panic!("the document has no {schema}.{property}"));
            let added = limit.as_object().unwrap().iter();
            for (key, value) in added.filter(|(_, value)| !value.is_null()) {
                assert!(
                    found.get(key).is_some(),
                    "{schema}.{property} lacks {key}: {value}"
                );
            }
        }
        for (path, name, _) in parameters() {
            let is_there = super::super::operations(&mut document).any(|(known, operation)| {
                let parameters = operation["parameters"].as_array();
                (path.is_empty() || path == known)
                    && parameters
                        .into_iter()
                        .flatten()
                        .any(|it| it["name"] == name)
            });
            assert!(is_there, "the document has no parameter {name} in {path:?}");
        }
    }
}
