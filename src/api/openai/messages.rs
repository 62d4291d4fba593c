//! Conversations: what they must look like, what they ask, and the prompt that they become.

use serde_json::{Map, Value};

use crate::api::error::ApiError;
use crate::api::served::Served;
use crate::work::Budget;

/// What the last user message says.
pub(in crate::api) fn question(messages: &[Value]) -> String {
    let last = messages
        .iter()
        .rev()
        .find(|message| message["role"] == "user");
    last.map_or_else(String::new, |message| text_of(&message["content"]))
}

/// The text of a message's content.
pub(in crate::api) fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts
            .iter()
            .filter_map(|part| part["text"].as_str())
            .collect(),
        _ => String::new(),
    }
}

/// Messages must be objects with a role and text.
pub(in crate::api) fn check_messages(messages: &[Value]) -> Result<(), ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "messages must have at least one message",
        ));
    }
    for (index, message) in messages.iter().enumerate() {
        let invalid = |part: &str, message: &str| {
            let param = format!("messages[{index}]{part}");
            Err(ApiError::invalid(&param, format!("{param} {message}")))
        };
        if !message.is_object() {
            return invalid("", "must be an object");
        }
        if !message["role"].is_string() {
            return invalid(".role", "must be a string");
        }
        match &message["content"] {
            Value::String(_) | Value::Null => {}
            Value::Array(parts) => {
                if parts
                    .iter()
                    .any(|part| part["type"] != "text" || !part["text"].is_string())
                {
                    return invalid(
                        ".content",
                        "may hold only text parts: this model reads no other",
                    );
                }
            }
            _ => return invalid(".content", "must be a string or an array of text parts"),
        }
    }
    Ok(())
}

/// The prompt of a conversation.
pub(in crate::api) fn render(
    served: &Served,
    messages: &[Value],
    tools: Option<&[Value]>,
    add_generation_prompt: bool,
    variables: &Map<String, Value>,
) -> Result<String, ApiError> {
    let Some(template) = &served.chat_template else {
        let message = "this model has no chat template: use /v1/completions, or start the server \
            with --chat-template";
        return Err(ApiError::invalid("messages", message));
    };
    Ok(template.render(messages, tools, add_generation_prompt, variables)?)
}

/// Token ids of a text that a client chose, of no more than the context holds. `add_special` and
/// `parse_special` are those of [`crate::text::Tokenizer::encode`].
pub(in crate::api) fn encode(
    served: &Served,
    text: &str,
    (add_special, parse_special): (bool, bool),
    budget: &Budget,
) -> Result<Vec<u32>, ApiError> {
    let max_tokens = served.engine.config().max_model_len;
    let may_go_on = || budget.may_go_on();
    let tokenizer = &served.tokenizer;
    Ok(tokenizer.encode_within(text, add_special, parse_special, max_tokens, &may_go_on)?)
}
