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
    let context = RewardContext {
        question: question(&request.messages),
        cache_salt: tenant.cache_salt(None),
        tenant: tenant.0,
        pool: state.work().clone(),
    };
    let rewards = request.reward.into_vec();
    let scorer = reward::build(&rewards, &served.rewards, &context, deadline.instant()).await;
    let scorer = scorer.map_err(|error| ApiError::reward("reward", error))?;
    let own = state.clone();
    let (messages, texts, taps) = (request.messages, request.candidates, scorer.taps());
    let read = move |budget: &Budget| read(&own, &messages, texts, taps, budget);
    let work = Causes {
        tenant,
        deadline,
        num_bytes,
    };
    let texts = work.run(&state, "reading the candidates", read).await?;
    let work = async {
        let mut candidates = Vec::with_capacity(texts.len());
        for text in texts {
            candidates.push(pass(served, text, taps, &context, deadline).await?);
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
        "usage": {"scorer_calls": scores.len()},
    })))
}

/// A text and, where a reward reads the model's pass over it, its ids after those of the prompt.
struct Text {
    text: String,
    token_ids: Vec<u32>,
    num_prompt: usize,
}

/// Tokenises the candidates after their prompt, where a reward needs that.
fn read(
    state: &AppState,
    messages: &[Value],
    candidates: Vec<String>,
    taps: Taps,
    budget: &Budget,
) -> Result<Vec<Text>, ApiError> {
    let served = state.ready()?;
    let prompt = match taps == Taps::default() {
        true => Vec::new(),
        false => {
            check_messages(messages)?;
            let variables = Map::new();
            let conversation = Conversation {
                escapes: state.config().escape_special_tokens,
                ..Conversation::of(messages, &variables)
            };
            render(served, &conversation)?.encode(served, budget)?
        }
    };
    let read = |text: String| {
        let mut token_ids = prompt.clone();
        if taps != Taps::default() {
            token_ids.extend(encode(served, &text, (false, false), budget)?);
        }
        Ok(Text {
            text,
            token_ids,
            num_prompt: prompt.len(),
        })
    };
    candidates.into_iter().map(read).collect()
}

/// A text with what the reward reads of the model's own pass over it.
async fn pass(
    served: &Served,
    text: Text,
    taps: Taps,
    context: &RewardContext,
    deadline: Deadline,
) -> Result<Candidate, ApiError> {
    let Text {
        text,
        mut token_ids,
        num_prompt,
    } = text;
    let mut candidate = Candidate {
        text,
        is_complete: true,
        num_tokens: token_ids.len() - num_prompt,
        ..Candidate::default()
    };
    // The state that the last token is sampled from is that of the token before it.
    let last = token_ids.pop().filter(|_| candidate.num_tokens > 0);
    let Some(last) = last else {
        return Ok(candidate);
    };
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
        token_ids.push(last);
        let params = SamplingParams {
            temperature: 0.0,
            max_tokens: 1,
            prompt_logprobs: Some(0),
            ..SamplingParams::default()
        };
        let request = GenerateRequest::new(token_ids, params);
        let logprobs = run(request).await?.logprobs;
        candidate.logprob = logprobs.iter().skip(num_prompt).sum();
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
