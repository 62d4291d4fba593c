//! `/v1/rerank`, `/rerank` (Jina, vLLM) and `/v2/rerank` (Cohere).

use std::time::Instant;

use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::relevance::{Cut, Pairs, find, relevance};
use crate::api::body::SizedBody;
use crate::api::causes::Causes;
use crate::api::deadline::Deadline;
use crate::api::embeddings::answer::TokenUsage;
use crate::api::embeddings::embed::max_len;
use crate::api::embeddings::request::truncation;
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;

/// Documents of one request.
const MAX_DOCUMENTS: usize = 1024;

/// A text, as itself or in an object.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a string or an object with a string `text`"
)]
pub enum DocumentInput {
    Text(String),
    Object { text: String },
}

impl DocumentInput {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { text } => text,
        }
    }
}

/// What to rank, and by what.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RerankRequest {
    /// The cross-encoder or encoder where there is one, else the served model as a judge.
    pub model: Option<String>,
    pub query: DocumentInput,
    #[schema(min_items = 1, max_items = 1024)]
    pub documents: Vec<DocumentInput>,
    /// Return so many of the best; all without it.
    #[schema(minimum = 1)]
    pub top_n: Option<u64>,
    /// Return the documents' texts too: by default on `/v1/rerank` and `/rerank`, not on
    /// `/v2/rerank`.
    pub return_documents: Option<bool>,
    /// The model reads so many tokens of a document, or of a query and a document where it reads
    /// both together; what it can without this. What is longer loses its end.
    #[schema(minimum = 1)]
    pub max_tokens_per_doc: Option<u64>,
    /// The same under vLLM's name, -1 for what the model can.
    #[schema(minimum = -1)]
    pub truncate_prompt_tokens: Option<i64>,
    /// What makes a document relevant, for a judge.
    pub instruction: Option<String>,
    /// Who the end user is, for the log.
    pub user: Option<String>,
}

/// A document's text.
#[derive(Debug, Serialize, ToSchema)]
pub struct RankedText {
    pub text: String,
}

/// One document's score.
#[derive(Debug, Serialize, ToSchema)]
pub struct RerankResult {
    /// Its place in the request.
    pub index: usize,
    /// A cross-encoder's probability, a judge's, or a cosine.
    pub relevance_score: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<RankedText>,
}

/// Documents, the most relevant one first.
#[derive(Debug, Serialize, ToSchema)]
pub struct RerankResponse {
    pub id: String,
    pub model: String,
    pub results: Vec<RerankResult>,
    pub usage: TokenUsage,
}

/// Ranks documents by how well they answer a query.
#[utoipa::path(post, path = "/v1/rerank", tag = "text", request_body = RerankRequest,
    responses((status = 200, description = "The most relevant first", body = RerankResponse)))]
pub(in crate::api) async fn rerank(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    SizedBody(request, num_bytes): SizedBody<RerankRequest>,
) -> Result<Json<RerankResponse>, ApiError> {
    let work = Causes {
        tenant,
        deadline,
        num_bytes,
    };
    answer(&state, request, true, work).await
}

/// `/v1/rerank` under vLLM's and Jina's other name.
#[utoipa::path(post, path = "/rerank", tag = "text", request_body = RerankRequest,
    responses((status = 200, description = "The most relevant first", body = RerankResponse)))]
pub(in crate::api) async fn rerank_unversioned(
    state: State<AppState>,
    tenant: Extension<Tenant>,
    deadline: Deadline,
    body: SizedBody<RerankRequest>,
) -> Result<Json<RerankResponse>, ApiError> {
    rerank(state, tenant, deadline, body).await
}

/// `/v1/rerank` as Cohere has it: without the documents' texts.
#[utoipa::path(post, path = "/v2/rerank", tag = "text", request_body = RerankRequest,
    responses((status = 200, description = "The most relevant first", body = RerankResponse)))]
pub(in crate::api) async fn rerank_v2(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    SizedBody(request, num_bytes): SizedBody<RerankRequest>,
) -> Result<Json<RerankResponse>, ApiError> {
    let work = Causes {
        tenant,
        deadline,
        num_bytes,
    };
    answer(&state, request, false, work).await
}

/// At least 1, if it is there.
fn at_least_one(param: &str, value: Option<u64>) -> Result<Option<usize>, ApiError> {
    match value {
        None => Ok(None),
        Some(0) => Err(ApiError::invalid(
            param,
            format!("{param} must be at least 1"),
        )),
        Some(value) => Ok(Some(usize::try_from(value).unwrap_or(usize::MAX))),
    }
}

async fn answer(
    state: &AppState,
    request: RerankRequest,
    returns_documents: bool,
    work: Causes,
) -> Result<Json<RerankResponse>, ApiError> {
    let started = Instant::now();
    tracing::debug!(user = request.user, "rerank");
    let target = find(state, work.tenant, request.model.as_deref())?;
    let num_documents = request.documents.len();
    if num_documents == 0 || num_documents > MAX_DOCUMENTS {
        let message =
            format!("documents takes 1 to {MAX_DOCUMENTS} texts; this has {num_documents}");
        return Err(ApiError::invalid("documents", message));
    }
    let top_n = at_least_one("top_n", request.top_n)?.unwrap_or(usize::MAX);
    let most = max_len(&target);
    let cut_to = truncation(request.truncate_prompt_tokens, most)?.unwrap_or(most);
    let of_document = at_least_one("max_tokens_per_doc", request.max_tokens_per_doc)?;
    let query = request.query.into_text();
    if query.is_empty() {
        return Err(ApiError::invalid("query", "query is empty"));
    }
    let documents = request.documents.into_iter();
    let documents: Vec<String> = documents.map(DocumentInput::into_text).collect();
    let returned = request.return_documents.unwrap_or(returns_documents);
    let mut texts = returned.then(|| documents.clone());
    let pairs = Pairs {
        queries: vec![query],
        pairs: (0..num_documents).map(|index| (0, index)).collect(),
        documents,
        params: ["query", "documents"],
        cut: Cut::To(cut_to.min(of_document.unwrap_or(usize::MAX))),
        instruction: request.instruction,
    };
    let found = relevance(state, &target, pairs, work).await?;
    let mut ranked: Vec<(usize, f64)> = found.scores.into_iter().enumerate().collect();
    // Of equals the first one of the request comes first.
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(top_n);
    let results = ranked.into_iter().map(|(index, relevance_score)| {
        let text = texts
            .as_mut()
            .map(|texts| std::mem::take(&mut texts[index]));
        RerankResult {
            index,
            relevance_score,
            document: text.map(|text| RankedText { text }),
        }
    });
    state
        .metrics()
        .encoded("rerank", num_documents, found.num_tokens, started.elapsed());
    Ok(Json(RerankResponse {
        id: format!("rerank-{}", uuid::Uuid::new_v4().simple()),
        model: target.name().to_owned(),
        results: results.collect(),
        usage: TokenUsage::new(found.num_tokens),
    }))
}
