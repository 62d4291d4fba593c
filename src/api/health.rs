//! Liveness, readiness, version.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::error::ApiError;
use super::state::AppState;

/// The process answers, and its engine goes on.
#[utoipa::path(get, path = "/health", tag = "operations",
    responses((status = 200, description = "Alive"), (status = 503, description = "The engine has failed, or stands still with work to do")))]
pub(super) async fn health(State(state): State<AppState>) -> (StatusCode, Json<Value>) {
    if !state.encoders().is_healthy() {
        let body =
            json!({"status": "failed", "message": "an encoder has failed; restart the server"});
        return (StatusCode::SERVICE_UNAVAILABLE, Json(body));
    }
    let Some(served) = state.served() else {
        return (StatusCode::OK, Json(json!({"status": "ok"})));
    };
    let engine = &served.engine;
    if !engine.is_healthy() {
        let body =
            json!({"status": "failed", "message": "the engine has failed; restart the server"});
        return (StatusCode::SERVICE_UNAVAILABLE, Json(body));
    }
    let Some(still) = engine.stalled_for() else {
        return (StatusCode::OK, Json(json!({"status": "ok"})));
    };
    let stats = engine.stats();
    let body = json!({
        "status": "stalled",
        "message": "the engine has made no progress though it has work",
        "seconds_without_progress": still.as_secs(),
        "num_requests_running": stats.num_requests_running,
        "num_requests_waiting": stats.num_requests_waiting,
        "num_used_blocks": stats.num_used_blocks,
        "num_blocks": stats.num_blocks,
    });
    (StatusCode::SERVICE_UNAVAILABLE, Json(body))
}

/// The model is loaded and warm, and the server is not draining.
#[utoipa::path(get, path = "/ready", tag = "operations",
    responses((status = 200, description = "Ready"), (status = 503, description = "Loading, draining or failed")))]
pub(super) async fn ready(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    state.check_serving()?;
    if !state.encoders().are_alone {
        state.ready()?;
    }
    Ok(Json(json!({"status": "ready"})))
}

/// The server's version.
#[utoipa::path(get, path = "/version", tag = "operations", responses((status = 200, description = "Version")))]
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
