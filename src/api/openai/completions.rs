//! `/v1/completions`.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::adaptation::adaptation;
use super::code;
use super::field_rules::COMPLETIONS;
use super::fill::Filling;
use super::known_fields::check_others;
use super::params::{SharedParams, generation_request, logprobs, newer_limit};
use super::prompts::{Truncation, encode_prompt};
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

impl Prompt {
    fn count(&self) -> usize {
        match self {
            Self::Text(_) | Self::Tokens(_) => 1,
            Self::Texts(texts) => texts.len(),
            Self::TokenLists(lists) => lists.len(),
        }
    }
}

generation_request! {
    /// A completion request.
    CompletionRequest {
        prompt: Prompt,
        /// Return the prompt before the completion.
        echo: Option<bool>,
        /// The text behind the completion, for models that fill the middle of a text.
        suffix: Option<String>,
        /// Sample so many completions, and return the `n` likeliest by token.
        best_of: Option<u64>,
        /// Report this many alternatives a token.
        logprobs: Option<u64>,
        max_completion_tokens: Option<i64>,
        /// `code_interpreter` alone: the server runs the Python that the model writes.
        #[schema(value_type = Option<Vec<Object>>)]
        tools: Option<Vec<Value>>,
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
    check_others(COMPLETIONS, &request.others)?;
    let num_logprobs = logprobs("logprobs", request.logprobs)?;
    let limit = (request.max_tokens, request.max_completion_tokens);
    let (max_tokens, max_tokens_name) = newer_limit(limit.0, limit.1)?;
    request.max_tokens = max_tokens.or(Some(DEFAULT_MAX_TOKENS));
    let shared = SharedParams {
        best_of: best_of(&request)?,
        // None scores the prompt.
        allows_no_tokens: true,
        ..request.shared()
    };
    let mut params = shared.sampling(&served.tokenizer, num_logprobs, max_tokens_name)?;
    let speculation = Speculation::new(&shared, served, budget)?;
    let adaptation = adaptation(&shared, served)?;
    params.prompt_logprobs = logprobs("prompt_logprobs", request.prompt_logprobs)?;
    let echo = request.echo.unwrap_or(false);
    if echo && num_logprobs.is_some() && params.prompt_logprobs.is_none() {
        params.prompt_logprobs = num_logprobs;
    }
    let code = code::of_completion(request.tools.as_deref())?;
    let structured = request.structured().read()?;
    let shape = of_completion(served, &shared, structured, budget)?;
    let prompts = prompts(served, &request, &shared, budget)?;
    let decode = |ids: &Vec<u32>| served.tokenizer.decode(ids, shared.skip_special);
    let code = code.map(|spec| spec.behind(prompts.iter().map(decode)));
    let echo = match echo {
        true => prompts.iter().map(decode).collect(),
        false => Vec::new(),
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
        code: code::tool(served, code, tenant)?,
        echo,
        wire: Wire::Completions,
        question,
        target,
        source: Value::Null,
        tenant,
        deadline,
    })
}

/// How many completions are sampled, where those are more than are returned.
fn best_of(request: &CompletionRequest) -> Result<Option<u64>, ApiError> {
    let n = request.n.unwrap_or(1);
    match request.best_of {
        None => Ok(None),
        Some(best_of) if best_of < n.max(1) => {
            let message = format!("best_of must be at least n ({n}), not {best_of}");
            Err(ApiError::invalid("best_of", message))
        }
        Some(best_of) => Ok((best_of > n).then_some(best_of)),
    }
}

/// The prompts' ids; whether each fits the context is the engine's to say.
fn prompts(
    served: &Served,
    request: &CompletionRequest,
    shared: &SharedParams,
    budget: &Budget,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let add_special = shared.add_special_tokens.unwrap_or(true);
    let truncation = Truncation::new(shared, served)?;
    let suffix = request.suffix.as_deref();
    let filling = Filling::new(suffix, add_special, served, budget)?;
    if filling.is_some() && request.echo == Some(true) {
        let message = "echo cannot be combined with suffix: leave one of them out";
        return Err(ApiError::invalid("echo", message));
    }
    let count = request.prompt.count();
    if count == 0 || count > MAX_PROMPTS {
        let message = format!("prompt takes 1 to {MAX_PROMPTS} prompts");
        return Err(ApiError::invalid("prompt", message));
    }
    let at_prompt = |error: ApiError| ApiError {
        param: Some("prompt".to_owned()),
        ..error
    };
    let encode = |text: &String| {
        // A filling puts what is special in front of itself.
        let add_special = add_special && filling.is_none();
        encode_prompt(served, text, add_special, truncation, budget).map_err(at_prompt)
    };
    let take = |list: &Vec<u32>| {
        let mut list = list.clone();
        if let Some(truncation) = truncation {
            truncation.apply(&mut list);
        }
        check_length(served, &list).map_err(at_prompt)?;
        Ok(list)
    };
    let mut prompts: Vec<Vec<u32>> = match &request.prompt {
        Prompt::Text(text) => vec![encode(text)?],
        Prompt::Texts(texts) => texts.iter().map(encode).collect::<Result<_, _>>()?,
        Prompt::Tokens(tokens) => vec![take(tokens)?],
        Prompt::TokenLists(lists) => lists.iter().map(take).collect::<Result<_, ApiError>>()?,
    };
    if let Some(filling) = filling {
        for prompt in &mut prompts {
            *prompt = filling.around(prompt);
        }
    }
    Ok(prompts)
}

fn check_length(served: &Served, token_ids: &[u32]) -> Result<(), ApiError> {
    let (num_tokens, max_model_len) = (token_ids.len(), served.engine.config().max_model_len);
    if num_tokens > max_model_len {
        return Err(ApiError::from(EngineError::PromptTooLong {
            num_tokens,
            max_model_len,
        }));
    }
    Ok(())
}
