//! `/v1/branches`: opening a session.

use std::time::{Duration, Instant};

use axum::extract::State;
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::session::{Session, Work};
use crate::api::body::{self, SizedBody};
use crate::api::causes::Causes;
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::openai::chat::{self, ChatRequest};
use crate::api::openai::completions::{self, CompletionRequest};
use crate::api::searching::policy::policy_of;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::engine::Capability;
use crate::reward::RewardContext;
use crate::search::{EnginePolicy, Tree};
use crate::work::Budget;

/// Seconds without a call after which a session ends.
const DEFAULT_LEASE: u64 = 300;
pub(in crate::api) const MAX_LEASE: u64 = 3600;
/// Fields of a request that mean nothing for a session.
pub(in crate::api) const REFUSED: [&str; 29] = [
    "search",
    "stream",
    "n",
    "n_cmpl",
    "best_of",
    "echo",
    "prompt_logprobs",
    "adaptation",
    "router_adaptation",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "guided_json_object",
    "grammar",
    "json_schema",
    "guided_decoding_backend",
    "guided_whitespace_pattern",
    "allowed_token_ids",
    "bad_words",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "include_reasoning",
    "thinking_token_budget",
    "reasoning",
];

/// Opens a session: the body of a chat or completion request, without `search`, `stream` or `n`.
#[utoipa::path(post, path = "/v1/branches", tag = "search", request_body = Object,
    responses((status = 200, description = "The session's id and its root")))]
pub(in crate::api) async fn open(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    SizedBody(mut body, num_bytes): SizedBody<serde_json::Map<String, Value>>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    // A session promises that its branches share what is computed.
    served.engine.demand(Capability::PrefixSharing)?;
    let lease = lease(&mut body)?;
    for field in REFUSED {
        if body.contains_key(field) {
            let message = format!("{field} cannot be used with branches; leave it out");
            return Err(ApiError::invalid(field, message));
        }
    }
    let is_chat = body.contains_key("messages");
    let body = Value::Object(body);
    let work = Causes {
        tenant,
        deadline,
        num_bytes,
    };
    let mut generation = if is_chat {
        let parse = move |_: &Budget| body::parse::<ChatRequest>(&body);
        let request = work.run(&state, "reading the body", parse).await?;
        chat::prepare_sized(&state, request, work).await?
    } else {
        let parse = move |_: &Budget| body::parse::<CompletionRequest>(&body);
        let request = work.run(&state, "reading the body", parse).await?;
        completions::prepare_sized(&state, request, work).await?
    };
    check(&generation)?;
    generation.params.hidden_state = served.rewards.value_head.is_some();
    let (question, wire) = (std::mem::take(&mut generation.question), generation.wire);
    let model = generation.target.name.clone();
    let reading = generation.shape.reading.clone();
    let policy = policy_of(served, generation, None, None);
    let context = RewardContext {
        question,
        prompt_token_ids: policy.prompt_token_ids.as_slice().into(),
        cache_salt: policy.cache_salt,
        ..state.reward_context(tenant, None)
    };
    let num_prompt_tokens = policy.prompt_token_ids.len();
    let mut account = state.branches().account(tenant)?;
    account.take(session_bytes(&policy, &context.question))?;
    let work = Work {
        policy,
        tree: Tree::new(),
        account,
    };
    let session = Session {
        context,
        wire,
        reading,
        model,
        work: tokio::sync::Mutex::new(work),
    };
    let now = Instant::now();
    let id = state.branches().open(tenant, session, lease, now)?;
    let (own, expiring) = (state.clone(), id.clone());
    tokio::spawn(async move { own.branches().expire(tenant, &expiring).await });
    Ok(Json(json!({
        "id": id, "object": "branches", "root": Tree::ROOT,
        "prompt_tokens": num_prompt_tokens, "lease_seconds": lease.as_secs(),
    })))
}

/// What a session cannot do.
fn check(generation: &Generation) -> Result<(), ApiError> {
    if generation.prompts.len() != 1 {
        return Err(ApiError::invalid("prompt", "a session has one prompt"));
    }
    if generation.params.max_tokens == 0 {
        let message = "a session needs max_tokens of at least 1";
        return Err(ApiError::invalid("max_tokens", message));
    }
    Ok(())
}

/// What a session holds before it has nodes.
fn session_bytes(policy: &EnginePolicy, question: &str) -> usize {
    // The prompt's are also in the context.
    let token_ids = 2 * policy.prompt_token_ids.len() + policy.prediction.len();
    let stops = policy.stops.iter().map(String::len);
    question.len() + policy.code_before.len() + token_ids * size_of::<u32>() + stops.sum::<usize>()
}

/// Takes the lease's length out of a body.
fn lease(body: &mut serde_json::Map<String, Value>) -> Result<Duration, ApiError> {
    let seconds = match body.remove("lease_seconds") {
        None => Some(DEFAULT_LEASE),
        Some(value) => value.as_u64(),
    };
    let seconds = seconds.filter(|seconds| (1..=MAX_LEASE).contains(seconds));
    let seconds = seconds.ok_or_else(|| {
        let message = format!("lease_seconds must be 1 to {MAX_LEASE}");
        ApiError::invalid("lease_seconds", message)
    })?;
    Ok(Duration::from_secs(seconds))
}
