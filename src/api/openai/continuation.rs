//! The prompt of a conversation: with the beginning of an answer behind it, or open at the end of
//! its last message (`continue_final_message`).

use serde_json::{Map, Value};

use super::messages::{Conversation, Prompt, render};
use crate::api::error::ApiError;
use crate::api::served::Served;

/// Variables that are set for every template.
const RESERVED: [&str; 5] = [
    "messages",
    "tools",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
];

/// How a conversation becomes a prompt.
#[derive(Debug, Clone, Default)]
pub(super) struct Rendering {
    /// Let the template begin an answer; it does by default.
    pub add_generation_prompt: Option<bool>,
    /// Stop where the last message ends instead.
    pub continue_final_message: bool,
    /// A variable of the template.
    pub documents: Option<Vec<Value>>,
    /// More variables of the template.
    pub variables: Map<String, Value>,
    /// Control tokens in the texts are text.
    pub escapes: bool,
}

/// The prompt of a conversation.
pub(super) fn conversation(
    served: &Served,
    messages: &[Value],
    tools: Option<&[Value]>,
    rendering: Rendering,
) -> Result<Prompt, ApiError> {
    let mut variables = rendering.variables;
    if let Some(name) = RESERVED.iter().find(|name| variables.contains_key(**name)) {
        let param = format!("chat_template_kwargs.{name}");
        let message = format!("{param} is the server's to set: use the request's own fields");
        return Err(ApiError::invalid(&param, message));
    }
    if let Some(documents) = rendering.documents.filter(|it| !it.is_empty()) {
        let template = served.chat_template.as_ref();
        if template.is_some_and(|template| !template.reads("documents")) {
            let message = "this model's chat template reads no documents: put them into a message";
            return Err(ApiError::invalid("documents", message));
        }
        variables.insert("documents".to_owned(), documents.into());
    }
    let conversation = Conversation {
        messages,
        tools,
        add_generation_prompt: rendering.add_generation_prompt.unwrap_or(true),
        variables: &variables,
        escapes: rendering.escapes,
    };
    if !rendering.continue_final_message {
        return render(served, &conversation);
    }
    if rendering.add_generation_prompt == Some(true) {
        return Err(refuse(
            "continue_final_message cannot be combined with add_generation_prompt: leave one out",
        ));
    }
    render_open(served, conversation)
}

fn refuse(message: &str) -> ApiError {
    ApiError::invalid("continue_final_message", message)
}

/// The prompt up to the end of the last message's text.
fn render_open(served: &Served, conversation: Conversation<'_>) -> Result<Prompt, ApiError> {
    let mut messages = conversation.messages.to_vec();
    // No text of a client can have it, so that it marks one place.
    let mark = format!("<{}>", uuid::Uuid::new_v4().simple());
    let end = messages.last_mut().and_then(end_of).ok_or_else(|| {
        refuse("continue_final_message needs a last message by the assistant with text")
    })?;
    end.push_str(&mark);
    let conversation = Conversation {
        messages: &messages,
        add_generation_prompt: false,
        ..conversation
    };
    // Where a template writes a message twice, the last time is the one that an answer follows.
    let prompt = render(served, &conversation)?.cut(&mark);
    prompt.ok_or_else(|| refuse("the chat template leaves the end of the last message out"))
}

/// The text at the end of an assistant's message.
fn end_of(message: &mut Value) -> Option<&mut String> {
    if message["role"] != "assistant" {
        return None;
    }
    match message.get_mut("content")? {
        Value::String(text) => Some(text),
        Value::Array(parts) => match parts.last_mut()?.get_mut("text")? {
            Value::String(text) => Some(text),
            _ => None,
        },
        _ => None,
    }
}
