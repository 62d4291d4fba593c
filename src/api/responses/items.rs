//! The items of an input, checked and brought into the shape in which they are kept and listed.

use serde_json::{Value, json};

use super::parts::{Speaker, content};
use super::request::refuse_if;
use crate::api::error::ApiError;
use crate::api::wire::responses::decode_thought;

/// An item, and where the request has it.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub value: Value,
    /// `input[3]`, `input`, or `previous_response_id`.
    pub path: String,
}

/// The items of an `input`. `hex`: of the response that they are for, from which they get their
/// ids.
pub(super) fn read(input: Option<Value>, hex: &str) -> Result<Vec<Item>, ApiError> {
    match input {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => {
            let message = json!({"role": "user", "content": text});
            let path = "input".to_owned();
            let value = message_item(message, &path, hex, 0)?;
            Ok(vec![Item { value, path }])
        }
        Some(Value::Array(items)) => {
            let items = items.into_iter().enumerate();
            let items = items.map(|(index, value)| {
                let path = format!("input[{index}]");
                let value = item(value, &path, hex, index)?;
                Ok(Item { value, path })
            });
            items.collect()
        }
        Some(_) => Err(ApiError::invalid(
            "input",
            "input must be a string or an array of items",
        )),
    }
}

/// Whether an item stands for one that is kept.
pub(super) fn is_reference(item: &Value) -> bool {
    item["type"] == "item_reference"
}

fn item(value: Value, path: &str, hex: &str, index: usize) -> Result<Value, ApiError> {
    refuse_if(!value.is_object(), path, "must be an object")?;
    let kind = match &value["type"] {
        Value::String(kind) => kind.clone(),
        Value::Null if !value["role"].is_null() => "message".to_owned(),
        Value::Null if value["id"].is_string() => "item_reference".to_owned(),
        _ => {
            let path = format!("{path}.type");
            return Err(ApiError::invalid(&path, format!("{path} must be a string")));
        }
    };
    match kind.as_str() {
        "message" => message_item(value, path, hex, index),
        "function_call" => function_call(&value, path, hex, index),
        "function_call_output" => function_output(value, path, hex, index),
        "reasoning" => reasoning(&value, path, hex, index),
        "code_interpreter_call" => code_call(&value, path, hex, index),
        "item_reference" => {
            let id = text(&value, "id", path)?;
            Ok(json!({"type": "item_reference", "id": id}))
        }
        other => {
            let path = format!("{path}.type");
            let message = format!(
                "{path} is {other:?}; this server takes message, function_call, \
                 function_call_output, code_interpreter_call, reasoning and item_reference"
            );
            Err(ApiError::invalid(&path, message))
        }
    }
}

/// An item's own id, or a new one.
fn id(value: &Value, path: &str, prefix: &str, hex: &str, index: usize) -> Result<Value, ApiError> {
    match &value["id"] {
        Value::String(id) => Ok(id.as_str().into()),
        Value::Null => Ok(format!("{prefix}_{hex}i{index}").into()),
        _ => {
            let path = format!("{path}.id");
            Err(ApiError::invalid(&path, format!("{path} must be a string")))
        }
    }
}

fn text<'v>(value: &'v Value, field: &str, path: &str) -> Result<&'v str, ApiError> {
    value[field].as_str().ok_or_else(|| {
        let path = format!("{path}.{field}");
        ApiError::invalid(&path, format!("{path} must be a string"))
    })
}

fn status(value: &Value) -> &str {
    value["status"].as_str().unwrap_or("completed")
}

fn message_item(mut value: Value, path: &str, hex: &str, index: usize) -> Result<Value, ApiError> {
    let role = text(&value, "role", path)?.to_owned();
    let speaker = match role.as_str() {
        "assistant" => Speaker::Assistant,
        "user" | "system" | "developer" => Speaker::Input,
        _ => {
            let path = format!("{path}.role");
            let message = format!("{path} is user, system, developer or assistant, not {role:?}");
            return Err(ApiError::invalid(&path, message));
        }
    };
    let parts = content(value["content"].take(), &format!("{path}.content"), speaker)?;
    let id = id(&value, path, "msg", hex, index)?;
    Ok(
        json!({"id": id, "type": "message", "status": status(&value), "role": role,
        "content": parts}),
    )
}

fn function_call(value: &Value, path: &str, hex: &str, index: usize) -> Result<Value, ApiError> {
    let (call_id, name) = (text(value, "call_id", path)?, text(value, "name", path)?);
    let arguments = text(value, "arguments", path)?;
    let id = id(value, path, "fc", hex, index)?;
    Ok(
        json!({"id": id, "type": "function_call", "status": status(value),
        "arguments": arguments, "call_id": call_id, "name": name}),
    )
}

fn function_output(
    mut value: Value,
    path: &str,
    hex: &str,
    index: usize,
) -> Result<Value, ApiError> {
    let call_id = text(&value, "call_id", path)?.to_owned();
    let output: Value = match value["output"].take() {
        Value::String(text) => text.into(),
        parts => content(parts, &format!("{path}.output"), Speaker::Input)?.into(),
    };
    let id = id(&value, path, "fco", hex, index)?;
    Ok(
        json!({"id": id, "type": "function_call_output", "status": status(&value),
        "call_id": call_id, "output": output}),
    )
}

/// A program that a server ran, whose outputs are text.
fn code_call(value: &Value, path: &str, hex: &str, index: usize) -> Result<Value, ApiError> {
    let code = text(value, "code", path)?;
    let outputs_path = format!("{path}.outputs");
    let outputs = match &value["outputs"] {
        Value::Null => Vec::new(),
        Value::Array(outputs) => outputs.clone(),
        _ => {
            let why = format!("{outputs_path} must be an array of outputs");
            return Err(ApiError::invalid(&outputs_path, why));
        }
    };
    for (index, output) in outputs.iter().enumerate() {
        let path = format!("{outputs_path}[{index}]");
        let is_logs = output["type"] == "logs" && output["logs"].is_string();
        refuse_if(!is_logs, &path, "must be {\"type\": \"logs\", \"logs\": …}")?;
    }
    let id = id(value, path, "ci", hex, index)?;
    Ok(
        json!({"id": id, "type": "code_interpreter_call", "status": status(value), "code": code,
        "container_id": value["container_id"], "outputs": outputs}),
    )
}

fn reasoning(value: &Value, path: &str, hex: &str, index: usize) -> Result<Value, ApiError> {
    let mut parts = [Vec::new(), Vec::new()];
    let kinds = [("summary", "summary_text"), ("content", "reasoning_text")];
    for ((field, kind), parts) in kinds.into_iter().zip(&mut parts) {
        let path = format!("{path}.{field}");
        match &value[field] {
            Value::Null => {}
            Value::Array(given) => {
                for (index, part) in given.iter().enumerate() {
                    let text = text(part, "text", &format!("{path}[{index}]"))?;
                    parts.push(json!({"type": kind, "text": text}));
                }
            }
            _ => refuse_if(true, &path, "must be an array of parts")?,
        }
    }
    let encrypted = &value["encrypted_content"];
    let encrypted_path = format!("{path}.encrypted_content");
    let is_text = encrypted.is_null() || encrypted.is_string();
    refuse_if(!is_text, &encrypted_path, "must be a string")?;
    // Where a client kept nothing else, the thought is read from there.
    let is_bare = parts.iter().all(Vec::is_empty);
    let is_foreign = encrypted
        .as_str()
        .is_some_and(|text| decode_thought(text).is_none());
    let why = "is of another server: leave the item out";
    refuse_if(is_bare && is_foreign, &encrypted_path, why)?;
    let id = id(value, path, "rs", hex, index)?;
    let [summary, content] = parts;
    Ok(
        json!({"id": id, "type": "reasoning", "summary": summary, "content": content,
        "encrypted_content": encrypted, "status": status(value)}),
    )
}

/// What a thought says.
pub(super) fn thought(item: &Value) -> String {
    let joined = |field: &str| {
        let parts = item[field].as_array().into_iter().flatten();
        parts
            .filter_map(|part| part["text"].as_str())
            .collect::<Vec<_>>()
            .join("\n")
    };
    let encrypted = || item["encrypted_content"].as_str().and_then(decode_thought);
    match joined("content") {
        text if !text.is_empty() => text,
        _ => encrypted().unwrap_or_else(|| joined("summary")),
    }
}
