//! `/v1/score`: rewards by themselves.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::body::SizedBody;
use super::causes::Causes;
use super::deadline::Deadline;
use super::error::ApiError;
use super::openai::messages::{Conversation, check_messages, encode, question, render};
use super::served::Served;
use super::state::AppState;
use super::tenant::Tenant;
use crate::engine::{GenerateRequest, PoolingParams, SamplingParams, StreamEvent, TokenLogprobs};
use crate::reward::{self, Candidate, RewardContext, RewardSpec, Scorer, Taps};
use crate::search::OneOrMany;
use crate::text::Tokenizer;
use crate::work::Budget;

/// Answers of one call.
pub(in crate::api) const MAX_CANDIDATES: usize = 256;

/// What to score, and by which reward.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScoreRequest {
    pub model: Option<String>,
    /// The conversation that the candidates answer.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    pub messages: Vec<Value>,
    /// Whole answers.
    pub candidates: Vec<String>,
    /// As in a search.
    #[schema(value_type = Object)]
    pub reward: OneOrMany<RewardSpec>,
}

/// Scores answers without searching.
#[utoipa::path(post, path = "/v1/score", tag = "search", request_body = ScoreRequest,
    responses((status = 200, description = "One score in 0..=1 a candidate")))]
pub(super) async fn score(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    SizedBody(request, num_bytes): SizedBody<ScoreRequest>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    state.check_model(request.model.as_deref())?;
    if request.candidates.is_empty() || request.candidates.len() > MAX_CANDIDATES {
        let message = format!("candidates takes 1 to {MAX_CANDIDATES} texts");
        return Err(ApiError::invalid("candidates", message));
    }
    let mut context = RewardContext {
        question: question(&request.messages),
        ..state.reward_context(tenant, None)
    };
    let rewards = request.reward.into_vec();
    let reads_tokens = rewards.iter().any(RewardSpec::reads_tokens);
    let own = state.clone();
    let (messages, texts) = (request.messages, request.candidates);
    let read = move |budget: &Budget| match reads_tokens {
        true => read(&own, &messages, texts, budget),
        false => Ok((Vec::new(), texts.into_iter().map(Text::unread).collect())),
    };
    let work = Causes {
        tenant,
        deadline,
        num_bytes,
    };
    let (prompt, texts) = work.run(&state, "reading the candidates", read).await?;
    context.prompt_token_ids = prompt.into();
    let scorer = reward::build(&rewards, &served.rewards, &context, deadline.instant()).await;
    let scorer = scorer.map_err(|error| ApiError::reward("reward", error))?;
    let work = async {
        let mut candidates = Vec::with_capacity(texts.len());
        for text in texts {
            candidates.push(pass(served, text, scorer.taps(), &context, deadline).await?);
        }
        let scores = scorer.score(&candidates, deadline.instant());
        scores.await.map_err(ApiError::from)
    };
    let scores = deadline.limit(work).await??;
    let data = scores.iter().enumerate();
    let data: Vec<Value> = data
        .map(|(index, score)| json!({"object": "score", "index": index, "score": score}))
        .collect();
    Ok(Json(json!({
        "object": "list",
        "model": state.model_name(),
        "data": data,
        "usage": {"scorer_calls": scores.len(), "scorer_tokens": context.tokens.total()},
    })))
}

/// A text and, where a reward reads tokens, its ids.
struct Text {
    text: String,
    token_ids: Vec<u32>,
}

impl Text {
    fn unread(text: String) -> Self {
        Self {
            text,
            token_ids: Vec::new(),
        }
    }
}

/// Tokenises the prompt, and each candidate by itself.
fn read(
    state: &AppState,
    messages: &[Value],
    candidates: Vec<String>,
    budget: &Budget,
) -> Result<(Vec<u32>, Vec<Text>), ApiError> {
    let served = state.ready()?;
    check_messages(messages)?;
    let variables = Map::new();
    let conversation = Conversation {
        escapes: state.config().escape_special_tokens,
        ..Conversation::of(messages, &variables)
    };
    let prompt = render(served, &conversation)?.encode(served, budget)?;
    let read = |text: String| {
        let token_ids = encode(served, &text, (false, false), budget)?;
        Ok(Text { text, token_ids })
    };
    let texts: Result<Vec<Text>, ApiError> = candidates.into_iter().map(read).collect();
    Ok((prompt, texts?))
}

/// The ids of a whole answer as the model would have written it: with the token that ends it.
fn ended(tokenizer: &Tokenizer, token_ids: &[u32]) -> Vec<u32> {
    let ends = tokenizer.end_of_generation_ids();
    let has_end = token_ids.last().is_some_and(|last| ends.contains(last));
    let end = tokenizer.eos_token_id().or_else(|| ends.first().copied());
    let end = end.filter(|_| !has_end);
    token_ids.iter().copied().chain(end).collect()
}

/// A text with what the reward reads of the model's own pass over it.
async fn pass(
    served: &Served,
    text: Text,
    taps: Taps,
    context: &RewardContext,
    deadline: Deadline,
) -> Result<Candidate, ApiError> {
    let Text { text, token_ids } = text;
    let mut candidate = Candidate {
        text,
        is_complete: true,
        num_tokens: token_ids.len(),
        token_ids: ended(&served.tokenizer, &token_ids).into(),
        ..Candidate::default()
    };
    // The state that the last token is sampled from is that of the token before it.
    let Some((last, before)) = token_ids.split_last() else {
        return Ok(candidate);
    };
    let prompt = context.prompt_token_ids.as_ref();
    let mut token_ids = [prompt, before].concat();
    let run = |request: GenerateRequest| {
        run(
            served,
            GenerateRequest {
                tenant: context.tenant,
                cache_salt: context.cache_salt,
                deadline: deadline.instant(),
                ..request
            },
        )
    };
    if taps.hidden_state {
        let pooling = PoolingParams {
            positions: vec![token_ids.len() - 1],
            hidden_state: true,
            ..PoolingParams::default()
        };
        let request = GenerateRequest::pooling(token_ids.clone(), pooling);
        let state = run(request).await?.hidden_state;
        candidate.hidden_state = state.map(Arc::from);
    }
    if taps.logprobs {
        token_ids.push(*last);
        let params = SamplingParams {
            temperature: 0.0,
            max_tokens: 1,
            prompt_logprobs: Some(0),
            ..SamplingParams::default()
        };
        let request = GenerateRequest::new(token_ids, params);
        let logprobs = run(request).await?.logprobs;
        candidate.logprob = logprobs.iter().skip(prompt.len()).sum();
    }
    Ok(candidate)
}

#[derive(Default)]
struct Pass {
    hidden_state: Option<Vec<f32>>,
    /// Of each prompt token.
    logprobs: Vec<f64>,
}

async fn run(served: &Served, request: GenerateRequest) -> Result<Pass, ApiError> {
    let mut stream = served.engine.submit(request)?;
    let mut pass = Pass::default();
    while let Some(event) = stream.recv().await {
        match event {
            StreamEvent::PromptDone {
                prompt_logprobs: Some(logprobs),
                ..
            } => {
                let logprob = |token: &Option<TokenLogprobs>| {
                    token.as_ref().map_or(0.0, |token| f64::from(token.logprob))
                };
                pass.logprobs = logprobs.iter().map(logprob).collect();
            }
            StreamEvent::Pooled { hidden_state, .. } => pass.hidden_state = hidden_state,
            StreamEvent::Error(error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(pass)
}
