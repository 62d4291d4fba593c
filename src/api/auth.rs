//! API keys.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use xxhash_rust::xxh3::xxh3_64;

use super::error::ApiError;
use super::state::AppState;
use super::tenant::{Tenant, TraceScope};

/// Where the traces are.
const TRACES: &str = "/v1/traces";

fn presented_key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    bearer
        .and_then(|value| {
            value
                .strip_prefix("Bearer ")
                .or(value.strip_prefix("bearer "))
        })
        .or_else(|| {
            headers
                .get("x-api-key")
                .and_then(|value| value.to_str().ok())
        })
}

pub(super) async fn require_key(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let config = state.config();
    let (api_keys, trace_keys) = (state.api_keys(), state.trace_keys());
    let path = request.uri().path();
    let is_trace = path.starts_with(TRACES);
    let key = presented_key(request.headers()).unwrap_or_default();
    if trace_keys.knows(key) {
        if !is_trace {
            return ApiError::traces_only().into_response();
        }
        request.extensions_mut().insert(Tenant(0));
        request.extensions_mut().insert(TraceScope(None));
        return next.run(request).await;
    }
    // Where keys read traces, nobody reads them without one.
    let needs_no_key = api_keys.is_empty() && (!is_trace || trace_keys.is_empty());
    let is_open = needs_no_key
        || matches!(path, "/health" | "/ready")
        || (path == "/metrics" && !config.metrics_need_key)
        || request.method() == Method::OPTIONS;
    if !is_open && !api_keys.knows(key) {
        return ApiError::unauthorized().into_response();
    }
    let (tenant, scope) = if api_keys.is_empty() {
        (0, None)
    } else {
        let tenant = xxh3_64(key.as_bytes());
        (tenant, Some(tenant))
    };
    request.extensions_mut().insert(Tenant(tenant));
    request.extensions_mut().insert(TraceScope(scope));
    next.run(request).await
}
