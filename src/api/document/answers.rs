//! The errors that each operation answers with, by what the operation has: a key, a body, a path or
//! query with parameters.

use serde_json::{Map, Value, json};

use super::walk::operations;
use crate::api::auth::needs_no_key;

/// A status with what it says, and the header that comes with it.
struct Answer {
    status: &'static str,
    name: &'static str,
    description: &'static str,
    header: Option<(&'static str, &'static str)>,
}

const RETRY: Option<(&str, &str)> = Some(("Retry-After", "Seconds to wait before the next try"));

const fn answer(status: &'static str, name: &'static str, description: &'static str) -> Answer {
    Answer {
        status,
        name,
        description,
        header: None,
    }
}

const INVALID: Answer = answer(
    "400",
    "Invalid",
    "A field or parameter must change: `param` names which",
);
const UNAUTHORIZED: Answer = Answer {
    header: Some(("WWW-Authenticate", "How to send the key")),
    ..answer("401", "Unauthorized", "The key is missing or not known")
};
const FORBIDDEN: Answer = answer(
    "403",
    "Forbidden",
    "The key, or the server's flags, do not allow it",
);
const NOT_FOUND: Answer = answer("404", "NotFound", "There is no such thing for this key");
const TIMEOUT: Answer = answer(
    "408",
    "Timeout",
    "The deadline passed, or the body came too slowly",
);
const TOO_LARGE: Answer = answer("413", "TooLarge", "The body is too large");
const MEDIA_TYPE: Answer = answer("415", "MediaType", "The body's content type is not JSON");
const OVERLOADED: Answer = Answer {
    header: RETRY,
    ..answer("429", "Overloaded", "A limit is reached for now")
};
const INTERNAL: Answer = answer("500", "Internal", "The request failed inside the server");
const UNAVAILABLE: Answer = Answer {
    header: RETRY,
    ..answer(
        "503",
        "Unavailable",
        "The model loads, or the server drains or has failed",
    )
};

const ALL: [&Answer; 10] = [
    &INVALID,
    &UNAUTHORIZED,
    &FORBIDDEN,
    &NOT_FOUND,
    &TIMEOUT,
    &TOO_LARGE,
    &MEDIA_TYPE,
    &OVERLOADED,
    &INTERNAL,
    &UNAVAILABLE,
];

/// Those of an operation.
fn answers(path: &str, operation: &Value) -> Vec<&'static Answer> {
    let parameters = operation["parameters"].as_array();
    let has = |place: &str| parameters.into_iter().flatten().any(|it| it["in"] == place);
    let has_body = operation.get("requestBody").is_some();
    let mut answers = vec![&INTERNAL, &UNAVAILABLE];
    if !needs_no_key(path) {
        answers.extend([&UNAUTHORIZED, &FORBIDDEN, &OVERLOADED]);
    }
    if has_body || has("path") || has("query") {
        // A body and most parameters name a model or another thing.
        answers.extend([&INVALID, &NOT_FOUND, &TIMEOUT]);
    }
    if has_body {
        answers.extend([&TOO_LARGE, &MEDIA_TYPE]);
    }
    answers
}

/// Adds the answers to every operation. What a route says of a status itself stays.
pub(super) fn add(document: &mut Value) {
    let components = &mut document["components"];
    components["schemas"]["Error"] = error_schema();
    let responses = ALL
        .iter()
        .map(|answer| (answer.name.to_owned(), response(answer)));
    components["responses"] = Value::Object(responses.collect());
    for (path, operation) in operations(document) {
        if needs_no_key(path) {
            operation["security"] = json!([]);
        }
        let own: Map<String, Value> = std::mem::take(&mut operation["responses"])
            .as_object()
            .cloned()
            .unwrap_or_default();
        let mut all = own;
        for answer in answers(path, operation) {
            let reference = json!({"$ref": format!("#/components/responses/{}", answer.name)});
            let known = all.entry(answer.status).or_insert(reference);
            if known.get("$ref").is_none() {
                complete(known, answer);
            }
        }
        // What only this route answers is an error object, too.
        for (status, known) in &mut all {
            let is_error = status.starts_with(['4', '5']);
            if is_error && known.get("$ref").is_none() && known.get("content").is_none() {
                known["content"] = content();
            }
        }
        all.sort_keys();
        operation["responses"] = Value::Object(all);
    }
}

/// Gives a route's own words on a status the object and the header that the status has everywhere.
fn complete(known: &mut Value, answer: &Answer) {
    let whole = response(answer);
    for key in ["content", "headers"] {
        if known.get(key).is_none()
            && let Some(part) = whole.get(key)
        {
            known[key] = part.clone();
        }
    }
}

fn content() -> Value {
    json!({"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}})
}

fn response(answer: &Answer) -> Value {
    let mut response = json!({"description": answer.description, "content": content()});
    if let Some((name, description)) = answer.header {
        response["headers"][name] =
            json!({"description": description, "schema": {"type": "string"}});
    }
    response
}

fn error_schema() -> Value {
    json!({
        "type": "object",
        "description": "OpenAI's error object.",
        "required": ["error"],
        "properties": {"error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field that must change."},
                "code": {"type": ["string", "null"]},
            },
        }},
    })
}
