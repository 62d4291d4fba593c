//! The content of messages and of functions' outputs: parts that are checked and brought into one
//! shape.

use serde_json::{Value, json};

use super::request::refuse_if;
use crate::api::error::ApiError;

/// Whose content it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaker {
    /// A user, a system message, or a function.
    Input,
    Assistant,
}

/// The parts of a content, which is a text or parts.
pub(super) fn content(
    content: Value,
    path: &str,
    speaker: Speaker,
) -> Result<Vec<Value>, ApiError> {
    match content {
        Value::String(text) => Ok(vec![text_part(speaker, text)]),
        Value::Array(parts) => {
            let parts = parts.into_iter().enumerate();
            let parts = parts.map(|(index, it)| part(it, &format!("{path}[{index}]"), speaker));
            parts.collect()
        }
        _ => {
            let message = format!("{path} must be a string or an array of parts");
            Err(ApiError::invalid(path, message))
        }
    }
}

fn text_part(speaker: Speaker, text: String) -> Value {
    match speaker {
        Speaker::Input => json!({"type": "input_text", "text": text}),
        Speaker::Assistant => json!({"type": "output_text", "annotations": [], "logprobs": [],
            "text": text}),
    }
}

fn part(mut part: Value, path: &str, speaker: Speaker) -> Result<Value, ApiError> {
    refuse_if(!part.is_object(), path, "must be an object")?;
    let kind_path = format!("{path}.type");
    let Some(kind) = part["type"].as_str().map(str::to_owned) else {
        return Err(ApiError::invalid(
            &kind_path,
            format!("{kind_path} must be a string"),
        ));
    };
    let mut text = |field: &str| match part[field].take() {
        Value::String(text) => Ok(text),
        _ => {
            let path = format!("{path}.{field}");
            Err(ApiError::invalid(&path, format!("{path} must be a string")))
        }
    };
    match (kind.as_str(), speaker) {
        ("input_text" | "output_text", _) => Ok(text_part(speaker, text("text")?)),
        ("refusal", Speaker::Assistant) => {
            Ok(json!({"type": "refusal", "refusal": text("refusal")?}))
        }
        ("input_image", Speaker::Input) => {
            let file = &part["file_id"];
            let path = format!("{path}.file_id");
            refuse_if(!file.is_null(), &path, "is not supported: send image_url")?;
            Ok(part)
        }
        (kind, _) => {
            let known = match speaker {
                Speaker::Input => "input_text and input_image",
                Speaker::Assistant => "output_text and refusal",
            };
            let message = format!("{kind_path} is {kind:?}; here are {known} taken");
            Err(ApiError::invalid(&kind_path, message))
        }
    }
}

/// A content for the chat template: a text, or parts of it where one is an image.
pub(super) fn for_chat(parts: &[Value]) -> Value {
    let text = |part: &Value| {
        let text = part["text"].as_str().or(part["refusal"].as_str());
        text.unwrap_or_default().to_owned()
    };
    if !parts.iter().any(|part| part["type"] == "input_image") {
        return parts.iter().map(text).collect::<String>().into();
    }
    let parts = parts.iter().map(|part| match part["type"].as_str() {
        Some("input_image") => {
            json!({"type": "image_url", "image_url": {"url": part["image_url"],
                "detail": part["detail"]}})
        }
        _ => json!({"type": "text", "text": text(part)}),
    });
    parts.collect()
}
