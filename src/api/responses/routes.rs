//! The routes of stored responses.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::query::{self, Page, Pairs};
use super::{deliver, stored};
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;

/// One response.
#[utoipa::path(get, path = "/v1/responses/{id}", tag = "openai",
    params(("id" = String, Path),
        ("stream" = Option<bool>, Query, description = "the events of a background response that was created with stream"),
        ("starting_after" = Option<u64>, Query, description = "only events behind this sequence number"),
        ("include" = Option<Vec<String>>, Query)),
    responses((status = 200, description = "The response"), (status = 404, description = "No such response")))]
pub(in crate::api) async fn retrieve(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Result<Response, ApiError> {
    let record = stored::find(&state, tenant, deadline, &id).await?;
    query::check_include(&pairs)?;
    let streamed = query::stream(&pairs)?;
    let Some(starting_after) = streamed else {
        return Ok(Json(record.response).into_response());
    };
    match state.background().with_events(&id, tenant) {
        Some(running) => Ok(deliver::replayed(running, starting_after)),
        None => {
            let message = "stream: this response has no events (any more): only background \
                responses that were created with stream keep them, until some time after their end";
            Err(ApiError::invalid("stream", message))
        }
    }
}

/// Deletes a response; one that is being made is ended first.
#[utoipa::path(delete, path = "/v1/responses/{id}", tag = "openai", params(("id" = String, Path)),
    responses((status = 200, description = "Deleted"), (status = 404, description = "No such response")))]
pub(in crate::api) async fn delete(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if let Some(running) = state.background().find(&id, tenant) {
        running.cancel.cancel();
        deadline.limit(running.over()).await?;
    }
    stored::delete(&state, tenant, deadline, &id).await?;
    state.background().forget(&id, tenant);
    Ok(Json(
        json!({"id": id, "object": "response", "deleted": true}),
    ))
}

/// Ends a background response.
#[utoipa::path(post, path = "/v1/responses/{id}/cancel", tag = "openai", params(("id" = String, Path)),
    responses((status = 200, description = "The response as it ended"),
        (status = 400, description = "Not a background response"), (status = 404, description = "No such response")))]
pub(in crate::api) async fn cancel(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if let Some(running) = state.background().find(&id, tenant) {
        running.cancel.cancel();
        deadline.limit(running.over()).await?;
        return Ok(Json(running.response()));
    }
    let record = stored::find(&state, tenant, deadline, &id).await?;
    if record.response["background"] != true {
        let message = "only responses that were created with background: true can be cancelled";
        return Err(ApiError::bad_body(message));
    }
    // It is over: cancelling it again says how it ended.
    Ok(Json(record.response))
}

/// Lists the items that a response was asked with, those of its own request.
#[utoipa::path(get, path = "/v1/responses/{id}/input_items", tag = "openai",
    params(("id" = String, Path),
        ("limit" = Option<u64>, Query, description = "1 to 100, 20 by default"),
        ("order" = Option<String>, Query, description = "desc (the last one first) or asc"),
        ("after" = Option<String>, Query, description = "`last_id` of the list before"),
        ("before" = Option<String>, Query),
        ("include" = Option<Vec<String>>, Query)),
    responses((status = 200, description = "`data`, `has_more`, `first_id`, `last_id`"), (status = 404, description = "No such response")))]
pub(in crate::api) async fn input_items(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Result<Json<Value>, ApiError> {
    let record = stored::find(&state, tenant, deadline, &id).await?;
    query::check_include(&pairs)?;
    let page = Page::parse(&pairs)?;
    Ok(Json(listed(record.input, &page)?))
}

fn listed(mut items: Vec<Value>, page: &Page) -> Result<Value, ApiError> {
    if !page.is_ascending {
        items.reverse();
    }
    let place = |name: &str, id: &Option<String>| match id {
        None => Ok(None),
        Some(id) => {
            let found = items.iter().position(|item| item["id"] == id.as_str());
            found.map(Some).ok_or_else(|| {
                ApiError::invalid(name, format!("{name}: the response has no item {id}"))
            })
        }
    };
    let from = place("after", &page.after)?.map_or(0, |index| index + 1);
    let end = place("before", &page.before)?.unwrap_or(items.len());
    let all = items.get(from..end).unwrap_or_default();
    let data = &all[..page.limit.min(all.len())];
    let id = |item: Option<&Value>| item.map(|item| item["id"].clone());
    Ok(json!({
        "object": "list",
        "data": data,
        "first_id": id(data.first()),
        "last_id": id(data.last()),
        "has_more": data.len() < all.len(),
    }))
}
