//! The fields of a request that its response repeats.

use serde_json::{Map, Value, json};

use super::request::ResponsesRequest;

/// All of them, with their defaults.
pub(super) fn echo(request: &ResponsesRequest, model: &str, is_kept: bool) -> Map<String, Value> {
    let field = |value: &Option<Value>, name: &str| {
        let value = value.as_ref().map_or(&Value::Null, |value| &value[name]);
        value.clone()
    };
    let or = |value: Value, default: Value| match value {
        Value::Null => default,
        value => value,
    };
    let format = or(field(&request.text, "format"), json!({"type": "text"}));
    let verbosity = or(field(&request.text, "verbosity"), "medium".into());
    let effort = field(&request.reasoning, "effort");
    let mut reasoning = json!({"effort": effort, "summary": request.summary()});
    for name in ["max_tokens", "context"] {
        let value = field(&request.reasoning, name);
        if !value.is_null() {
            reasoning[name] = value;
        }
    }
    let tools = request.tools.iter().flatten().map(tool);
    let choice = request.tool_choice.clone().unwrap_or_default();
    let echo = json!({
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata.clone().unwrap_or_default(),
        "model": model,
        "parallel_tool_calls": request.parallel_tool_calls.unwrap_or(true),
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "prompt_cache_retention": request.prompt_cache_retention,
        "reasoning": reasoning,
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": is_kept,
        "temperature": request.temperature.unwrap_or(1.0),
        "text": {"format": format, "verbosity": verbosity},
        "tool_choice": or(choice, "auto".into()),
        "tools": tools.collect::<Vec<_>>(),
        "top_logprobs": request.top_logprobs.unwrap_or(0),
        "top_p": request.top_p.unwrap_or(1.0),
        "truncation": request.truncation.as_deref().unwrap_or("disabled"),
        "user": request.user,
    });
    match echo {
        Value::Object(echo) => echo,
        _ => Map::new(),
    }
}

/// A tool with all fields that clients expect of one.
fn tool(tool: &Value) -> Value {
    let mut tool = tool.clone();
    let is_function = tool["type"] == "function";
    if let Value::Object(fields) = &mut tool
        && is_function
    {
        for name in ["description", "parameters", "strict"] {
            fields.entry(name).or_insert(Value::Null);
        }
    }
    tool
}
