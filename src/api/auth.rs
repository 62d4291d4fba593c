//! API keys.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConstantTimeEq};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::error::ApiError;
use super::state::AppState;

/// The tenant of a request: salts the prefix cache, so that nobody can probe another's prompts.
#[derive(Debug, Clone, Copy)]
pub struct Tenant(pub u64);

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
    let is_open = config.api_keys.is_empty()
        || matches!(path, "/health" | "/ready")
        || (path == "/metrics" && !config.metrics_need_key)
        || request.method() == Method::OPTIONS;
    let key = presented_key(request.headers()).unwrap_or_default();
    if !is_open && !is_known(key, &config.api_keys) {
        return ApiError::unauthorized().into_response();
    }
    let tenant = if config.api_keys.is_empty() {
        0
    } else {
        xxh3_64(key.as_bytes())
    };
    request.extensions_mut().insert(Tenant(tenant));
    next.run(request).await
}
