//! The route.

use std::time::Instant;

use axum::Extension;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::answer::{self, EmbeddingResponse, Finish};
use super::embed::{Reading, embed, max_len, vector_len};
use super::request::{EmbeddingRequest, dimensions, truncation};
use super::target;
use crate::api::body::SizedBody;
use crate::api::causes::Causes;
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::encoding::ServedEncoder;
use crate::work::Budget;

fn embedder(state: &AppState) -> Option<&ServedEncoder> {
    state.encoders().embedder()
}

/// Vectors of texts.
#[utoipa::path(post, path = "/v1/embeddings", tag = "openai", request_body = EmbeddingRequest,
    responses((status = 200, description = "One vector a text", body = EmbeddingResponse)))]
pub(in crate::api) async fn create(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    SizedBody(request, num_bytes): SizedBody<EmbeddingRequest>,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    tracing::debug!(user = request.user, "embeddings");
    let target = target::find(&state, tenant, request.model.as_deref(), embedder)?;
    let num_texts = request.input.check()?;
    let finish = Finish {
        dimensions: dimensions(request.dimensions, vector_len(&target)?)?,
        normalise: request.normalize.unwrap_or(true),
        format: request.encoding_format.unwrap_or_default(),
    };
    let reading = Reading {
        add_special_tokens: request.add_special_tokens.unwrap_or(true),
        cut_to: truncation(request.truncate_prompt_tokens, max_len(&target))?,
    };
    let work = Causes {
        tenant,
        deadline,
        num_bytes,
    };
    let made = embed(&state, &target, request.input, reading, work).await?;
    let num_tokens = made.num_tokens;
    let model = target.name().to_owned();
    // The answer's size is the client's choice, too.
    let writing = Causes {
        num_bytes: made.vectors.iter().map(|vector| vector.len() * 4).sum(),
        ..work
    };
    let write = move |_: &Budget| {
        let response = answer::response(model, made.vectors, num_tokens, finish);
        serde_json::to_vec(&response).map_err(|error| ApiError::internal(error.to_string()))
    };
    let body = writing.run(&state, "writing the vectors", write).await?;
    state
        .metrics()
        .encoded("embeddings", num_texts, num_tokens, started.elapsed());
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}
