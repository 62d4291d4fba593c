//! Rewards in the document: each kind takes its own fields and no others.

use serde_json::{Value, json};

use super::walk::{Row, reference};
use crate::reward::MAX_REWARDS;

/// A kind of reward (of a verifier its type, too), the fields that it needs, and those that it may
/// have.
type Kind = (
    &'static str,
    Option<&'static str>,
    &'static [&'static str],
    &'static [&'static str],
);

const KINDS: [Kind; 12] = [
    ("likelihood", None, &[], &[]),
    ("majority", None, &[], &[]),
    ("value_head", None, &[], &[]),
    ("value_model", None, &[], &["model", "aggregate"]),
    ("http", None, &[], &[]),
    ("prm", None, &[], &["aggregate"]),
    ("judge", None, &[], &["instruction"]),
    ("verifier", Some("math"), &["answer"], &[]),
    ("verifier", Some("exact"), &["answer"], &[]),
    ("verifier", Some("regex"), &["pattern"], &[]),
    ("verifier", Some("json_schema"), &["schema"], &[]),
    ("verifier", Some("python"), &["tests"], &["prefix"]),
];

/// The schema of one reward, from that of its Rust type.
pub(super) fn reward(written: &Value) -> Value {
    let fields = &written["properties"];
    let kinds = KINDS.map(|(kind, check, needed, allowed)| {
        let mut properties = json!({
            "kind": {"type": "string", "const": kind},
            "weight": {"type": ["number", "null"], "exclusiveMinimum": 0.0},
        });
        let mut required = vec!["kind"];
        if let Some(check) = check {
            properties["type"] = json!({"type": "string", "const": check});
            required.push("type");
        }
        for field in needed.iter().chain(allowed) {
            properties[*field] = fields[*field].clone();
        }
        for field in needed {
            required.push(field);
            not_null(&mut properties[*field]);
        }
        if let Some(schema) = properties.get_mut("schema") {
            schema["type"] = json!(["object", "boolean"]);
        }
        json!({
            "type": "object",
            "required": required,
            "properties": properties,
            "additionalProperties": false,
        })
    });
    json!({"description": written["description"], "oneOf": kinds})
}

/// Takes null out of a schema's types.
fn not_null(schema: &mut Value) {
    if let Some(kinds) = schema["type"].as_array() {
        let kinds: Vec<Value> = kinds
            .iter()
            .filter(|kind| *kind != "null")
            .cloned()
            .collect();
        schema["type"] = match kinds.as_slice() {
            [one] => one.clone(),
            _ => Value::Array(kinds),
        };
    }
}

/// One reward or several, wherever a request has a `reward`.
pub(super) fn rows() -> Vec<Row> {
    let one = reference("RewardSpec");
    let several = json!({"type": "array", "minItems": 1, "maxItems": MAX_REWARDS, "items": one});
    let needed = json!({"type": null, "oneOf": [one, several]});
    let optional = json!({"type": null, "oneOf": [one, several, {"type": "null"}]});
    vec![
        ("ScoreRequest", "reward", needed.clone()),
        ("ScoreBranches", "reward", needed),
        ("SearchRequest", "reward", optional),
    ]
}
