//! `code_interpreter` among the tools: the server runs the Python that the model writes.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::api::error::ApiError;
use crate::api::generation::{CodeUse, Generation};
use crate::api::served::Served;
use crate::api::tenant::Tenant;
use crate::tool::{CodeLimits, CodeTool};

/// The tool's `type`.
pub(in crate::api) const KIND: &str = "code_interpreter";
/// Less is not enough for an interpreter to start.
const LEAST_TIMEOUT_MS: u64 = 100;

/// What a request asks for, and the tool's place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CodeSpec {
    pub at: String,
    pub limits: CodeLimits,
    /// See [`CodeUse::before`].
    pub before: Vec<String>,
}

impl CodeSpec {
    /// The same for answers that go on with these texts, one a prompt.
    pub fn behind(self, before: impl IntoIterator<Item = String>) -> Self {
        let before = before.into_iter().collect();
        Self { before, ..self }
    }
}

/// Reads the tool at `at`.
pub(super) fn spec(tool: &Map<String, Value>, at: &str) -> Result<CodeSpec, ApiError> {
    let mut limits = CodeLimits::default();
    for (name, value) in tool {
        let at = format!("{at}.{name}");
        let number = |least: u64, most: u64| {
            let number = value.as_u64().filter(|it| (least..=most).contains(it));
            number.ok_or_else(|| {
                let message = format!("{at} must be a whole number from {least} to {most}");
                ApiError::invalid(&at, message)
            })
        };
        match name.as_str() {
            "type" => {}
            "container" if *value == json!({"type": "auto"}) => {}
            "container" => {
                let message = format!(
                    "{at} must be {{\"type\": \"auto\"}}: programs have no files, and no container \
                     outlives an answer"
                );
                return Err(ApiError::invalid(&at, message));
            }
            "max_calls" => {
                limits.max_calls = number(1, CodeLimits::MOST_CALLS as u64)? as usize;
            }
            "timeout_ms" => {
                let most = CodeLimits::MOST_TIMEOUT.as_millis() as u64;
                limits.timeout = Duration::from_millis(number(LEAST_TIMEOUT_MS, most)?);
            }
            "max_output_bytes" => {
                let most = CodeLimits::MOST_OUTPUT_BYTES as u64;
                limits.max_output_bytes = number(1, most)? as usize;
            }
            _ => {
                let message = format!(
                    "{at} is not known: {KIND} takes max_calls, timeout_ms and max_output_bytes"
                );
                return Err(ApiError::invalid(&at, message));
            }
        }
    }
    Ok(CodeSpec {
        at: at.to_owned(),
        limits,
        before: Vec::new(),
    })
}

/// The tool with a limit of its calls, if that is less than its own.
pub(in crate::api) fn at_most(mut tool: Value, max_calls: Option<i64>) -> Value {
    if let Some(most) = max_calls {
        let most = most.min(CodeLimits::MOST_CALLS as i64);
        let own = tool["max_calls"].as_i64().unwrap_or(most);
        if own >= most {
            tool["max_calls"] = most.into();
        }
    }
    tool
}

/// The tools of a completion, which can only be this one.
pub(super) fn of_completion(tools: Option<&[Value]>) -> Result<Option<CodeSpec>, ApiError> {
    let mut found = None;
    for (index, tool) in tools.unwrap_or_default().iter().enumerate() {
        let at = format!("tools[{index}]");
        let fields = tool
            .as_object()
            .filter(|it| it.get("type") == Some(&json!(KIND)));
        let Some(fields) = fields else {
            let message = format!("{at} must be {{\"type\": \"{KIND}\"}}: functions need a chat");
            return Err(ApiError::invalid(&at, message));
        };
        let spec = spec(fields, &at)?;
        if found.replace(spec).is_some() {
            return Err(twice(&at));
        }
    }
    Ok(found)
}

/// A second one.
pub(super) fn twice(at: &str) -> ApiError {
    ApiError::invalid(at, format!("{at}: {KIND} is there twice; leave one out"))
}

/// The tool, where the operator lets requests run code.
pub(super) fn tool(
    served: &Served,
    spec: Option<CodeSpec>,
    tenant: Tenant,
) -> Result<Option<CodeUse>, ApiError> {
    let Some(CodeSpec { at, limits, before }) = spec else {
        return Ok(None);
    };
    let Some(python) = &served.rewards.python else {
        let message = format!(
            "{at}: this server runs no code; start it with --allow-code-execution, or leave {KIND} \
             out"
        );
        return Err(ApiError::invalid(&at, message));
    };
    let runner = Arc::new(python.clone());
    let tool = Arc::new(CodeTool::new(limits, runner, tenant.0));
    Ok(Some(CodeUse { tool, before }))
}

/// What a plain answer cannot do together with code.
pub(in crate::api) fn check_plain(generation: &Generation) -> Result<(), ApiError> {
    let refuse = |param: &str| {
        let message = format!("{param} cannot be combined with the tool {KIND}");
        Err(ApiError::invalid(param, message))
    };
    match (&generation.code, &generation.media, &generation.adaptation) {
        (Some(_), Some(_), _) => refuse("messages"),
        (Some(_), None, Some(_)) => refuse("adaptation"),
        _ => Ok(()),
    }
}

/// The limits of a request's code, for a search that goes on under the same ones.
pub(in crate::api) fn limits_json(tool: &CodeTool) -> Value {
    let limits = tool.limits;
    json!({
        "max_calls": limits.max_calls,
        "timeout_ms": limits.timeout.as_millis() as u64,
        "max_output_bytes": limits.max_output_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(more: Value) -> Result<CodeLimits, ApiError> {
        let mut tool = json!({"type": KIND});
        for (name, value) in more.as_object().unwrap() {
            tool[name] = value.clone();
        }
        let spec = spec(tool.as_object().unwrap(), "tools[0]");
        spec.map(|spec| spec.limits)
    }

    #[test]
    fn limits_have_defaults_and_bounds() {
        assert_eq!(limits(json!({})).unwrap(), CodeLimits::default());
        assert_eq!(
            limits(json!({"container": {"type": "auto"}})).unwrap(),
            CodeLimits::default()
        );
        let given = json!({"max_calls": 1, "timeout_ms": 250, "max_output_bytes": 9});
        let expected = CodeLimits {
            max_calls: 1,
            timeout: Duration::from_millis(250),
            max_output_bytes: 9,
        };
        assert_eq!(limits(given).unwrap(), expected);
        for (more, param) in [
            (json!({"max_calls": 0}), "tools[0].max_calls"),
            (json!({"max_calls": 65}), "tools[0].max_calls"),
            (json!({"timeout_ms": 99}), "tools[0].timeout_ms"),
            (json!({"timeout_ms": 5001}), "tools[0].timeout_ms"),
            (
                json!({"max_output_bytes": "9"}),
                "tools[0].max_output_bytes",
            ),
            (json!({"container": "cntr_1"}), "tools[0].container"),
            (
                json!({"container": {"type": "auto", "file_ids": []}}),
                "tools[0].container",
            ),
            (json!({"files": []}), "tools[0].files"),
        ] {
            let error = limits(more).unwrap_err();
            assert_eq!(
                (error.status.as_u16(), error.param.as_deref()),
                (400, Some(param))
            );
        }
    }

    #[test]
    fn a_limit_of_all_calls_holds_for_these() {
        let limited = |tool: Value, most| at_most(tool, most)["max_calls"].clone();
        assert_eq!(limited(json!({}), None), Value::Null);
        assert_eq!(limited(json!({}), Some(9)), 9);
        assert_eq!(limited(json!({}), Some(900)), 64);
        assert_eq!(limited(json!({"max_calls": 3}), Some(9)), 3);
        assert_eq!(limited(json!({"max_calls": 30}), Some(9)), 9);
        // What is wrong stays wrong.
        assert_eq!(limited(json!({"max_calls": 0}), Some(9)), 0);
    }

    #[test]
    fn completions_take_this_tool_alone() {
        let read = |tools: Value| of_completion(tools.as_array().map(Vec::as_slice));
        assert_eq!(read(json!([])).unwrap(), None);
        assert_eq!(
            read(json!([{"type": KIND}])).unwrap().unwrap().at,
            "tools[0]"
        );
        for tools in [
            json!([{"type": "function", "function": {"name": "f"}}]),
            json!([{"type": KIND}, {"type": KIND}]),
            json!([1]),
        ] {
            assert!(read(tools).is_err());
        }
    }
}
