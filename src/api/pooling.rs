//! `/pooling`: the step scores of the served process reward model, in the shape of vLLM's pooling
//! API.

use axum::extract::State;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::body::Body;
use super::clock::unix_time;
use super::deadline::Deadline;
use super::error::ApiError;
use super::openai::messages;
use super::openai::params::OneOrMany;
use super::state::AppState;
use super::tenant::Tenant;
use crate::reward::ReadError;

/// Texts of one call.
const MAX_INPUTS: usize = 256;

/// What the process reward model reads.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolingRequest {
    pub model: Option<String>,
    /// A conversation that ends with the assistant's answer; its steps are found and written as the model wants them.
    #[schema(value_type = Option<Vec<Object>>)]
    pub messages: Option<Vec<Value>>,
    /// Or texts that carry the model's own step tags already.
    #[schema(value_type = Option<Object>)]
    pub input: Option<OneOrMany>,
    /// `float`.
    pub encoding_format: Option<String>,
}

/// Scores each step of an answer.
#[utoipa::path(post, path = "/pooling", tag = "search", request_body = PoolingRequest,
    responses((status = 200, description = "For each text the probabilities [wrong, right] of each step")))]
pub(super) async fn pool(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    Body(request): Body<PoolingRequest>,
) -> Result<Json<Value>, ApiError> {
    let served = state.ready()?;
    state.check_model(request.model.as_deref())?;
    let Some(prm) = &served.rewards.prm else {
        return Err(ApiError::invalid(
            "model",
            "this server has no process reward model: the operator must start it with --prm",
        ));
    };
    if request
        .encoding_format
        .as_deref()
        .is_some_and(|format| format != "float")
    {
        return Err(ApiError::invalid(
            "encoding_format",
            "encoding_format must be float",
        ));
    }
    let mut context = state.reward_context(tenant, None);
    let scored = match (&request.messages, request.input) {
        (Some(conversation), None) => {
            let (question, answer) = question_and_answer(conversation)?;
            context.question = question;
            let answers = [(answer.as_str(), true)];
            let scored = prm.score_answers(&answers, &context, deadline.instant());
            scored.await.map_err(|error| refused("messages", error))?
        }
        (None, Some(input)) => {
            let texts = input.into_vec();
            if texts.is_empty() || texts.len() > MAX_INPUTS {
                let message = format!("input takes 1 to {MAX_INPUTS} texts");
                return Err(ApiError::invalid("input", message));
            }
            let scored = prm.score_tagged(texts, &context, deadline.instant());
            scored.await.map_err(|error| refused("input", error))?
        }
        _ => {
            return Err(ApiError::invalid("input", "give either messages or input"));
        }
    };
    let num_tokens: usize = scored.iter().map(|scored| scored.num_tokens).sum();
    let data = scored.iter().enumerate().map(|(index, scored)| {
        let steps = scored.steps.iter().map(|score| json!([1.0 - score, score]));
        json!({"index": index, "object": "pooling", "data": steps.collect::<Vec<Value>>()})
    });
    Ok(Json(json!({
        "id": format!("pool-{}", uuid::Uuid::new_v4().simple()),
        "object": "list",
        "created": unix_time(),
        "model": state.model_name(),
        "data": data.collect::<Vec<Value>>(),
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens, "completion_tokens": 0},
    })))
}

/// What the process reward model could not read is at `param`.
pub(super) fn refused(param: &str, error: ReadError) -> ApiError {
    match error {
        ReadError::Deadline => ApiError::deadline(),
        ReadError::Work(error) => error.into(),
        ReadError::TooLong(message) | ReadError::Failed(message) => {
            ApiError::invalid(param, message)
        }
    }
}

/// The last question and the answer that ends a conversation.
fn question_and_answer(conversation: &[Value]) -> Result<(String, String), ApiError> {
    messages::check_messages(conversation)?;
    match conversation.split_last() {
        Some((last, before)) if last["role"] == "assistant" => Ok((
            messages::question(before),
            messages::text_of(&last["content"]),
        )),
        _ => Err(ApiError::invalid(
            "messages",
            "the last message must be the assistant's answer",
        )),
    }
}
