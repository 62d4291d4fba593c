//! Responses on their way into the store and out of it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::causes::Causes;
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::api::traces::access;
use crate::api::wire::responses::failed_object;
use crate::trace::{PackedResponse, StoreError, TraceStore};
use crate::work::Budget;

/// How long a response may wait for its commit.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// What to do about a server that keeps nothing.
const NO_STORE: &str = "this server keeps no responses: start it with --trace-db FILE, and without \
    --redact-traces";

/// A response and the items that it was asked with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub response: Value,
    pub input: Vec<Value>,
}

#[derive(Serialize)]
struct Packed<'r> {
    response: &'r Value,
    input: &'r [Value],
}

/// The server's store, if it can keep responses.
pub(super) fn store(state: &AppState) -> Option<&TraceStore> {
    let store = &state.traces()?.store;
    store.keeps_texts().then_some(store)
}

/// An error about a field that needs a store.
pub(super) fn no_store(param: &str) -> ApiError {
    ApiError::invalid(param, format!("{param}: {NO_STORE}"))
}

/// Keeps one response.
#[derive(Clone)]
pub(super) struct Keeper {
    pub state: AppState,
    pub tenant: Tenant,
    pub input: Arc<Vec<Value>>,
    /// Of the request.
    pub num_bytes: usize,
}

impl Keeper {
    /// Writes the response as it is now, in the place of what was written before.
    pub async fn keep(&self, response: &Value) -> Result<(), ApiError> {
        let store = store(&self.state).ok_or_else(|| no_store("store"))?;
        let (input, response) = (Arc::clone(&self.input), response.clone());
        let texts = response["output"].as_array().map_or(0, Vec::len);
        let work = Causes {
            tenant: self.tenant,
            deadline: Deadline::after(COMMIT_TIMEOUT),
            // An item has thousands of tokens at most, and mostly much less.
            num_bytes: self.num_bytes + texts * 4096,
        };
        let pack = move |_: &Budget| {
            let id = response["id"].as_str().unwrap_or_default();
            let created = response["created_at"].as_u64().unwrap_or_default();
            let packed = Packed {
                response: &response,
                input: &input,
            };
            Ok(PackedResponse::of(id, created, &packed)?)
        };
        let row = work.run(&self.state, "packing the response", pack).await?;
        let put = store.put_response(row, self.tenant.0);
        match tokio::time::timeout(COMMIT_TIMEOUT, put).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(ApiError::unavailable("the disk is too slow")),
        }
    }

    /// Keeps a finished response. One that could not be kept says so: that is no reason to fail it.
    pub async fn finish(&self, response: &mut Value) {
        if let Err(error) = self.keep(response).await {
            response["store"] = false.into();
            if let Some(traces) = self.state.traces() {
                traces.warn(&error.message);
            }
        }
    }
}

/// An owner's response.
pub(super) async fn find(
    state: &AppState,
    tenant: Tenant,
    deadline: Deadline,
    id: &str,
) -> Result<Record, ApiError> {
    if store(state).is_none() {
        return Err(ApiError::no_response(id));
    }
    // Before the store is read: what is not running any more is there as it ended.
    let running = state.background().find(id, tenant);
    let asked = id.to_owned();
    let read = access::read(state, tenant, move |store, _| {
        Ok(read(store, tenant, &asked).map(|(record, _)| record))
    });
    let mut record = deadline.limit(read).await???;
    record.response = match running {
        Some(running) => running.response(),
        None => settled(record.response),
    };
    Ok(record)
}

/// A response that nobody is working on.
fn settled(response: Value) -> Value {
    match response["status"].as_str() {
        Some("queued" | "in_progress") => {
            let error = ApiError::internal("the server stopped before the response was there");
            failed_object(response, &error)
        }
        _ => response,
    }
}

/// An owner's response and how long its JSON is. Blocks on the disk.
pub(super) fn read(
    store: &TraceStore,
    tenant: Tenant,
    id: &str,
) -> Result<(Record, usize), ApiError> {
    let json = store.response(id, tenant.0).map_err(|error| match error {
        StoreError::NotFound(id) => ApiError::no_response(&id),
        other => other.into(),
    })?;
    let record = serde_json::from_slice(&json);
    let record: Record = record.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok((record, json.len()))
}

/// Deletes an owner's response.
pub(super) async fn delete(
    state: &AppState,
    tenant: Tenant,
    deadline: Deadline,
    id: &str,
) -> Result<(), ApiError> {
    let store = store(state).ok_or_else(|| ApiError::no_response(id))?;
    let deleted = deadline.limit(store.delete_response(id, tenant.0)).await?;
    deleted.map_err(|error| match error {
        StoreError::NotFound(id) => ApiError::no_response(&id),
        other => other.into(),
    })
}
