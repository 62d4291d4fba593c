//! Tools and the form of the text, from the shapes of responses to those of chats.

use serde_json::{Map, Value, json};

use super::request::{one_of, refuse_if};
use crate::api::error::ApiError;
use crate::api::openai::code;

/// The tools of a chat. `max_calls`: of tools that the server runs (`max_tool_calls`).
pub(super) fn tools(tools: &[Value], max_calls: Option<i64>) -> Result<Vec<Value>, ApiError> {
    let tools = tools.iter().enumerate();
    let tools = tools.map(|(index, tool)| {
        let path = format!("tools[{index}]");
        refuse_if(!tool.is_object(), &path, "must be an object")?;
        let kind_path = format!("{path}.type");
        match tool["type"].as_str() {
            Some("function") => {}
            // It has one shape everywhere.
            Some(code::KIND) => return Ok(code::at_most(tool.clone(), max_calls)),
            Some(kind) => {
                let message = format!(
                    "{kind_path} is {kind:?}; this server takes tools of type function and \
                     code_interpreter"
                );
                return Err(ApiError::invalid(&kind_path, message));
            }
            None => refuse_if(true, &kind_path, "must be a string")?,
        }
        let is_named = tool["name"].as_str().is_some_and(|name| !name.is_empty());
        let name_path = format!("{path}.name");
        refuse_if(!is_named, &name_path, "must be a string that is not empty")?;
        let function = picked(tool, &["name", "description", "parameters", "strict"]);
        Ok(json!({"type": "function", "function": function}))
    });
    tools.collect()
}

/// Fields of an object that are there and not null.
fn picked(object: &Value, names: &[&str]) -> Map<String, Value> {
    let fields = names.iter().map(|name| (*name, &object[*name]));
    let fields = fields.filter(|(_, value)| !value.is_null());
    fields
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .collect()
}

/// The `tool_choice` of a chat.
pub(super) fn tool_choice(choice: &Value) -> Result<Value, ApiError> {
    let path = "tool_choice";
    match choice {
        Value::String(mode) => {
            one_of(path, Some(mode), &["none", "auto", "required"])?;
            Ok(choice.clone())
        }
        Value::Object(_) => match choice["type"].as_str() {
            Some("function") => {
                let name = &choice["name"];
                refuse_if(!name.is_string(), "tool_choice.name", "must be a string")?;
                Ok(json!({"type": "function", "function": {"name": name}}))
            }
            Some("allowed_tools") => allowed_tools(choice),
            Some(kind) => {
                let path = "tool_choice.type";
                let message = format!("{path} is function or allowed_tools, not {kind:?}");
                Err(ApiError::invalid(path, message))
            }
            None => {
                let message = "tool_choice.type must be a string";
                Err(ApiError::invalid("tool_choice.type", message))
            }
        },
        _ => {
            let message = "tool_choice must be none, auto, required or an object";
            Err(ApiError::invalid(path, message))
        }
    }
}

fn allowed_tools(choice: &Value) -> Result<Value, ApiError> {
    let mode = choice["mode"].as_str().unwrap_or_default();
    one_of("tool_choice.mode", Some(mode), &["auto", "required"])?;
    let Some(given) = choice["tools"].as_array() else {
        let message = "tool_choice.tools must be an array of tools";
        return Err(ApiError::invalid("tool_choice.tools", message));
    };
    let mut tools = Vec::new();
    for (index, tool) in given.iter().enumerate() {
        let path = format!("tool_choice.tools[{index}]");
        let is_function = tool["type"] == "function" && tool["name"].is_string();
        let why = "must be {\"type\": \"function\", \"name\": …}";
        refuse_if(!is_function, &path, why)?;
        tools.push(json!({"type": "function", "function": {"name": tool["name"]}}));
    }
    Ok(json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}))
}

/// A chat's `response_format` and `verbosity`, as far as they are asked for.
pub(super) fn text(text: &Value) -> Result<(Option<Value>, Option<Value>), ApiError> {
    refuse_if(!text.is_object(), "text", "must be an object")?;
    let verbosity = match &text["verbosity"] {
        Value::Null => None,
        Value::String(verbosity) => {
            one_of(
                "text.verbosity",
                Some(verbosity),
                &["low", "medium", "high"],
            )?;
            // How verbose a model is by itself.
            (verbosity != "medium").then(|| verbosity.as_str().into())
        }
        _ => {
            let message = "text.verbosity must be a string";
            return Err(ApiError::invalid("text.verbosity", message));
        }
    };
    let format = &text["format"];
    if format.is_null() {
        return Ok((None, verbosity));
    }
    refuse_if(!format.is_object(), "text.format", "must be an object")?;
    let kinds = ["text", "json_object", "json_schema"];
    let kind = format["type"].as_str().unwrap_or_default();
    one_of("text.format.type", Some(kind), &kinds)?;
    let format = match kind {
        "text" => None,
        "json_object" => Some(json!({"type": "json_object"})),
        _ => {
            let is_schema = format["schema"].is_object() || format["schema"].is_boolean();
            refuse_if(!is_schema, "text.format.schema", "must be a JSON schema")?;
            let schema = picked(format, &["name", "description", "schema", "strict"]);
            Some(json!({"type": "json_schema", "json_schema": schema}))
        }
    };
    Ok((format, verbosity))
}
