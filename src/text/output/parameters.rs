//! Values of parameters that a model writes without JSON's quotes.

use std::collections::HashMap;
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde_json::Value;

use super::python;

/// What a parameter holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    String,
    /// No string.
    Json,
    Unknown,
}

/// What the parameters of tools hold.
#[derive(Debug, Clone, Default)]
pub(super) struct Parameters {
    kinds: Arc<HashMap<String, HashMap<String, Kind>>>,
}

impl Parameters {
    /// Reads tools of OpenAI's shape.
    pub fn new(tools: &[Value]) -> Self {
        let kinds = tools.iter().filter_map(|tool| {
            let function = tool.get("function").unwrap_or(tool);
            let properties = function["parameters"]["properties"].as_object();
            let kinds = properties.into_iter().flatten();
            let kinds = kinds.map(|(key, schema)| (key.clone(), kind(schema)));
            Some((function["name"].as_str()?.to_owned(), kinds.collect()))
        });
        Self {
            kinds: Arc::new(kinds.collect()),
        }
    }

    pub fn kind(&self, tool: &str, key: &str) -> Kind {
        let kinds = self.kinds.get(tool);
        let kind = kinds.and_then(|kinds| kinds.get(key).copied());
        kind.unwrap_or(Kind::Unknown)
    }
}

fn kind(schema: &Value) -> Kind {
    match &schema["type"] {
        Value::String(kind) if kind == "string" => Kind::String,
        Value::String(_) => Kind::Json,
        Value::Array(kinds) if kinds.iter().all(|kind| kind != "string") => Kind::Json,
        _ => Kind::Unknown,
    }
}

/// The inside of a JSON string.
pub(super) fn quoted(text: &str) -> String {
    let json = Value::from(text).to_string();
    json[1..json.len() - 1].to_owned()
}

/// A whole value as JSON: itself where it is JSON, and a string otherwise.
pub(super) fn value_text(text: &str, kind: Kind) -> String {
    let trimmed = text.trim();
    if serde_json::from_str::<IgnoredAny>(trimmed).is_ok() {
        return trimmed.to_owned();
    }
    // Models for code write Python's True, None and quotes.
    let python = match kind {
        Kind::Json => python::literal(trimmed),
        Kind::String | Kind::Unknown => None,
    };
    python.unwrap_or_else(|| Value::from(text).to_string())
}
