//! `/v1/completions`.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::adaptation::adaptation;
use super::messages::encode;
use super::params::{generation_request, logprobs};
use super::shape::of_completion;
use super::speculation::Speculation;
use crate::api::answer::dispatch::answer;
use crate::api::body::SizedBody;
use crate::api::causes::Causes;
use crate::api::config::MAX_PROMPTS;
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::presets;
use crate::api::served::Served;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::api::wire::Wire;
use crate::engine::EngineError;
use crate::work::Budget;

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
    SizedBody(request, num_bytes): SizedBody<CompletionRequest>,
) -> Result<Response, ApiError> {
    let work = Causes {
        tenant,
        deadline,
        num_bytes,
    };
    let generation = prepare_sized(&state, request, work).await?;
    answer(&state, generation).await
}

/// Checks a request where that delays nobody.
pub(in crate::api) async fn prepare_sized(
    state: &AppState,
    request: CompletionRequest,
    work: Causes,
) -> Result<Generation, ApiError> {
    let own = state.clone();
    let (tenant, deadline) = (work.tenant, work.deadline);
    let num_bytes = match request.has_grammar() {
        true => usize::MAX,
        false => work.num_bytes,
    };
    let work = Causes { num_bytes, ..work };
    let prepare = move |budget: &Budget| prepare(&own, request, tenant, deadline, budget);
    work.run(state, "reading the prompt", prepare).await
}

/// Checks a request.
fn prepare(
    state: &AppState,
    mut request: CompletionRequest,
    tenant: Tenant,
    deadline: Deadline,
    budget: &Budget,
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
    let shape = of_completion(served, request.structured().read()?, budget)?;
    let num_logprobs = logprobs("logprobs", request.logprobs)?;
    request.max_tokens = request.max_tokens.or(Some(DEFAULT_MAX_TOKENS));
    let shared = request.shared();
    let mut params = shared.sampling(&served.tokenizer, num_logprobs, "max_tokens")?;
    let speculation = Speculation::new(&shared, served, budget)?;
    let adaptation = adaptation(&shared, served)?;
    params.prompt_logprobs = logprobs("prompt_logprobs", request.prompt_logprobs)?;
    let echo = request.echo.unwrap_or(false);
    if echo && num_logprobs.is_some() && params.prompt_logprobs.is_none() {
        params.prompt_logprobs = num_logprobs;
    }
    let prompts = tokenize(served, request.prompt, budget)?;
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
        search: presets::requested(&shared)?,
        shared,
        shape,
        echo,
        wire: Wire::Completions,
        question,
        target,
        source: Value::Null,
        tenant,
        deadline,
    })
}

/// The prompts' ids; whether each fits the context is the engine's to say.
fn tokenize(served: &Served, prompt: Prompt, budget: &Budget) -> Result<Vec<Vec<u32>>, ApiError> {
    let context = served.engine.config().max_model_len;
    let at_prompt = |error: ApiError| ApiError {
        param: Some("prompt".to_owned()),
        ..error
    };
    let encode = |text: &String| encode(served, text, (true, true), budget).map_err(at_prompt);
    let (texts, lists) = match prompt {
        Prompt::Text(text) => (vec![text], Vec::new()),
        Prompt::Texts(texts) => (texts, Vec::new()),
        Prompt::Tokens(tokens) => (Vec::new(), vec![tokens]),
        Prompt::TokenLists(lists) => (Vec::new(), lists),
    };
    let count = texts.len() + lists.len();
    if count == 0 || count > MAX_PROMPTS {
        let message = format!("prompt takes 1 to {MAX_PROMPTS} prompts");
        return Err(ApiError::invalid("prompt", message));
    }
    if let Some(long) = lists.iter().find(|list| list.len() > context) {
        return Err(at_prompt(ApiError::from(EngineError::PromptTooLong {
            num_tokens: long.len(),
            max_model_len: context,
        })));
    }
    let mut prompts = texts.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
    prompts.extend(lists);
    Ok(prompts)
}
