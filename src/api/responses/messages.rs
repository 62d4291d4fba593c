//! The messages of a chat that items stand for, and where each of them comes from.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::items::{Item, thought};
use super::parts::for_chat;
use crate::api::error::ApiError;
use crate::tool::{CallStatus, CodeCall, output_text};

/// Where a message comes from.
#[derive(Debug, Clone, Default)]
pub(super) struct Source {
    /// Of the message as a whole.
    pub path: String,
    /// Of its content.
    pub content: String,
    /// Of its calls.
    pub calls: Vec<String>,
}

/// A chat that can be rendered.
#[derive(Debug, Clone, Default)]
pub(super) struct Conversation {
    pub messages: Vec<Value>,
    /// One a message.
    pub sources: Vec<Source>,
    /// The last item was a program that the server ran: the answer goes on behind it.
    is_behind_code: bool,
}

impl Conversation {
    /// `instructions` come first; thoughts of earlier turns are left out where `drops_thoughts`.
    pub fn new(
        instructions: Option<&str>,
        items: &[Item],
        drops_thoughts: bool,
    ) -> Result<Self, ApiError> {
        let mut conversation = Self::default();
        if let Some(text) = instructions.filter(|text| !text.is_empty()) {
            let message = json!({"role": "system", "content": text});
            conversation.push(message, "instructions", "instructions");
        }
        let is_user = |item: &Item| item.value["role"] == "user";
        let last_turn = items.iter().rposition(is_user).unwrap_or(0);
        let mut calls = HashSet::new();
        for (index, item) in items.iter().enumerate() {
            let is_dropped = drops_thoughts && index < last_turn;
            conversation.item(item, is_dropped, &mut calls)?;
        }
        Ok(conversation)
    }

    fn push(&mut self, message: Value, path: &str, content: &str) {
        self.messages.push(message);
        self.sources.push(Source {
            path: path.to_owned(),
            content: content.to_owned(),
            calls: Vec::new(),
        });
    }

    fn item<'i>(
        &mut self,
        item: &'i Item,
        drops_thought: bool,
        calls: &mut HashSet<&'i str>,
    ) -> Result<(), ApiError> {
        let Item { value, path } = item;
        let goes_on = std::mem::take(&mut self.is_behind_code);
        match value["type"].as_str().unwrap_or_default() {
            "message" => self.message(value, path, goes_on),
            "code_interpreter_call" => self.code(value, path),
            "reasoning" if !drops_thought => {
                let thought = thought(value);
                if !thought.is_empty() {
                    let message = self.assistant(path, |message| {
                        message["content"].is_null()
                            && message["tool_calls"].is_null()
                            && message["reasoning_content"].is_null()
                    });
                    message["reasoning_content"] = thought.into();
                }
            }
            "function_call" => {
                calls.extend(value["call_id"].as_str());
                self.call(value, path);
            }
            "function_call_output" => {
                let call_id = value["call_id"].as_str().unwrap_or_default();
                if !calls.contains(call_id) {
                    let path = format!("{path}.call_id");
                    let message = format!("{path}: there is no function_call {call_id:?} before");
                    return Err(ApiError::invalid(&path, message));
                }
                let content = match &value["output"] {
                    Value::Array(parts) => for_chat(parts),
                    text => text.clone(),
                };
                let message = json!({"role": "tool", "tool_call_id": call_id, "content": content});
                self.push(message, path, &format!("{path}.output"));
            }
            _ => {}
        }
        Ok(())
    }

    /// `goes_on`: the answer before it is no other one.
    fn message(&mut self, value: &Value, path: &str, goes_on: bool) {
        let parts = value["content"].as_array();
        let content = for_chat(parts.map_or(&[], Vec::as_slice));
        let content_path = format!("{path}.content");
        if value["role"] != "assistant" {
            let message = json!({"role": value["role"], "content": content});
            return self.push(message, path, &content_path);
        }
        let is_free = |message: &Value| {
            (message["content"].is_null() || goes_on) && message["tool_calls"].is_null()
        };
        let message = self.assistant(path, is_free);
        message["content"] = match (message["content"].as_str(), content.as_str()) {
            (Some(before), Some(text)) => format!("{before}{text}").into(),
            _ => content,
        };
        if let Some(source) = self.sources.last_mut() {
            source.content = content_path;
        }
    }

    /// What a program printed stands behind its code, as in the answer. The code is the end of the
    /// message before, unless the client left that out.
    fn code(&mut self, value: &Value, path: &str) {
        let outputs = value["outputs"].as_array().into_iter().flatten();
        let logs = outputs.filter_map(|it| it["logs"].as_str());
        let call = CodeCall {
            code: value["code"].as_str().unwrap_or_default().to_owned(),
            output: logs.collect(),
            status: CallStatus::Completed,
        };
        let message = self.assistant(path, |message| message["tool_calls"].is_null());
        let mut text = message["content"].as_str().unwrap_or_default().to_owned();
        if !text.trim_end().ends_with("```") {
            let before = if text.is_empty() || text.ends_with('\n') {
                ""
            } else {
                "\n"
            };
            let after = if call.code.ends_with('\n') { "" } else { "\n" };
            text.push_str(&format!("{before}```python\n{}{after}```", call.code));
        }
        text.push_str(&output_text(&call, text.ends_with('\n')));
        message["content"] = text.into();
        self.is_behind_code = true;
    }

    fn call(&mut self, value: &Value, path: &str) {
        let message = self.assistant(path, |_| true);
        let call = json!({"id": value["call_id"], "type": "function",
            "function": {"name": value["name"], "arguments": value["arguments"]}});
        match &mut message["tool_calls"] {
            Value::Array(calls) => calls.push(call),
            calls => *calls = json!([call]),
        }
        if let Some(source) = self.sources.last_mut() {
            source.calls.push(path.to_owned());
        }
    }

    /// The assistant's message at the end, or a new one: the items of one response are one message.
    fn assistant(&mut self, path: &str, is_right: impl Fn(&Value) -> bool) -> &mut Value {
        let last = self.messages.last();
        let is_there = last.is_some_and(|last| last["role"] == "assistant" && is_right(last));
        if !is_there {
            let message = json!({"role": "assistant", "content": null});
            self.push(message, path, &format!("{path}.content"));
        }
        let last = self.messages.len() - 1;
        &mut self.messages[last]
    }

    /// Where a conversation may begin when its oldest messages are dropped, the earliest first: at
    /// a user's message, and in the last turn behind calls and their outputs.
    pub fn cuts(&self) -> Vec<usize> {
        let role = |index: usize| self.messages[index]["role"].as_str().unwrap_or_default();
        let all = 1..self.messages.len();
        let mut cuts: Vec<usize> = all.filter(|index| role(*index) == "user").collect();
        let last_turn = cuts.last().copied().unwrap_or(0);
        let rest = last_turn + 1..self.messages.len();
        cuts.extend(rest.filter(|index| role(*index) == "assistant"));
        cuts
    }

    /// The conversation from a cut on; what the operator or developer said before stays.
    pub fn cut_at(&self, cut: usize) -> Self {
        let stays = |index: &usize| {
            let role = self.messages[*index]["role"].as_str();
            *index >= cut || matches!(role, Some("system" | "developer"))
        };
        let kept: Vec<usize> = (0..self.messages.len()).filter(stays).collect();
        Self {
            messages: kept.iter().map(|it| self.messages[*it].clone()).collect(),
            sources: kept.iter().map(|it| self.sources[*it].clone()).collect(),
            ..Self::default()
        }
    }
}
