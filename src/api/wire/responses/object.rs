//! The response object.

use serde_json::{Map, Value, json};

use super::head::ResponseHead;
use crate::api::answer::event::{Summary, Usage};
use crate::api::clock::unix_time;
use crate::api::error::ApiError;

/// Where a response is, with OpenAI's name.
#[derive(Debug, Clone)]
pub(super) enum Status {
    Queued,
    InProgress,
    Completed,
    Incomplete,
    Cancelled,
    /// With its `error`.
    Failed(Value),
}

impl Status {
    fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Cancelled => "cancelled",
            Self::Failed(_) => "failed",
        }
    }
}

/// A response with what is known of its answer.
pub(super) fn response(head: &ResponseHead, status: Status, output: &[Value]) -> Value {
    let completed_at = matches!(status, Status::Completed).then(unix_time);
    let mut object = Map::new();
    let mut set = |name: &str, value: Value| {
        object.insert(name.to_owned(), value);
    };
    set("id", head.id().into());
    set("object", "response".into());
    set("created_at", head.created.into());
    set("status", status.name().into());
    set("background", head.is_background.into());
    set("completed_at", completed_at.into());
    let incomplete = matches!(status, Status::Incomplete);
    set(
        "incomplete_details",
        match incomplete {
            true => json!({"reason": "max_output_tokens"}),
            false => Value::Null,
        },
    );
    set(
        "error",
        match status {
            Status::Failed(error) => error,
            _ => Value::Null,
        },
    );
    for (name, value) in &head.echo {
        set(name, value.clone());
    }
    set("output", output.into());
    set("usage", Value::Null);
    object.into()
}

/// Adds what is known once the answer is there.
pub(super) fn conclude(response: &mut Value, summary: &Summary) {
    response["usage"] = usage(&summary.usage);
    if let Some(search) = &summary.search {
        response["search"] = search.clone();
    }
    if let Some(adaptation) = &summary.adaptation {
        response["adaptation"] = adaptation.clone();
    }
    if let Some([id]) = summary.traces.as_deref() {
        response["trace_id"] = json!(id);
    }
}

/// OpenAI's `usage` of a response.
fn usage(usage: &Usage) -> Value {
    let mut json = json!({
        "input_tokens": usage.num_prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.num_cached_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.num_completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.num_reasoning_tokens},
        "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
    });
    if let Some(count) = usage.num_tool_output_tokens {
        json["output_tokens_details"]["tool_output_tokens"] = count.into();
    }
    json
}

/// The `error` of a failed response.
pub(super) fn error_object(error: &ApiError) -> Value {
    let code = match error.status.as_u16() {
        429 => "rate_limit_exceeded",
        // It ran out of time, which is not the prompt's fault.
        408 => "server_error",
        400..=499 => "invalid_prompt",
        _ => "server_error",
    };
    json!({"code": code, "message": error.message})
}

/// A stored response that nobody is working on any more.
pub(in crate::api) fn failed_object(mut response: Value, error: &ApiError) -> Value {
    response["status"] = "failed".into();
    response["error"] = error_object(error);
    response
}

/// A response that was queued and is worked on now.
pub(in crate::api) fn in_progress_object(mut response: Value) -> Value {
    response["status"] = "in_progress".into();
    response
}
