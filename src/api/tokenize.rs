//! `/tokenize` and `/detokenize`, in vLLM's shapes.

use axum::extract::State;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::body::SizedBody;
use super::causes::Causes;
use super::config::MAX_TOKENIZED;
use super::deadline::Deadline;
use super::error::ApiError;
use super::openai::messages::{Conversation, check_messages, render};
use super::state::AppState;
use super::tenant::Tenant;
use crate::text::TokenizerError;
use crate::work::Budget;

/// Longest text of `/detokenize`.
const MAX_TEXT_BYTES: usize = 16 << 20;
/// Ids between two looks at the budget.
const DECODED_AT_ONCE: usize = 4096;

/// Either a prompt or chat messages.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct TokenizeRequest {
    model: Option<String>,
    prompt: Option<String>,
    #[schema(value_type = Option<Vec<Object>>)]
    messages: Option<Vec<Value>>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
    /// Tools that go with the messages.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Value>>,
    /// More variables for the chat template.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Map<String, Value>>,
}

/// Token ids of a prompt or of rendered messages.
#[utoipa::path(post, path = "/tokenize", tag = "text", request_body = TokenizeRequest,
    responses((status = 200, description = "Token ids")))]
pub(super) async fn tokenize(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    SizedBody(request, num_bytes): SizedBody<TokenizeRequest>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    state.check_model(request.model.as_deref())?;
    let work = Causes {
        tenant,
        deadline,
        num_bytes,
    };
    let own = state.clone();
    let encode = move |budget: &Budget| token_ids(&own, &request, budget);
    let tokens = work.run(&state, "tokenising", encode).await?;
    Ok(Json(json!({
        "count": tokens.len(),
        "max_model_len": served.engine.config().max_model_len,
        "tokens": tokens,
    })))
}

fn token_ids(
    state: &AppState,
    request: &TokenizeRequest,
    budget: &Budget,
) -> Result<Vec<u32>, ApiError> {
    let served = state.ready()?;
    let encoded = match (&request.prompt, &request.messages) {
        (Some(prompt), None) => {
            of_messages_only(request)?;
            let add_special = request.add_special_tokens.unwrap_or(true);
            let may_go_on = || budget.may_go_on();
            let tokenizer = &served.tokenizer;
            tokenizer.encode_within(prompt, add_special, true, MAX_TOKENIZED, &may_go_on)
        }
        (None, Some(messages)) => {
            check_messages(messages)?;
            let none = Map::new();
            let conversation = Conversation {
                messages,
                tools: request.tools.as_deref(),
                add_generation_prompt: request.add_generation_prompt.unwrap_or(true),
                variables: request.chat_template_kwargs.as_ref().unwrap_or(&none),
                escapes: state.config().escape_special_tokens,
            };
            let prompt = render(served, &conversation)?;
            prompt.encode_within(served, MAX_TOKENIZED, budget)
        }
        _ => {
            return Err(ApiError::invalid(
                "prompt",
                "give either prompt or messages",
            ));
        }
    };
    encoded.map_err(|error| match error {
        TokenizerError::TooLong { .. } => {
            let message = format!("this route answers with at most {MAX_TOKENIZED} tokens");
            ApiError::invalid("prompt", message)
        }
        other => other.into(),
    })
}

/// Fields that a prompt has no use for.
fn of_messages_only(request: &TokenizeRequest) -> Result<(), ApiError> {
    for (field, is_given) in [
        ("tools", request.tools.is_some()),
        (
            "chat_template_kwargs",
            request.chat_template_kwargs.is_some(),
        ),
    ] {
        if is_given {
            let message = format!("{field} goes with messages, not with a prompt");
            return Err(ApiError::invalid(field, message));
        }
    }
    Ok(())
}

#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

/// The text of token ids.
#[utoipa::path(post, path = "/detokenize", tag = "text", request_body = DetokenizeRequest,
    responses((status = 200, description = "Text")))]
pub(super) async fn detokenize(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    SizedBody(request, num_bytes): SizedBody<DetokenizeRequest>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    state.check_model(request.model.as_deref())?;
    let vocab_size = served.tokenizer.vocab_size();
    if let Some(bad) = request.tokens.iter().find(|id| **id as usize >= vocab_size) {
        let message = format!("token id {bad} is outside the vocabulary of {vocab_size}");
        return Err(ApiError::invalid("tokens", message));
    }
    let work = Causes {
        tenant,
        deadline,
        num_bytes,
    };
    let tokenizer = served.tokenizer.clone();
    let decode = move |budget: &Budget| {
        let mut bytes = Vec::new();
        for ids in request.tokens.chunks(DECODED_AT_ONCE) {
            budget.check().map_err(|_| ApiError::deadline())?;
            bytes.extend(ids.iter().flat_map(|id| tokenizer.token_bytes(*id)));
            if bytes.len() > MAX_TEXT_BYTES {
                let message = format!("the text would have more than {MAX_TEXT_BYTES} bytes");
                return Err(ApiError::invalid("tokens", message));
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = work.run(&state, "detokenising", decode).await?;
    Ok(Json(json!({"prompt": text})))
}
