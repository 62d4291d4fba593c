//! From OpenAI's messages to those that a chat template reads.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::check::text_of;
use super::tools;
use crate::api::error::ApiError;
use crate::text::{ChatTemplate, Knowledge};

/// JSON values in the arguments of all calls of a conversation: they are read only here, and were
/// not counted with the body's.
const MAX_ARGUMENT_VALUES: usize = 1 << 17;
/// Ids of calls in templates that want short ones.
const SHORT_ID: usize = 9;

/// Gives messages the shape that a template knows. They passed
/// [`check_messages`](super::check_messages).
///
/// - `developer` becomes `system`, `function` becomes `tool`, and `tool` becomes a user message
///   with a `<tool_response>`, where the template does not have the role.
/// - Content is a string. A refusal is content.
/// - The arguments of calls are objects, or strings where the template wants them so. The older
///   `function_call` is one of `tool_calls`. Where a template has none, calls become content.
/// - `reasoning` becomes `reasoning_content`, and also `thinking` where the template has that.
///
/// # Errors
/// Arguments that are no JSON object, named by their place.
pub(in crate::api) fn normalize(
    messages: &mut Vec<Value>,
    template: &ChatTemplate,
) -> Result<(), ApiError> {
    let mut normalizer = Normalizer {
        knows: template.knows(),
        num_values: 0,
        ids: HashMap::new(),
        num_ids: 0,
        older_id: None,
    };
    for (index, message) in messages.iter_mut().enumerate() {
        if let Value::Object(message) = message {
            normalizer.message(index, message)?;
        }
    }
    if !template.knows().tool_role {
        join_responses(messages);
    }
    Ok(())
}

struct Normalizer<'a> {
    knows: &'a Knowledge,
    /// Of arguments.
    num_values: usize,
    /// The ids that the template sees.
    ids: HashMap<String, String>,
    num_ids: usize,
    /// Of the last `function_call`.
    older_id: Option<String>,
}

impl Normalizer<'_> {
    fn message(&mut self, index: usize, message: &mut Map<String, Value>) -> Result<(), ApiError> {
        let role = message.get("role").and_then(Value::as_str);
        let role = role.unwrap_or_default().to_owned();
        content(message);
        match role.as_str() {
            "developer" if !self.knows.developer => set(message, "role", "system"),
            "assistant" => self.assistant(index, message)?,
            "function" => {
                set(message, "role", "tool");
                if let Some(id) = &self.older_id {
                    set(message, "tool_call_id", id);
                }
                self.response(message);
            }
            "tool" => self.response(message),
            _ => {}
        }
        Ok(())
    }

    fn assistant(
        &mut self,
        index: usize,
        message: &mut Map<String, Value>,
    ) -> Result<(), ApiError> {
        if let Some(reasoning) = message.remove("reasoning").filter(Value::is_string) {
            let known = message.entry("reasoning_content").or_insert(Value::Null);
            if known.is_null() {
                *known = reasoning;
            }
        }
        let at = format!("messages[{index}]");
        let mut calls = match message.remove("tool_calls") {
            Some(Value::Array(calls)) => calls,
            _ => Vec::new(),
        };
        for (index, call) in calls.iter_mut().enumerate() {
            let at = format!("{at}.tool_calls[{index}].function");
            self.arguments(&at, &mut call["function"])?;
        }
        if let Some(mut function) = message.remove("function_call").filter(Value::is_object) {
            self.arguments(&format!("{at}.function_call"), &mut function)?;
            self.num_ids += 1;
            let id = format!("call{:05}", self.num_ids);
            self.older_id = Some(id.clone());
            calls.push(json!({"id": id, "type": "function", "function": function}));
        }
        self.thought(message, !calls.is_empty());
        for call in &mut calls {
            let id = call["id"].as_str().map(str::to_owned);
            call["id"] = self.id(id).into();
            call["type"] = "function".into();
        }
        if calls.is_empty() {
            return Ok(());
        }
        if self.knows.tool_calls {
            if self.knows.wants_string_arguments {
                for call in &mut calls {
                    let arguments = &mut call["function"]["arguments"];
                    *arguments = arguments.to_string().into();
                }
            }
            message.insert("tool_calls".to_owned(), calls.into());
            return Ok(());
        }
        let said = message.get("content").and_then(Value::as_str);
        let said = tools::calls_as_text(said.unwrap_or_default(), &calls);
        set(message, "content", &said);
        Ok(())
    }

    /// Gives a thought the name that the template knows. gpt-oss' template takes a thought or a
    /// content beside calls, and refuses both.
    fn thought(&self, message: &mut Map<String, Value>, has_calls: bool) {
        let is_said = |text: &str| !text.is_empty();
        let content = message.get("content").and_then(Value::as_str);
        if !self.knows.thinking || (has_calls && content.is_some_and(is_said)) {
            return;
        }
        let thought = message.get("reasoning_content").and_then(Value::as_str);
        if let Some(thought) = thought.filter(|text| is_said(text)).map(str::to_owned) {
            message.entry("thinking").or_insert(thought.into());
        }
    }

    /// Makes an object of a function's arguments.
    fn arguments(&mut self, at: &str, function: &mut Value) -> Result<(), ApiError> {
        let param = format!("{at}.arguments");
        let invalid =
            |message: String| Err(ApiError::invalid(&param, format!("{param} {message}")));
        let arguments = function["arguments"].take();
        let arguments = match arguments {
            Value::Null => json!({}),
            Value::String(text) if text.trim().is_empty() => json!({}),
            Value::String(text) => {
                self.num_values += count_values(&text);
                if self.num_values > MAX_ARGUMENT_VALUES {
                    return invalid(format!(
                        "has too much in it: the arguments of all messages may have \
                         {MAX_ARGUMENT_VALUES} JSON values; send fewer messages"
                    ));
                }
                match serde_json::from_str(&text) {
                    Ok(value) => value,
                    Err(error) => return invalid(format!("is not valid JSON: {error}")),
                }
            }
            other => other,
        };
        if !arguments.is_object() {
            return invalid("must be the text of a JSON object".to_owned());
        }
        function["arguments"] = arguments;
        Ok(())
    }

    /// What a tool answered.
    fn response(&mut self, message: &mut Map<String, Value>) {
        let id = message.get("tool_call_id").and_then(Value::as_str);
        if let Some(id) = id.map(str::to_owned) {
            let id = self.id(Some(id));
            set(message, "tool_call_id", &id);
        }
        if !self.knows.tool_role {
            let text = message.get("content").and_then(Value::as_str);
            let text = tools::response(text.unwrap_or_default());
            set(message, "content", &text);
        }
    }

    /// The id that a template sees.
    fn id(&mut self, id: Option<String>) -> String {
        let is_short =
            |id: &str| id.len() == SHORT_ID && id.chars().all(|c| c.is_ascii_alphanumeric());
        match id {
            Some(id) if !self.knows.wants_short_ids || is_short(&id) => id,
            Some(id) => {
                let next = self.num_ids + 1;
                let known = self.ids.entry(id).or_insert_with(|| {
                    self.num_ids = next;
                    format!("call{next:05}")
                });
                known.clone()
            }
            None => {
                self.num_ids += 1;
                format!("call{:05}", self.num_ids)
            }
        }
    }
}

/// Makes a string of a message's content.
fn content(message: &mut Map<String, Value>) {
    let refusal = message.remove("refusal");
    let text = match message.get("content") {
        Some(content @ Value::Array(_)) => text_of(content),
        None | Some(Value::Null) => match refusal {
            Some(Value::String(refusal)) => refusal,
            _ => return,
        },
        Some(_) => return,
    };
    set(message, "content", &text);
}

fn set(message: &mut Map<String, Value>, field: &str, text: &str) {
    message.insert(field.to_owned(), text.into());
}

/// Values in a JSON text, at least.
fn count_values(text: &str) -> usize {
    let (mut is_in_string, mut is_escaped, mut count) = (false, false, 1);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_in_string,
            b'"' => is_in_string = !is_in_string,
            b',' | b'[' | b'{' | b':' if !is_in_string => count += 1,
            _ => {}
        }
    }
    count
}

/// Tools' answers one after the other become one user message.
fn join_responses(messages: &mut Vec<Value>) {
    let mut joined: Vec<Value> = Vec::with_capacity(messages.len());
    let mut is_after_response = false;
    for mut message in messages.drain(..) {
        let is_response = message["role"] == "tool";
        if is_response {
            message = json!({"role": "user", "content": message["content"]});
        }
        match joined
            .last_mut()
            .filter(|_| is_response && is_after_response)
        {
            Some(last) => append(last, "\n", &message),
            None => joined.push(message),
        }
        is_after_response = is_response;
    }
    *messages = joined;
}

/// Moves system messages to where the template shows them. One that knows no such role has their
/// text in the next user message; one that knows a single message has all of a run in its first.
pub(super) fn place_systems(messages: &mut Vec<Value>, knows: &Knowledge) {
    if knows.system && knows.several_systems {
        return;
    }
    let mut placed: Vec<Value> = Vec::with_capacity(messages.len());
    let mut waiting: Option<Value> = None;
    for message in messages.drain(..) {
        if message["role"] == "system" {
            match &mut waiting {
                Some(system) => append(system, "\n\n", &message),
                None => waiting = Some(message),
            }
            continue;
        }
        match waiting.take() {
            Some(system) if knows.system => placed.extend([system, message]),
            Some(mut system) if message["role"] == "user" => {
                append(&mut system, "\n\n", &message);
                let mut message = message;
                message["content"] = system["content"].take();
                placed.push(message);
            }
            Some(system) => {
                placed.push(message);
                waiting = Some(system);
            }
            None => placed.push(message),
        }
    }
    if let Some(mut system) = waiting {
        if !knows.system {
            system["role"] = "user".into();
        }
        placed.push(system);
    }
    *messages = placed;
}

/// Adds the content of one message to another's.
fn append(message: &mut Value, between: &str, more: &Value) {
    let more = more["content"].as_str().unwrap_or_default();
    if let Value::String(text) = &mut message["content"] {
        text.push_str(between);
        text.push_str(more);
    }
}
