//! Handlers' way to the store.

use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::trace::{StoreError, TraceStore};

/// The store, or an answer that says how to have one.
pub(in crate::api) fn store(state: &AppState) -> Result<&TraceStore, ApiError> {
    let traces = state.traces().ok_or_else(ApiError::no_trace_store)?;
    Ok(&traces.store)
}

/// Reads the disk where that may take its time.
pub(in crate::api) async fn read<T: Send + 'static>(
    state: &AppState,
    job: impl FnOnce(&TraceStore) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let store = store(state)?.clone();
    let done = tokio::task::spawn_blocking(move || job(&store)).await;
    let done = done.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(done?)
}
