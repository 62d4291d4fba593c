//! What the OpenAPI document says beyond the routes' own words: how requests authenticate, which
//! errors each route answers with, and the limits that the code checks. All of it by rule, so that
//! a new route has it without a word.

mod answers;
mod limits;
pub(super) mod page;
mod rewards;
mod rows;
mod walk;

use serde_json::{Value, json};

/// Completes the document of the routes.
pub(super) fn complete(document: &utoipa::openapi::OpenApi) -> Value {
    let written = serde_json::to_value(document);
    let mut document = written.expect("the document serialises; this is a bug");
    document["components"]["securitySchemes"] = json!({
        "bearer": {"type": "http", "scheme": "bearer",
            "description": "A key of --api-key. A server that was started without keys asks for none."},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key",
            "description": "The same key in a header of its own."},
        "api-key": {"type": "apiKey", "in": "header", "name": "api-key",
            "description": "The same, as Azure's clients send it."},
    });
    document["security"] = json!([{"bearer": []}, {"x-api-key": []}, {"api-key": []}]);
    answers::add(&mut document);
    limits::add(&mut document);
    document
}
