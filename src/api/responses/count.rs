//! `POST /v1/responses/input_tokens`: how long a request's prompt is.

use axum::extract::State;
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::prepare::prepare;
use super::request::ResponsesRequest;
use crate::api::body::SizedBody;
use crate::api::causes::Causes;
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;

/// Counts the tokens that a request for a response begins with.
#[utoipa::path(post, path = "/v1/responses/input_tokens", tag = "openai", request_body = ResponsesRequest,
    responses((status = 200, description = "`input_tokens`")))]
pub(in crate::api) async fn count(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    SizedBody(request, num_bytes): SizedBody<ResponsesRequest>,
) -> Result<Json<Value>, ApiError> {
    let work = Causes {
        tenant,
        deadline,
        num_bytes,
    };
    let prepared = prepare(&state, request, "", work).await?;
    let num_tokens: usize = prepared.generation.prompts.iter().map(Vec::len).sum();
    Ok(Json(
        json!({"object": "response.input_tokens", "input_tokens": num_tokens}),
    ))
}
