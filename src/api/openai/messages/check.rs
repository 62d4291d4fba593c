//! What messages must look like.

use serde_json::Value;

use crate::api::error::ApiError;

/// Who may say something.
const ROLES: [&str; 6] = [
    "system",
    "developer",
    "user",
    "assistant",
    "tool",
    "function",
];

/// The text of a message's content.
pub(in crate::api) fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(text_of_part).collect(),
        _ => String::new(),
    }
}

fn text_of_part(part: &Value) -> Option<&str> {
    part["text"].as_str().or_else(|| part["refusal"].as_str())
}

/// A message, and where it stands in the request.
struct Message<'a> {
    value: &'a Value,
    at: String,
}

impl Message<'_> {
    fn get(&self, field: &str) -> &Value {
        &self.value[field]
    }

    /// An error about a part of the message: `field` with its dot or bracket.
    fn invalid(&self, field: &str, message: &str) -> ApiError {
        let param = format!("{}{field}", self.at);
        ApiError::invalid(&param, format!("{param} {message}"))
    }

    /// A field that may be left out.
    fn text(&self, field: &str) -> Result<Option<&str>, ApiError> {
        match self.get(field) {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
            _ => Err(self.invalid(&format!(".{field}"), "must be a string")),
        }
    }

    fn role(&self) -> Result<&str, ApiError> {
        let roles = ROLES.join(", ");
        match self.get("role") {
            Value::String(role) if ROLES.contains(&role.as_str()) => Ok(role),
            Value::Null => Err(self.invalid(".role", &format!("is missing: give one of {roles}"))),
            other => {
                let message = format!("must be one of {roles}; it is {other}");
                Err(self.invalid(".role", &message))
            }
        }
    }

    fn check(&self) -> Result<(), ApiError> {
        if !self.value.is_object() {
            return Err(self.invalid("", "must be an object"));
        }
        let role = self.role()?;
        for field in [
            "name",
            "tool_call_id",
            "refusal",
            "reasoning_content",
            "reasoning",
        ] {
            self.text(field)?;
        }
        if !self.get("audio").is_null() {
            return Err(self.invalid(".audio", "cannot be read: this model hears nothing"));
        }
        let has_calls = self.check_calls(role)?;
        self.check_content(role, has_calls)
    }

    /// Whether the message calls tools.
    fn check_calls(&self, role: &str) -> Result<bool, ApiError> {
        for field in ["tool_calls", "function_call"] {
            if role != "assistant" && !self.get(field).is_null() {
                let message = "may be in messages of the role assistant alone: leave it out";
                return Err(self.invalid(&format!(".{field}"), message));
            }
        }
        let calls = match self.get("tool_calls") {
            Value::Null => &[][..],
            Value::Array(calls) => calls,
            _ => return Err(self.invalid(".tool_calls", "must be an array of calls")),
        };
        for (index, call) in calls.iter().enumerate() {
            let at = format!(".tool_calls[{index}]");
            if !call.is_object() {
                return Err(self.invalid(&at, "must be an object with a function"));
            }
            if !matches!(call["id"], Value::Null | Value::String(_)) {
                return Err(self.invalid(&format!("{at}.id"), "must be a string"));
            }
            if !matches!(&call["type"], Value::Null) && call["type"] != "function" {
                let message = "must be \"function\": this server has no other tools";
                return Err(self.invalid(&format!("{at}.type"), message));
            }
            self.check_function(&format!("{at}.function"), &call["function"])?;
        }
        let function = self.get("function_call");
        if !function.is_null() {
            self.check_function(".function_call", function)?;
        }
        Ok(!calls.is_empty() || !function.is_null())
    }

    fn check_function(&self, at: &str, function: &Value) -> Result<(), ApiError> {
        if !function.is_object() {
            return Err(self.invalid(at, "must be an object with a name and arguments"));
        }
        match &function["name"] {
            Value::String(name) if !name.is_empty() => Ok(()),
            _ => Err(self.invalid(&format!("{at}.name"), "must be the function's name")),
        }
    }

    fn check_content(&self, role: &str, has_calls: bool) -> Result<(), ApiError> {
        match self.get("content") {
            Value::String(_) => Ok(()),
            Value::Array(parts) => {
                let mut parts = parts.iter().enumerate();
                parts.try_for_each(|(index, part)| self.check_part(index, part))
            }
            Value::Null if role == "function" || has_calls => Ok(()),
            Value::Null if role == "assistant" => {
                let others = ["refusal", "reasoning_content", "reasoning"];
                match others.iter().any(|field| self.get(field).is_string()) {
                    true => Ok(()),
                    false => Err(self.invalid(
                        ".content",
                        "is missing: only an assistant's message that calls tools may have none",
                    )),
                }
            }
            Value::Null => {
                let message = format!("is missing: a message of the role {role} must have it");
                Err(self.invalid(".content", &message))
            }
            _ => Err(self.invalid(".content", "must be a string or an array of text parts")),
        }
    }

    fn check_part(&self, index: usize, part: &Value) -> Result<(), ApiError> {
        let at = format!(".content[{index}]");
        if !part.is_object() {
            return Err(self.invalid(&at, "must be an object with a type"));
        }
        let field = match part["type"].as_str() {
            Some("text") => "text",
            Some("refusal") => "refusal",
            _ => {
                let message = "must be text or refusal: this model reads no other parts";
                return Err(self.invalid(&format!("{at}.type"), message));
            }
        };
        match part[field].is_string() {
            true => Ok(()),
            false => Err(self.invalid(&format!("{at}.{field}"), "must be a string")),
        }
    }
}

/// Checks messages of OpenAI's shape. Errors name the field.
pub(in crate::api) fn check_messages(messages: &[Value]) -> Result<(), ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "messages must have at least one message",
        ));
    }
    for (index, value) in messages.iter().enumerate() {
        let at = format!("messages[{index}]");
        Message { value, at }.check()?;
    }
    Ok(())
}
