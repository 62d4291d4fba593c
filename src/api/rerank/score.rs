//! `/score`, in vLLM's shape. `/v1/score` is Ponder's own: rewards of answers.

use std::time::Instant;

use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::relevance::{Cut, Pairs, find, relevance};
use crate::api::body::SizedBody;
use crate::api::causes::Causes;
use crate::api::clock::unix_time;
use crate::api::deadline::Deadline;
use crate::api::embeddings::answer::TokenUsage;
use crate::api::embeddings::embed::max_len;
use crate::api::embeddings::request::truncation;
use crate::api::error::ApiError;
use crate::api::openai::params::OneOrMany;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;

/// Pairs of one request.
const MAX_PAIRS: usize = 1024;

/// Texts to compare: one with each of several, or pairs.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextScoreRequest {
    /// The cross-encoder or encoder where there is one, else the served model as a judge.
    pub model: Option<String>,
    /// One text, or as many as in `text_2`.
    #[serde(alias = "queries")]
    #[schema(value_type = Object)]
    pub text_1: OneOrMany,
    #[serde(alias = "documents")]
    #[schema(value_type = Object)]
    pub text_2: OneOrMany,
    /// Cut longer texts so that the model reads so many tokens, -1 for what it can; without it they
    /// are refused.
    #[schema(minimum = -1)]
    pub truncate_prompt_tokens: Option<i64>,
    /// Who the end user is, for the log.
    pub user: Option<String>,
}

/// One pair's score.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextScore {
    pub index: usize,
    /// `score`
    pub object: &'static str,
    pub score: f64,
}

/// Scores of pairs, in their order.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextScoreResponse {
    pub id: String,
    /// `list`
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub data: Vec<TextScore>,
    pub usage: TokenUsage,
}

/// Says how alike or relevant texts are, pair by pair (vLLM's shape; `/v1/score` has rewards of
/// answers).
#[utoipa::path(post, path = "/score", tag = "text", request_body = TextScoreRequest,
    responses((status = 200, description = "One score a pair", body = TextScoreResponse)))]
pub(in crate::api) async fn score_texts(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    SizedBody(request, num_bytes): SizedBody<TextScoreRequest>,
) -> Result<Json<TextScoreResponse>, ApiError> {
    let started = Instant::now();
    tracing::debug!(user = request.user, "score");
    let target = find(&state, tenant, request.model.as_deref())?;
    let (queries, documents) = (request.text_1.into_vec(), request.text_2.into_vec());
    let pairs = pairs(queries.len(), documents.len())?;
    let num_pairs = pairs.len();
    let cut_to = truncation(request.truncate_prompt_tokens, max_len(&target))?;
    let pairs = Pairs {
        queries,
        documents,
        pairs,
        params: ["text_1", "text_2"],
        cut: cut_to.map_or(Cut::Refuse, Cut::To),
        instruction: None,
    };
    let work = Causes {
        tenant,
        deadline,
        num_bytes,
    };
    let found = relevance(&state, &target, pairs, work).await?;
    let scores = found.scores.into_iter().enumerate();
    let data = scores.map(|(index, score)| TextScore {
        index,
        object: "score",
        score,
    });
    let elapsed = started.elapsed();
    state
        .metrics()
        .encoded("score", num_pairs, found.num_tokens, elapsed);
    Ok(Json(TextScoreResponse {
        id: format!("score-{}", uuid::Uuid::new_v4().simple()),
        object: "list",
        created: unix_time(),
        model: target.name().to_owned(),
        data: data.collect(),
        usage: TokenUsage::new(found.num_tokens),
    }))
}

/// Which texts are compared: one with each, or each with its own.
fn pairs(num_queries: usize, num_documents: usize) -> Result<Vec<(usize, usize)>, ApiError> {
    if num_queries == 0 {
        return Err(ApiError::invalid("text_1", "text_1 has no text"));
    }
    if num_documents == 0 || num_documents > MAX_PAIRS {
        let message = format!("text_2 takes 1 to {MAX_PAIRS} texts; this has {num_documents}");
        return Err(ApiError::invalid("text_2", message));
    }
    match num_queries {
        1 => Ok((0..num_documents).map(|index| (0, index)).collect()),
        _ if num_queries == num_documents => Ok((0..num_queries).map(|at| (at, at)).collect()),
        _ => {
            let message = format!(
                "text_1 has {num_queries} texts and text_2 {num_documents}: give text_1 one text, or as many as text_2"
            );
            Err(ApiError::invalid("text_1", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_is_compared_with_each_and_several_with_their_own() {
        assert_eq!(pairs(1, 3).unwrap(), [(0, 0), (0, 1), (0, 2)]);
        assert_eq!(pairs(2, 2).unwrap(), [(0, 0), (1, 1)]);
        for (queries, documents, param) in [
            (0, 1, "text_1"),
            (1, 0, "text_2"),
            (2, 3, "text_1"),
            (2, 1, "text_1"),
            (1, MAX_PAIRS + 1, "text_2"),
        ] {
            let error = pairs(queries, documents).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }
}
