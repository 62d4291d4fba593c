//! What the OpenAPI document says beyond the routes' own words: how requests authenticate, which
//! errors each route answers with, and the limits that the code checks. All of it by rule, so that a
//! new route has it without a word.

mod answers;
mod limits;
mod rewards;
mod rows;

use serde_json::{Value, json};

/// Methods of a path in a document.
const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

/// Completes the document of the routes.
pub(super) fn complete(document: &utoipa::openapi::OpenApi) -> Value {
    let written = serde_json::to_value(document);
    let mut document = written.expect("the document serialises; this is a bug");
    document["components"]["securitySchemes"] = json!({
        "bearer": {"type": "http", "scheme": "bearer",
            "description": "A key of --api-key. A server that was started without keys asks for none."},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key",
            "description": "The same key in a header of its own."},
    });
    document["security"] = json!([{"bearer": []}, {"x-api-key": []}]);
    answers::add(&mut document);
    limits::add(&mut document);
    document
}

/// Every operation with its path.
fn operations(document: &mut Value) -> impl Iterator<Item = (&str, &mut Value)> {
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    paths.flat_map(|(path, item)| {
        let methods = item.as_object_mut().into_iter().flatten();
        let operations = methods.filter(|(method, _)| METHODS.contains(&method.as_str()));
        operations.map(move |(_, operation)| (path.as_str(), operation))
    })
}

/// Sets the keys of `patch` in `target`, objects inside them key by key; null removes a key
/// (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                match value {
                    Value::Null => drop(target.remove(key)),
                    value => merge(target.entry(key).or_insert(json!({})), value),
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}
