//! The item of a program that the server ran.

use serde_json::{Value, json};

use super::head::output_id;
use crate::api::answer::event::ToolOutput;
use crate::tool::{CallStatus, CodeCall};

/// OpenAI's `code_interpreter_call`.
pub(super) struct CodeItem<'o> {
    id: String,
    container_id: String,
    call: &'o CodeCall,
}

impl<'o> CodeItem<'o> {
    /// `hex`: of the response.
    pub fn new(output: &'o ToolOutput, hex: &str, index: usize) -> Self {
        Self {
            id: output_id("ci", hex, index),
            // Each answer has its own, which nothing outlives.
            container_id: format!("cntr_{hex}"),
            call: &output.call,
        }
    }

    /// A program that raises is complete for OpenAI.
    pub fn status(&self) -> &'static str {
        match self.call.status {
            CallStatus::Completed | CallStatus::Failed => "completed",
            CallStatus::TimedOut | CallStatus::NotRun => "failed",
        }
    }

    /// The item. `is_new`: as it is before its first delta.
    pub fn json(&self, status: &str, is_new: bool) -> Value {
        let (code, outputs) = match is_new {
            true => ("", Value::Null),
            false => {
                let logs = json!([{"type": "logs", "logs": self.call.output}]);
                (self.call.code.as_str(), logs)
            }
        };
        json!({"id": self.id, "type": "code_interpreter_call", "status": status, "code": code,
            "container_id": self.container_id, "outputs": outputs})
    }

    /// The events between its beginning and its end.
    pub fn events(&self, index: usize) -> [(&'static str, Value); 5] {
        let place = json!({"item_id": self.id, "output_index": index});
        let with = |name: &str| {
            let mut fields = place.clone();
            fields[name] = self.call.code.as_str().into();
            fields
        };
        [
            ("response.code_interpreter_call.in_progress", place.clone()),
            ("response.code_interpreter_call_code.delta", with("delta")),
            ("response.code_interpreter_call_code.done", with("code")),
            ("response.code_interpreter_call.interpreting", place.clone()),
            ("response.code_interpreter_call.completed", place),
        ]
    }
}
