//! Handlers' way to the store, and to where its work is done.

use std::sync::Arc;

use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::trace::{StoreError, TraceStore};

/// The store, or an answer that says how to have one.
pub(in crate::api) fn store(state: &AppState) -> Result<&TraceStore, ApiError> {
    let traces = state.traces().ok_or_else(ApiError::no_trace_store)?;
    Ok(&traces.store)
}

/// Everything that reads the disk, unpacks records or makes rows goes through here: none of it runs on a thread that
/// others wait for. A job is short (a page, a trace, some rows); what takes longer comes back for its next turn.
pub(super) async fn blocking<T: Send + 'static>(
    _tenant: Tenant,
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|error| ApiError::internal(error.to_string()))
}

/// Reads the store. The job may ask whether anybody still waits for it.
pub(in crate::api) async fn read<T: Send + 'static>(
    state: &AppState,
    tenant: Tenant,
    job: impl FnOnce(&TraceStore, &dyn Fn() -> bool) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let store = store(state)?.clone();
    // Gone with this future: when the client left, or the deadline passed.
    let waiting = Arc::new(());
    let waits = Arc::downgrade(&waiting);
    let done = blocking(tenant, move || job(&store, &|| waits.strong_count() > 0)).await?;
    drop(waiting);
    Ok(done?)
}
