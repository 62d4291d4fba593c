//! API keys.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::page::is_page;
use super::state::AppState;
use super::tenant::{KeyHolder, Tenant, TraceScope};

/// Where the traces are.
const TRACES: &str = "/v1/traces";

/// Headers that carry a key alone: of Anthropic's clients and of Azure's.
const KEY_HEADERS: [&str; 2] = ["x-api-key", "api-key"];

/// The key that a request shows: `Authorization: Bearer KEY`, whatever the scheme's case, or one of
/// [`KEY_HEADERS`].
fn presented_key(headers: &HeaderMap) -> Option<&str> {
    let authorization = headers.get(header::AUTHORIZATION);
    let bearer = authorization.and_then(|value| bearer_key(value.to_str().ok()?));
    bearer.or_else(|| {
        let mut values = KEY_HEADERS.iter().filter_map(|name| headers.get(*name));
        values.find_map(|value| value.to_str().ok())
    })
}

/// The key behind the scheme, which is case-insensitive (RFC 9110).
fn bearer_key(value: &str) -> Option<&str> {
    let (scheme, key) = value.trim().split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| key.trim_start())
}

/// Whether nobody needs a key for it, whatever the flags.
pub(super) fn needs_no_key(path: &str) -> bool {
    matches!(path, "/health" | "/ready")
}

/// Answered to everybody, whatever the server is busy with: they cost nothing and read no body.
pub(super) fn is_probe(path: &str) -> bool {
    matches!(path, "/health" | "/ready" | "/metrics")
}

/// Refuses unknown keys before anything of the body is read, and says whose request it is. A
/// browser's preflight request does not come here: CORS answers it, where it is on.
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
    let is_trace_key = trace_keys.knows(key);
    if is_trace_key && !is_trace {
        return ApiError::traces_only().into_response();
    }
    let is_known = is_trace_key || api_keys.knows(key);
    // Where keys read traces, nobody reads them without one.
    let is_without_keys = api_keys.is_empty() && (!is_trace || trace_keys.is_empty());
    // A browser asks for the page before anybody could give it a key.
    let is_open = is_without_keys
        || needs_no_key(path)
        || (config.ui && is_page(path))
        || (path == "/metrics" && !config.metrics_need_key);
    if !is_open && !is_known {
        return ApiError::unauthorized().into_response();
    }
    let holder = is_known.then(|| Tenant::of_key(key));
    let (tenant, scope) = match holder {
        Some(tenant) if !is_trace_key => (tenant, Some(tenant.0)),
        None if !api_keys.is_empty() => (Tenant::EVERYBODY, Some(Tenant::EVERYBODY.0)),
        _ => (Tenant::EVERYBODY, None),
    };
    let extensions = request.extensions_mut();
    extensions.insert(tenant);
    extensions.insert(TraceScope(scope));
    extensions.insert(KeyHolder(holder.map(|tenant| tenant.0)));
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_any_of_their_headers() {
        let key = |name: &'static str, value: &str| {
            let headers = HeaderMap::from_iter([(
                axum::http::HeaderName::from_static(name),
                value.parse().unwrap(),
            )]);
            presented_key(&headers).map(str::to_owned)
        };
        for value in [
            "Bearer k",
            "bearer k",
            "BEARER k",
            "bEaReR   k",
            " Bearer k ",
        ] {
            assert_eq!(key("authorization", value).as_deref(), Some("k"), "{value}");
        }
        for value in ["Basic k", "k", "Bearer", "Bearerk", "Bear er k"] {
            assert_eq!(key("authorization", value), None, "{value}");
        }
        assert_eq!(key("x-api-key", "k").as_deref(), Some("k"));
        assert_eq!(key("api-key", "k").as_deref(), Some("k"));
    }
}
