//! `/v1/traces`: what was searched and answered, for people and for trainers.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::access::{read, store};
use super::query::{Pairs, TraceQuery};
use crate::api::body::Body;
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::api::tenant::TraceScope;
use crate::trace::{Exporter, Format, OutcomeUpdate};

/// The oracle's word on a trace.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OutcomeRequest {
    /// Whether the chosen answer is right, 0 to 1.
    outcome: Option<f64>,
    /// `{"node": …, "outcome": …}` of single answers, by the node with which they end.
    #[schema(value_type = Option<Vec<Object>>)]
    leaves: Option<Value>,
    /// What the answer should have been.
    correction: Option<String>,
}

/// Lists traces without their trees, the newest first.
#[utoipa::path(get, path = "/v1/traces", tag = "traces",
    params(
        ("limit" = Option<u64>, Query, description = "1 to 1000, 20 by default"),
        ("order" = Option<String>, Query, description = "desc (by latest write) or asc"),
        ("after" = Option<String>, Query, description = "`next` of the list before"),
        ("model" = Option<String>, Query), ("strategy" = Option<String>, Query),
        ("tag" = Option<String>, Query, description = "may be given several times: all must be there"),
        ("min_value" = Option<f64>, Query), ("min_outcome" = Option<f64>, Query),
        ("has_outcome" = Option<bool>, Query),
        ("created_from" = Option<u64>, Query, description = "Unix seconds"),
        ("created_before" = Option<u64>, Query, description = "Unix seconds"),
    ),
    responses((status = 200, description = "`data`, `has_more`, `next`")))]
pub(in crate::api) async fn list(
    State(state): State<AppState>,
    Extension(scope): Extension<TraceScope>,
    deadline: Deadline,
    pairs: Pairs,
) -> Result<Json<Value>, ApiError> {
    let query = TraceQuery::parse(&pairs, scope, &["limit", "order", "after"])?;
    let limit = query.list_limit()?;
    let after = query.after.map(|cursor| cursor.seq);
    let (filter, order) = (query.filter, query.order);
    let found = read(&state, move |store| {
        store.list(&filter, order, after, limit + 1)
    });
    let mut found = deadline.limit(found).await??;
    let has_more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().map(|last| last.seq.to_string());
    Ok(Json(json!({
        "object": "list",
        "data": found,
        "has_more": has_more,
        "next": next.filter(|_| has_more),
    })))
}

/// One trace: its tree, or its rows in another format.
#[utoipa::path(get, path = "/v1/traces/{id}", tag = "traces",
    params(("id" = String, Path), ("format" = Option<String>, Query,
        description = "tree, sft, step_values, preferences, linearised or groups")),
    responses((status = 200, description = "The trace, or `data` with its rows"), (status = 404, description = "No such trace")))]
pub(in crate::api) async fn retrieve(
    State(state): State<AppState>,
    Extension(scope): Extension<TraceScope>,
    deadline: Deadline,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Result<Json<Value>, ApiError> {
    let allowed = ["format", "min_margin", "level", "max_wrong_branches"];
    let query = TraceQuery::parse(&pairs, scope, &allowed)?;
    let record = read(&state, move |store| store.get(&id, scope.0)?.record());
    let record = deadline.limit(record).await??;
    if query.format == Format::Tree {
        return Ok(Json(json!(record)));
    }
    let rows = Exporter::new(query.format, query.options).rows(&record);
    Ok(Json(json!({"object": "list", "data": rows})))
}

/// Deletes a trace.
#[utoipa::path(delete, path = "/v1/traces/{id}", tag = "traces", params(("id" = String, Path)),
    responses((status = 204, description = "Deleted"), (status = 404, description = "No such trace")))]
pub(in crate::api) async fn delete(
    State(state): State<AppState>,
    Extension(scope): Extension<TraceScope>,
    deadline: Deadline,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let deleted = store(&state)?.delete(&id, scope.0);
    deadline.limit(deleted).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Says how right a trace's answers are; the values of its steps follow from that (ReST-MCTS*).
#[utoipa::path(post, path = "/v1/traces/{id}/outcome", tag = "traces", params(("id" = String, Path)),
    request_body = OutcomeRequest,
    responses((status = 200, description = "The trace's revision and its nodes' process rewards"),
        (status = 400, description = "Not an outcome"), (status = 404, description = "No such trace")))]
pub(in crate::api) async fn outcome(
    State(state): State<AppState>,
    Extension(scope): Extension<TraceScope>,
    deadline: Deadline,
    Path(id): Path<String>,
    Body(request): Body<OutcomeRequest>,
) -> Result<Json<Value>, ApiError> {
    let leaves = match request.leaves {
        None | Some(Value::Null) => Vec::new(),
        Some(leaves) => serde_json::from_value(leaves).map_err(|error| {
            let message = format!("leaves takes objects with node and outcome: {error}");
            ApiError::invalid("leaves", message)
        })?,
    };
    let update = OutcomeUpdate {
        outcome: request.outcome,
        leaves,
        correction: request.correction,
    };
    // Once it is on its way to the store it is written, whoever still waits.
    let written = store(&state)?.set_outcome(&id, scope.0, update);
    let record = deadline.limit(written).await??;
    let nodes =
        record.nodes.iter().enumerate().map(
            |(id, node)| json!({"node": id, "outcome": node.outcome, "process": node.process}),
        );
    Ok(Json(json!({
        "id": record.id,
        "revision": record.revision,
        "outcome": record.chosen_outcome(),
        "nodes": nodes.collect::<Vec<_>>(),
    })))
}
