//! Errors of the chat pipeline in the words of this API: they name the fields of the request that
//! the client sent.

use super::messages::Source;
use crate::api::error::ApiError;

/// Fields of a chat, the longest first, and of a response.
const NAMES: [(&str, &str); 13] = [
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("tool_choice.allowed_tools", "tool_choice"),
    ("tool_choice.function.name", "tool_choice.name"),
    ("tool_choice.function", "tool_choice"),
    ("max_completion_tokens", "max_output_tokens"),
    ("max_tokens", "max_output_tokens"),
    ("thinking_token_budget", "reasoning.max_tokens"),
    ("reasoning_effort", "reasoning.effort"),
    ("verbosity", "text.verbosity"),
    ("logprobs", "include"),
    ("messages", "input"),
    ("prompt", "input"),
];

/// The error about the fields of a response.
pub(super) fn renamed(error: ApiError, sources: &[Source]) -> ApiError {
    let Some(param) = &error.param else {
        return error;
    };
    let renamed = new_name(param, sources);
    if renamed == *param {
        return error;
    }
    // Only a message that speaks of the field by its name: some values contain such words too.
    let message = match error.message.strip_prefix(param.as_str()) {
        Some(rest) => format!("{renamed}{rest}"),
        None => error
            .message
            .replace(&format!("{param} "), &format!("{renamed} ")),
    };
    ApiError {
        param: Some(renamed),
        message,
        ..error
    }
}

fn new_name(param: &str, sources: &[Source]) -> String {
    if let Some(name) = of_message(param, sources) {
        return name;
    }
    if let Some(rest) = param.strip_prefix("tools[") {
        return format!("tools[{}", rest.replacen("].function", "]", 1));
    }
    let is_whole = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
    for (old, new) in NAMES {
        if let Some(rest) = param.strip_prefix(old).filter(|rest| is_whole(rest)) {
            return format!("{new}{rest}");
        }
    }
    param.to_owned()
}

/// `messages[2].content[0].image_url` and the like, by where that message comes from.
fn of_message(param: &str, sources: &[Source]) -> Option<String> {
    let (index, rest) = param.strip_prefix("messages[")?.split_once(']')?;
    let source = sources.get(index.parse::<usize>().ok()?)?;
    if let Some(rest) = rest.strip_prefix(".content") {
        return Some(format!("{}{rest}", source.content));
    }
    let calls = rest.strip_prefix(".tool_calls");
    if let Some((index, rest)) = calls
        .and_then(|rest| rest.strip_prefix('['))
        .and_then(|rest| rest.split_once(']'))
    {
        let path = source.calls.get(index.parse::<usize>().ok()?)?;
        let rest = rest.strip_prefix(".function").unwrap_or(rest);
        let rest = if rest == ".id" { ".call_id" } else { rest };
        return Some(format!("{path}{rest}"));
    }
    let rest = match rest {
        ".tool_call_id" => ".call_id",
        ".reasoning_content" => "",
        rest => rest,
    };
    Some(format!("{}{rest}", source.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_fields_that_were_sent() {
        let source = |path: &str, calls: &[&str]| Source {
            path: path.to_owned(),
            content: format!("{path}.content"),
            calls: calls.iter().map(|call| (*call).to_owned()).collect(),
        };
        let sources = [
            Source {
                path: "instructions".to_owned(),
                content: "instructions".to_owned(),
                calls: Vec::new(),
            },
            source("input[0]", &[]),
            source("input[1]", &["input[2]", "input[3]"]),
        ];
        for (old, new) in [
            (
                "messages[1].content[0].image_url",
                "input[0].content[0].image_url",
            ),
            (
                "messages[2].tool_calls[1].function.arguments",
                "input[3].arguments",
            ),
            ("messages[2].tool_calls[0].id", "input[2].call_id"),
            ("messages[0].content", "instructions"),
            ("messages[1].role", "input[0].role"),
            ("messages", "input"),
            ("messages[9].role", "input[9].role"),
            (
                "tools[2].function.parameters.type",
                "tools[2].parameters.type",
            ),
            ("tools[0].type", "tools[0].type"),
            ("response_format.json_schema.schema", "text.format.schema"),
            ("response_format.type", "text.format.type"),
            ("max_tokens", "max_output_tokens"),
            ("tool_choice.function.name", "tool_choice.name"),
            ("tool_choice.allowed_tools.tools[1]", "tool_choice.tools[1]"),
            ("prompt_cache_key", "prompt_cache_key"),
            ("temperature", "temperature"),
        ] {
            let error = ApiError::invalid(old, format!("{old} is wrong"));
            let error = renamed(error, &sources);
            assert_eq!(error.param.as_deref(), Some(new));
            assert_eq!(error.message, format!("{new} is wrong"));
        }
        let other = renamed(ApiError::invalid("max_tokens", "x max_tokens y"), &[]);
        assert_eq!(other.message, "x max_output_tokens y");
        assert_eq!(renamed(ApiError::deadline(), &sources).param, None);
    }
}
