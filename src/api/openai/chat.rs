//! `/v1/chat/completions`.

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::adaptation::adaptation;
use super::images;
use super::params::{count, generation_request};
use super::speculation::Speculation;
use crate::api::auth::Tenant;
use crate::api::body::Body;
use crate::api::config::MAX_LOGPROBS;
use crate::api::error::ApiError;
use crate::api::generation::{self, Delta, Generation, Wire};
use crate::api::state::{AppState, Served};
use crate::engine::TokenLogprobs;
use crate::text::Tokenizer;

generation_request! {
    /// A chat request.
    ChatRequest {
        #[schema(value_type = Vec<Object>)]
        messages: Vec<Value>,
        max_completion_tokens: Option<i64>,
        logprobs: Option<bool>,
        top_logprobs: Option<u64>,
        #[schema(value_type = Option<Vec<Object>>)]
        tools: Option<Vec<Value>>,
        #[schema(value_type = Option<Object>)]
        tool_choice: Option<Value>,
        #[schema(value_type = Option<Object>)]
        response_format: Option<Value>,
        add_generation_prompt: Option<bool>,
        /// More variables for the chat template.
        #[schema(value_type = Option<Object>)]
        chat_template_kwargs: Option<Map<String, Value>>,
    }
}

/// Answers a conversation.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "openai", request_body = ChatRequest,
    responses((status = 200, description = "A completion, or server-sent events with stream")))]
pub async fn create(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    headers: HeaderMap,
    Body(request): Body<ChatRequest>,
) -> Result<Response, ApiError> {
    let generation = prepare(&state, request, tenant, &headers)?;
    generation::answer(&state, generation).await
}

/// Checks a request.
pub(in crate::api) fn prepare(
    state: &AppState,
    mut request: ChatRequest,
    tenant: Tenant,
    headers: &HeaderMap,
) -> Result<Generation, ApiError> {
    let served = state.ready()?;
    let target = state.target(request.model.as_deref())?;
    let media = images::take(&mut request.messages, served.engine.as_ref())?;
    check_messages(&request.messages)?;
    check_format(&request)?;
    let max_tokens_name = if request.max_completion_tokens.is_some() {
        request.max_tokens = request.max_completion_tokens;
        "max_completion_tokens"
    } else {
        "max_tokens"
    };
    let top_logprobs = count("top_logprobs", request.top_logprobs, 0, MAX_LOGPROBS)?;
    let wants_logprobs = request.logprobs.unwrap_or(false);
    if request.top_logprobs.is_some() && !wants_logprobs {
        return Err(ApiError::invalid(
            "top_logprobs",
            "top_logprobs needs logprobs: true",
        ));
    }
    let shared = request.shared();
    let mut params = shared.sampling(
        &served.tokenizer,
        wants_logprobs.then_some(top_logprobs),
        max_tokens_name,
    )?;
    let speculation = Speculation::new(&shared, served)?;
    let adaptation = adaptation(&shared, served)?;
    params.prompt_logprobs = match request.prompt_logprobs {
        Some(_) => Some(count(
            "prompt_logprobs",
            request.prompt_logprobs,
            0,
            MAX_LOGPROBS,
        )?),
        None => None,
    };
    let tools = match &request.tool_choice {
        Some(Value::String(choice)) if choice == "none" => None,
        _ => request.tools.as_deref(),
    };
    let prompt = render(
        served,
        &request.messages,
        tools,
        request.add_generation_prompt.unwrap_or(true),
        &request.chat_template_kwargs.unwrap_or_default(),
    )?;
    let question = question(&request.messages);
    let mut source = json!({"messages": request.messages});
    if let Some(tools) = request.tools {
        source["tools"] = tools.into();
    }
    // The template writes the model's own BOS where it belongs.
    let prompt_token_ids = served.tokenizer.encode(&prompt, false, true)?;
    Ok(Generation {
        speculation,
        adaptation,
        prompts: vec![prompt_token_ids],
        media,
        params,
        stops: shared.stops()?,
        shared,
        echo: Vec::new(),
        wire: Wire::Chat,
        question,
        target,
        source,
        tenant,
        deadline: generation::deadline(state, headers)?,
    })
}

/// What the last user message says.
pub(crate) fn question(messages: &[Value]) -> String {
    let last = messages
        .iter()
        .rev()
        .find(|message| message["role"] == "user");
    last.map_or_else(String::new, |message| text_of(&message["content"]))
}

/// The text of a message's content.
pub(crate) fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts
            .iter()
            .filter_map(|part| part["text"].as_str())
            .collect(),
        _ => String::new(),
    }
}

/// Messages must be objects with a role and text.
pub(crate) fn check_messages(messages: &[Value]) -> Result<(), ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "messages must have at least one message",
        ));
    }
    for (index, message) in messages.iter().enumerate() {
        let invalid = |part: &str, message: &str| {
            let param = format!("messages[{index}]{part}");
            Err(ApiError::invalid(&param, format!("{param} {message}")))
        };
        if !message.is_object() {
            return invalid("", "must be an object");
        }
        if !message["role"].is_string() {
            return invalid(".role", "must be a string");
        }
        match &message["content"] {
            Value::String(_) | Value::Null => {}
            Value::Array(parts) => {
                if parts
                    .iter()
                    .any(|part| part["type"] != "text" || !part["text"].is_string())
                {
                    return invalid(
                        ".content",
                        "may hold only text parts: this model reads no other",
                    );
                }
            }
            _ => return invalid(".content", "must be a string or an array of text parts"),
        }
    }
    Ok(())
}

fn check_format(request: &ChatRequest) -> Result<(), ApiError> {
    match request
        .response_format
        .as_ref()
        .map(|format| &format["type"])
    {
        None | Some(Value::Null) => {}
        Some(Value::String(kind)) if kind == "text" => {}
        Some(kind) => {
            let message = format!("response_format {kind} is not available in this build");
            return Err(ApiError::invalid("response_format", message));
        }
    }
    match &request.tool_choice {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(choice)) if matches!(choice.as_str(), "none" | "auto") => Ok(()),
        Some(choice) => {
            let message = format!("tool_choice {choice} is not available in this build");
            Err(ApiError::invalid("tool_choice", message))
        }
    }
}

/// The prompt of a conversation.
pub(crate) fn render(
    served: &Served,
    messages: &[Value],
    tools: Option<&[Value]>,
    add_generation_prompt: bool,
    variables: &Map<String, Value>,
) -> Result<String, ApiError> {
    let Some(template) = &served.chat_template else {
        let message = "this model has no chat template: use /v1/completions, or start the server \
            with --chat-template";
        return Err(ApiError::invalid("messages", message));
    };
    Ok(template.render(messages, tools, add_generation_prompt, variables)?)
}

fn token_json(tokenizer: &Tokenizer, token_id: u32, logprob: f32) -> Map<String, Value> {
    let mut entry = Map::new();
    entry.insert("token".to_owned(), tokenizer.token_text(token_id).into());
    entry.insert("logprob".to_owned(), logprob.into());
    entry.insert("bytes".to_owned(), tokenizer.token_bytes(token_id).into());
    entry
}

/// OpenAI's `logprobs` object of some tokens.
pub(crate) fn logprobs_json(tokenizer: &Tokenizer, tokens: &[TokenLogprobs]) -> Value {
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            let mut entry = token_json(tokenizer, token.token_id, token.logprob);
            let top: Vec<Value> = token
                .top
                .iter()
                .map(|(id, logprob)| token_json(tokenizer, *id, *logprob).into())
                .collect();
            entry.insert("top_logprobs".to_owned(), top.into());
            entry.into()
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// A choice of a whole answer.
pub(crate) fn choice_json(index: usize, delta: &Delta, logprobs: Value) -> Value {
    json!({
        "index": index,
        "message": {"role": "assistant", "content": delta.text, "refusal": null},
        "logprobs": logprobs,
        "finish_reason": delta.finish_reason,
    })
}

/// A choice of a chunk; the first of each choice carries the role.
pub(crate) fn chunk_json(index: usize, delta: &Delta, is_first: bool, logprobs: Value) -> Value {
    let mut message = Map::new();
    if is_first {
        message.insert("role".to_owned(), "assistant".into());
    }
    if is_first || !delta.text.is_empty() {
        message.insert("content".to_owned(), delta.text.clone().into());
    }
    json!({
        "index": index,
        "delta": message,
        "logprobs": logprobs,
        "finish_reason": delta.finish_reason,
    })
}
