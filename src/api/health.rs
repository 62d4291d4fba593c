//! Liveness, readiness, version.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::error::ApiError;
use super::state::AppState;

/// The process answers.
#[utoipa::path(get, path = "/health", tag = "operations", responses((status = 200, description = "Alive")))]
pub(super) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// The model is loaded and warm, and the server is not draining.
#[utoipa::path(get, path = "/ready", tag = "operations",
    responses((status = 200, description = "Ready"), (status = 503, description = "Loading, draining or failed")))]
pub(super) async fn ready(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    state.ready()?;
    Ok(Json(json!({"status": "ready"})))
}

/// The server's version.
#[utoipa::path(get, path = "/version", tag = "operations", responses((status = 200, description = "Version")))]
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
