//! Fields of structural tags, read with errors that name their place.

use serde_json::{Map, Value};

use super::super::GrammarError;

pub(super) fn invalid(path: &str, message: impl std::fmt::Display) -> GrammarError {
    let place = match path {
        "" => "the structural tag".to_owned(),
        path => format!("the structural tag's {path}"),
    };
    GrammarError::Invalid(format!("{place}: {message}"))
}

pub(super) fn text<'a>(
    map: &'a Map<String, Value>,
    key: &str,
    path: &str,
) -> Result<&'a str, GrammarError> {
    let text = map.get(key).and_then(Value::as_str);
    text.ok_or_else(|| invalid(path, format!("{key:?} is a string")))
}

pub(super) fn flag(map: &Map<String, Value>, key: &str, path: &str) -> Result<bool, GrammarError> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(_) => Err(invalid(path, format!("{key:?} is true or false"))),
    }
}

pub(super) fn list<'a>(
    value: Option<&'a Value>,
    key: &str,
    path: &str,
) -> Result<&'a [Value], GrammarError> {
    let items = value
        .and_then(Value::as_array)
        .filter(|items| !items.is_empty());
    items
        .map(Vec::as_slice)
        .ok_or_else(|| invalid(path, format!("{key:?} is a list with something in it")))
}

pub(super) fn elements<'a>(
    map: &'a Map<String, Value>,
    path: &str,
) -> Result<&'a [Value], GrammarError> {
    list(map.get("elements"), "elements", path)
}

/// The fixed text that a format begins with.
pub(super) fn begin_of(format: &Value) -> Option<&str> {
    let key = match format.get("type")?.as_str()? {
        "const_string" => "value",
        "tag" => "begin",
        _ => return None,
    };
    format.get(key)?.as_str().filter(|text| !text.is_empty())
}
