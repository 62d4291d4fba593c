//! Walking over a document, and changing it.

use serde_json::{Value, json};

/// Methods of a path in a document.
const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

/// A schema (or a path), one of its properties (or parameters), and what is added. Without a
/// property the row is of the whole schema; without a path it is of the parameter on every route.
pub(super) type Row = (&'static str, &'static str, Value);

/// A reference to a schema of the document.
pub(super) fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

/// Every operation with its path.
pub(super) fn operations(document: &mut Value) -> impl Iterator<Item = (&str, &mut Value)> {
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    paths.flat_map(|(path, item)| {
        let methods = item.as_object_mut().into_iter().flatten();
        let operations = methods.filter(|(method, _)| METHODS.contains(&method.as_str()));
        operations.map(move |(_, operation)| (path.as_str(), operation))
    })
}

/// Sets the keys of `patch` in `target`, objects inside them key by key; null removes a key
/// (RFC 7396).
pub(super) fn merge(target: &mut Value, patch: &Value) {
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
