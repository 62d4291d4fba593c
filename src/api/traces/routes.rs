//! `/v1/traces`: what was searched and answered, for people and for trainers.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::access::{read, store};
use super::leaves::Leaves;
use super::query::{Pairs, TraceQuery};
use crate::api::body::Body;
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::api::tenant::{Tenant, TraceScope};
use crate::trace::{Exporter, Format, Made, OutcomeUpdate, StoreError, TraceRecord};

/// Rows that are answered at once, in bytes; the stream gives as many as there are.
const MAX_ROWS_BYTES: usize = 64 << 20;
/// How often an outcome is taken again because its trace was written by somebody else meanwhile.
const MAX_REVISIONS: usize = 8;

/// The oracle's word on a trace.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OutcomeRequest {
    /// Whether the chosen answer is right, 0 to 1.
    outcome: Option<f64>,
    /// `{"node": …, "outcome": …}` of single answers, by the node with which they end.
    #[schema(value_type = Option<Vec<Object>>)]
    leaves: Option<Leaves>,
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
    responses((status = 200, description = "`data`, `has_more`, `next`"),
        (status = 410, description = "The cursor is of another store")))]
pub(in crate::api) async fn list(
    State(state): State<AppState>,
    Extension(scope): Extension<TraceScope>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    pairs: Pairs,
) -> Result<Json<Value>, ApiError> {
    let query = TraceQuery::parse(&pairs, scope, &["limit", "order", "after"])?;
    let limit = query.list_limit()?;
    let after = query.after.map(|cursor| cursor.seq);
    let (filter, order) = (query.filter, query.order);
    let found = read(&state, tenant, move |store, is_wanted| {
        let largest = store.largest_seq()?;
        let found = store.list_while(&filter, order, after, limit + 1, is_wanted)?;
        Ok((found, largest))
    });
    let (found, largest) = deadline.limit(found).await??;
    if let Some(after) = after.filter(|after| *after > largest) {
        return Err(ApiError::unknown_cursor("after", after, largest));
    }
    let mut traces = found.traces;
    let has_more = traces.len() > limit;
    traces.truncate(limit);
    let next = traces.last().map(|last| last.seq.to_string());
    let mut list = json!({
        "object": "list",
        "data": traces,
        "has_more": has_more,
        "next": next.filter(|_| has_more),
    });
    if !found.damaged.is_empty() {
        list["damaged"] = json!(found.damaged);
    }
    Ok(Json(list))
}

/// One trace: its tree, or its rows in another format.
#[utoipa::path(get, path = "/v1/traces/{id}", tag = "traces",
    params(("id" = String, Path), ("format" = Option<String>, Query,
        description = "tree, sft, step_values, preferences, linearised or groups")),
    responses((status = 200, description = "The trace, or `data` with its rows"), (status = 404, description = "No such trace")))]
pub(in crate::api) async fn retrieve(
    State(state): State<AppState>,
    Extension(scope): Extension<TraceScope>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Result<Response, ApiError> {
    let allowed = ["format", "min_margin", "level", "max_wrong_branches"];
    let query = TraceQuery::parse(&pairs, scope, &allowed)?;
    let body = read(&state, tenant, move |store, is_wanted| {
        let record = store.get(&id, scope.0)?.record()?;
        Ok(written(record, query, is_wanted))
    });
    let body = deadline.limit(body).await???;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// A trace as the JSON of an answer: its record, or all its rows in `data`.
fn written(
    record: TraceRecord,
    query: TraceQuery,
    is_wanted: &dyn Fn() -> bool,
) -> Result<Vec<u8>, ApiError> {
    let failed = |error: serde_json::Error| ApiError::internal(error.to_string());
    if query.format == Format::Tree {
        return serde_json::to_vec(&record).map_err(failed);
    }
    let mut exporter = Exporter::new(query.format, query.options);
    let mut pending = exporter.begin(record);
    let mut body = br#"{"object":"list","data":["#.to_vec();
    let mut num_rows = 0;
    loop {
        match exporter.next(&mut pending) {
            Made::Row(row) => {
                if num_rows > 0 {
                    body.push(b',');
                }
                serde_json::to_writer(&mut body, &row).map_err(failed)?;
                num_rows += 1;
            }
            Made::LeftOut => {}
            Made::End => break,
        }
        if body.len() > MAX_ROWS_BYTES {
            let message = format!(
                "the rows of this trace are more than {MAX_ROWS_BYTES} bytes: read them from /v1/traces/stream"
            );
            return Err(ApiError::invalid("format", message));
        }
        if !is_wanted() {
            return Err(ApiError::deadline());
        }
    }
    body.extend_from_slice(b"]}");
    Ok(body)
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
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    Path(id): Path<String>,
    Body(request): Body<OutcomeRequest>,
) -> Result<Response, ApiError> {
    let leaves = request.leaves.map_or(Ok(Vec::new()), |leaves| leaves.0);
    let update = OutcomeUpdate {
        outcome: request.outcome,
        leaves: leaves.map_err(|message| ApiError::invalid("leaves", message))?,
        correction: request.correction,
    };
    let body = deadline.limit(revise(&state, tenant, scope, id, update));
    let body = body.await??;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Writes a revision with an outcome, and says what it is. The trace is unpacked and packed where that keeps nobody
/// waiting; once it is on its way to the store it is written, whoever still waits.
async fn revise(
    state: &AppState,
    tenant: Tenant,
    scope: TraceScope,
    id: String,
    update: OutcomeUpdate,
) -> Result<Vec<u8>, ApiError> {
    let (store, update) = (store(state)?, Arc::new(update));
    for _ in 0..MAX_REVISIONS {
        let (id, update) = (id.clone(), Arc::clone(&update));
        let prepared = read(state, tenant, move |store, _| {
            let (revision, record) = store.prepare_outcome(&id, scope.0, &update)?;
            Ok((revision, revised(&record)))
        });
        let (revision, body) = prepared.await?;
        match store.revise(revision).await {
            // Somebody else wrote it meanwhile: on top of that, then.
            Err(StoreError::Changed(_)) => {}
            Ok(()) => return Ok(body),
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Changed(id).into())
}

fn revised(record: &TraceRecord) -> Vec<u8> {
    let nodes =
        record.nodes.iter().enumerate().map(
            |(id, node)| json!({"node": id, "outcome": node.outcome, "process": node.process}),
        );
    let body = json!({
        "id": record.id,
        "revision": record.revision,
        "outcome": record.chosen_outcome(),
        "nodes": nodes.collect::<Vec<_>>(),
    });
    body.to_string().into_bytes()
}
