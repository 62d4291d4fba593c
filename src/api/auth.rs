//! API keys.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConstantTimeEq};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::error::ApiError;
use super::state::AppState;

/// Where the traces are.
const TRACES: &str = "/v1/traces";

/// The tenant of a request: salts the prefix cache, so that nobody can probe another's prompts.
#[derive(Debug, Clone, Copy)]
pub struct Tenant(pub u64);

/// Whose traces a request may see and change; `None` for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceScope(pub Option<u64>);

impl Tenant {
    /// The prefix cache's salt: the key's own, and the client's on top.
    pub fn cache_salt(self, extra: Option<&str>) -> u64 {
        xxh3_64_with_seed(extra.unwrap_or_default().as_bytes(), self.0)
    }
}

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

/// Compares with every key, all of them always, in constant time each.
fn is_known(presented: &str, keys: &[String]) -> bool {
    let matches = keys.iter().fold(Choice::from(0), |found, key| {
        found | presented.as_bytes().ct_eq(key.as_bytes())
    });
    bool::from(matches)
}

pub(super) async fn require_key(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let config = state.config();
    let path = request.uri().path();
    let is_trace = path.starts_with(TRACES);
    let key = presented_key(request.headers()).unwrap_or_default();
    if is_known(key, &config.trace_keys) {
        if !is_trace {
            return ApiError::traces_only().into_response();
        }
        request.extensions_mut().insert(Tenant(0));
        request.extensions_mut().insert(TraceScope(None));
        return next.run(request).await;
    }
    // Where keys read traces, nobody reads them without one.
    let needs_no_key = config.api_keys.is_empty() && (!is_trace || config.trace_keys.is_empty());
    let is_open = needs_no_key
        || matches!(path, "/health" | "/ready")
        || (path == "/metrics" && !config.metrics_need_key)
        || request.method() == Method::OPTIONS;
    if !is_open && !is_known(key, &config.api_keys) {
        return ApiError::unauthorized().into_response();
    }
    let (tenant, scope) = if config.api_keys.is_empty() {
        (0, None)
    } else {
        let tenant = xxh3_64(key.as_bytes());
        (tenant, Some(tenant))
    };
    request.extensions_mut().insert(Tenant(tenant));
    request.extensions_mut().insert(TraceScope(scope));
    next.run(request).await
}
