//! `/v1/completions`.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::adaptation::adaptation;
use super::params::{generation_request, logprobs};
use super::speculation::Speculation;
use crate::api::answer::dispatch::answer;
use crate::api::body::Body;
use crate::api::config::MAX_PROMPTS;
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::api::wire::Wire;
use crate::text::Tokenizer;

/// Tokens generated when a request names no limit (OpenAI's default).
const DEFAULT_MAX_TOKENS: i64 = 16;

/// Text or token ids, one prompt or several.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings or token ids"
)]
pub enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

generation_request! {
    /// A completion request.
    CompletionRequest {
        prompt: Prompt,
        /// Return the prompt before the completion.
        echo: Option<bool>,
        suffix: Option<String>,
        best_of: Option<u64>,
        /// Report this many alternatives a token.
        logprobs: Option<u64>,
    }
}

/// Continues a text.
#[utoipa::path(post, path = "/v1/completions", tag = "openai", request_body = CompletionRequest,
    responses((status = 200, description = "A completion, or server-sent events with stream")))]
pub async fn create(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    Body(request): Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    let generation = prepare(&state, request, tenant, deadline)?;
    answer(&state, generation).await
}

/// Checks a request.
pub(in crate::api) fn prepare(
    state: &AppState,
    mut request: CompletionRequest,
    tenant: Tenant,
    deadline: Deadline,
) -> Result<Generation, ApiError> {
    let served = state.ready()?;
    let target = state.target(tenant, request.model.as_deref())?;
    if request
        .suffix
        .as_ref()
        .is_some_and(|suffix| !suffix.is_empty())
    {
        return Err(ApiError::invalid(
            "suffix",
            "suffix is not supported; leave it out",
        ));
    }
    if request
        .best_of
        .is_some_and(|best_of| best_of != request.n.unwrap_or(1))
    {
        return Err(ApiError::invalid(
            "best_of",
            "best_of is not supported; use n",
        ));
    }
    let num_logprobs = logprobs("logprobs", request.logprobs)?;
    request.max_tokens = request.max_tokens.or(Some(DEFAULT_MAX_TOKENS));
    let shared = request.shared();
    let mut params = shared.sampling(&served.tokenizer, num_logprobs, "max_tokens")?;
    let speculation = Speculation::new(&shared, served)?;
    let adaptation = adaptation(&shared, served)?;
    params.prompt_logprobs = logprobs("prompt_logprobs", request.prompt_logprobs)?;
    let echo = request.echo.unwrap_or(false);
    if echo && num_logprobs.is_some() && params.prompt_logprobs.is_none() {
        params.prompt_logprobs = num_logprobs;
    }
    let prompts = tokenize(&served.tokenizer, request.prompt)?;
    let echo = if echo {
        prompts
            .iter()
            .map(|ids| served.tokenizer.decode(ids, shared.skip_special))
            .collect()
    } else {
        Vec::new()
    };
    let question = prompts
        .first()
        .map_or_else(String::new, |ids| served.tokenizer.decode(ids, true));
    Ok(Generation {
        speculation,
        adaptation,
        prompts,
        media: None,
        params,
        stops: shared.stops()?,
        shared,
        echo,
        wire: Wire::Completions,
        question,
        target,
        source: Value::Null,
        tenant,
        deadline,
    })
}

fn tokenize(tokenizer: &Tokenizer, prompt: Prompt) -> Result<Vec<Vec<u32>>, ApiError> {
    let prompts = match prompt {
        Prompt::Text(text) => vec![tokenizer.encode(&text, true, true)?],
        Prompt::Texts(texts) => texts
            .iter()
            .take(MAX_PROMPTS + 1)
            .map(|text| tokenizer.encode(text, true, true))
            .collect::<Result<_, _>>()?,
        Prompt::Tokens(tokens) => vec![tokens],
        Prompt::TokenLists(lists) => lists,
    };
    if prompts.is_empty() || prompts.len() > MAX_PROMPTS {
        let message = format!("prompt takes 1 to {MAX_PROMPTS} prompts");
        return Err(ApiError::invalid("prompt", message));
    }
    Ok(prompts)
}
