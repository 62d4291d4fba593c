//! Handlers' way to the store, and to where its work is done.

use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::trace::{StoreError, TraceStore};
use crate::work::{Budget, WorkPool};

/// The store, or an answer that says how to have one.
pub(in crate::api) fn store(state: &AppState) -> Result<&TraceStore, ApiError> {
    let traces = state.traces().ok_or_else(ApiError::no_trace_store)?;
    Ok(&traces.store)
}

/// Everything that reads the disk, unpacks records or makes rows goes through here: none of it runs on a thread that
/// others wait for. A job is short (a page, a trace, some rows); what takes longer comes back for its next turn.
pub(super) async fn blocking<T: Send + 'static>(
    pool: &WorkPool,
    tenant: Tenant,
    job: impl FnOnce(&Budget) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let done = pool.run("reading traces", tenant.0, None, |budget| Ok(job(budget)));
    Ok(done.await?)
}

/// Reads the store. The job may ask whether anybody still waits for it.
pub(in crate::api) async fn read<T: Send + 'static>(
    state: &AppState,
    tenant: Tenant,
    job: impl FnOnce(&TraceStore, &dyn Fn() -> bool) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let store = store(state)?.clone();
    let job = move |budget: &Budget| job(&store, &|| !budget.is_abandoned());
    Ok(blocking(state.work(), tenant, job).await??)
}
