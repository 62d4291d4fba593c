//! `/tokenize` and `/detokenize`, in vLLM's shapes.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::body::Body;
use super::error::ApiError;
use super::openai::messages::{check_messages, render};
use super::state::AppState;

/// Either a prompt or chat messages.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct TokenizeRequest {
    model: Option<String>,
    prompt: Option<String>,
    #[schema(value_type = Option<Vec<Object>>)]
    messages: Option<Vec<Value>>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
}

/// Token ids of a prompt or of rendered messages.
#[utoipa::path(post, path = "/tokenize", tag = "text", request_body = TokenizeRequest,
    responses((status = 200, description = "Token ids")))]
pub(super) async fn tokenize(
    State(state): State<AppState>,
    Body(request): Body<TokenizeRequest>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    state.check_model(request.model.as_deref())?;
    let tokens = match (&request.prompt, &request.messages) {
        (Some(prompt), None) => {
            served
                .tokenizer
                .encode(prompt, request.add_special_tokens.unwrap_or(true), true)?
        }
        (None, Some(messages)) => {
            check_messages(messages)?;
            let generation = request.add_generation_prompt.unwrap_or(true);
            let text = render(served, messages, None, generation, &Map::new())?;
            served.tokenizer.encode(&text, false, true)?
        }
        _ => {
            return Err(ApiError::invalid(
                "prompt",
                "give either prompt or messages",
            ));
        }
    };
    Ok(Json(json!({
        "count": tokens.len(),
        "max_model_len": served.engine.config().max_model_len,
        "tokens": tokens,
    })))
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
    Body(request): Body<DetokenizeRequest>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    state.check_model(request.model.as_deref())?;
    let vocab_size = served.tokenizer.vocab_size();
    if let Some(bad) = request.tokens.iter().find(|id| **id as usize >= vocab_size) {
        let message = format!("token id {bad} is outside the vocabulary of {vocab_size}");
        return Err(ApiError::invalid("tokens", message));
    }
    Ok(Json(
        json!({"prompt": served.tokenizer.decode(&request.tokens, false)}),
    ))
}
