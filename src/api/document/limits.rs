//! Adds the limits that the types of Rust do not tell.

use serde_json::{Value, json};
use utoipa::PartialSchema;

use super::rewards;
use super::rows::{GENERATING, parameters, rows};
use super::walk::{merge, operations, reference};
use crate::api::branches::open::{MAX_LEASE, REFUSED};
use crate::reward::RewardSpec;

/// Adds the limits to the document.
pub(super) fn add(document: &mut Value) {
    let written = serde_json::to_value(RewardSpec::schema());
    let written = written.expect("the schema serialises; this is a bug");
    document["components"]["schemas"]["RewardSpec"] = rewards::reward(&written);
    // Before a row gives a signed field a minimum.
    bound_integers(document);
    for (schema, property, limit) in rows() {
        if let Some(target) = find(document, schema, property) {
            merge(target, &limit);
        }
    }
    for (path, operation) in operations(document) {
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
    describe_sessions(document);
    bound_integers(document);
}

/// A session is opened by the request of a chat or a completion without the fields that mean
/// nothing for it.
fn describe_sessions(document: &mut Value) {
    let bodies = GENERATING.map(|name| {
        let mut schema = document["components"]["schemas"][name].clone();
        if let Some(properties) = schema["properties"].as_object_mut() {
            REFUSED
                .iter()
                .for_each(|field| drop(properties.remove(*field)));
            let lease = json!({"type": "integer", "minimum": 1, "maximum": MAX_LEASE,
                "description": "Seconds without a call after which the session ends."});
            properties.insert("lease_seconds".to_owned(), lease);
        }
        let own = format!("{}OfSession", name.trim_end_matches("Request"));
        document["components"]["schemas"][own.as_str()] = schema;
        reference(&own)
    });
    let operation = document["paths"]
        .get_mut("/v1/branches")
        .and_then(|it| it.get_mut("post"));
    if let Some(operation) = operation {
        operation["requestBody"]["content"]["application/json"]["schema"] =
            json!({"anyOf": bodies});
    }
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
/// comes of `u64` and `i64`, `int32` of `u32`; `usize` has no format. Unsigned ones have a minimum
/// of 0.
fn bound_integers(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let is_integer = fields.get("type").is_some_and(|kind| match kind {
                Value::String(kind) => kind == "integer",
                Value::Array(kinds) => kinds.iter().any(|kind| kind == "integer"),
                _ => false,
            });
            if is_integer {
                let low = fields.get("minimum").and_then(Value::as_i64);
                let format = fields.get("format").and_then(Value::as_str);
                let is_unsigned = low.is_some_and(|low| low >= 0);
                let high = match format {
                    Some("int32") if is_unsigned => u64::from(u32::MAX),
                    _ if is_unsigned => u64::MAX,
                    _ => i64::MAX as u64,
                };
                fields.entry("maximum").or_insert(high.into());
                fields.entry("minimum").or_insert(i64::MIN.into());
            }
            fields.values_mut().for_each(bound_integers);
        }
        Value::Array(items) => items.iter_mut().for_each(bound_integers),
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
            let is_there = operations(&mut document).any(|(known, operation)| {
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

    #[test]
    fn every_operation_says_its_errors() {
        let mut document = crate::api::router::document();
        let schemas = document["components"]["schemas"].clone();
        for (path, operation) in operations(&mut document) {
            let responses = operation["responses"].as_object().unwrap();
            let statuses: Vec<&str> = responses.keys().map(String::as_str).collect();
            for status in ["500", "503"] {
                assert!(statuses.contains(&status), "{path}: {statuses:?}");
            }
            if operation.get("requestBody").is_some() {
                for status in ["400", "401", "404", "408", "413", "415", "429"] {
                    assert!(statuses.contains(&status), "{path}: {statuses:?}");
                }
            }
        }
        // No reference leads nowhere.
        let text = document.to_string();
        let names = text.split("#/components/schemas/").skip(1);
        for name in names.filter_map(|rest| rest.split('"').next()) {
            assert!(schemas.get(name).is_some(), "there is no schema {name}");
        }
    }
}
