//! The chat request that a request for a response stands for.

use serde_json::{Map, Value, json};

use super::items::Item;
use super::messages::Conversation;
use super::request::{ResponsesRequest, refuse_if};
use super::tools;
use crate::api::body::parse;
use crate::api::error::ApiError;
use crate::api::openai::chat::ChatRequest;

/// What `reasoning` has here and not in chats.
const OWN_REASONING: [&str; 4] = ["summary", "generate_summary", "context", "mode"];

/// A request in the words of a chat.
pub(super) struct Translated {
    /// Every field but the messages.
    fields: Map<String, Value>,
    pub conversation: Conversation,
}

impl Translated {
    /// `items` are those of the whole conversation.
    pub fn new(request: &ResponsesRequest, items: &[Item]) -> Result<Self, ApiError> {
        let context = request.reasoning.as_ref().map(|it| &it["context"]);
        let drops_thoughts = context.is_some_and(|context| context == "current_turn");
        let instructions = request.instructions.as_deref();
        refuse_if(
            items.is_empty(),
            "input",
            "must be a text or have at least one item",
        )?;
        Ok(Self {
            fields: fields(request)?,
            conversation: Conversation::new(instructions, items, drops_thoughts)?,
        })
    }

    /// The chat request of a conversation.
    pub fn chat(&self, conversation: &Conversation) -> Result<ChatRequest, ApiError> {
        let mut body = self.fields.clone();
        let messages = conversation.messages.clone();
        body.insert("messages".to_owned(), messages.into());
        parse(&body.into())
    }
}

fn fields(request: &ResponsesRequest) -> Result<Map<String, Value>, ApiError> {
    let mut fields = request.passed_on();
    let mut set = |name: &str, value: Value| {
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    };
    set("model", json!(request.model));
    set("max_completion_tokens", json!(request.max_output_tokens));
    set("temperature", json!(request.temperature));
    set("top_p", json!(request.top_p));
    if request.includes_logprobs() {
        set("logprobs", true.into());
        set("top_logprobs", json!(request.top_logprobs));
    }
    let given = request.tools.as_deref().unwrap_or_default();
    if !given.is_empty() {
        set("tools", tools::tools(given, request.max_tool_calls)?.into());
        set("parallel_tool_calls", json!(request.parallel_tool_calls));
    }
    if let Some(choice) = request.tool_choice.as_ref().filter(|it| !it.is_null()) {
        let choice = tools::tool_choice(choice)?;
        // Without tools, these two mean the same.
        let is_void = given.is_empty() && (choice == "none" || choice == "auto");
        if !is_void {
            set("tool_choice", choice);
        }
    }
    if let Some(text) = request.text.as_ref().filter(|it| !it.is_null()) {
        let (format, verbosity) = tools::text(text)?;
        set("response_format", json!(format));
        set("verbosity", json!(verbosity));
    }
    if let Some(Value::Object(reasoning)) = &request.reasoning {
        let mut reasoning = reasoning.clone();
        reasoning.retain(|name, _| !OWN_REASONING.contains(&name.as_str()));
        set("reasoning", reasoning.into());
    }
    set("metadata", json!(request.metadata));
    set("store", json!(request.store));
    set("stream", json!(request.stream));
    set("user", json!(request.user));
    set("safety_identifier", json!(request.safety_identifier));
    set("prompt_cache_key", json!(request.prompt_cache_key));
    set(
        "prompt_cache_retention",
        json!(request.prompt_cache_retention),
    );
    set("service_tier", json!(request.service_tier));
    Ok(fields)
}
