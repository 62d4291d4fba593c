//! `X-Request-Id`: every response has one, so that clients and logs can name it.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

/// The header, of requests and of responses.
pub(super) const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that a client may choose.
pub(super) const MAX_ID_CHARS: usize = 128;

/// Whether a client's text can be an id: it goes into headers and logs.
pub(super) fn is_id(text: &str) -> bool {
    (1..=MAX_ID_CHARS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Gives the response the client's id, or a new one where the client sent none that can be one.
pub(super) async fn tell(request: Request, next: Next) -> Response {
    let own = request.headers().get(HEADER);
    let own = own.filter(|value| value.to_str().is_ok_and(is_id)).cloned();
    let mut response = next.run(request).await;
    let id = own.or_else(|| {
        let id = format!("req_{}", uuid::Uuid::new_v4().simple());
        HeaderValue::try_from(id).ok()
    });
    if let Some(id) = id {
        response.headers_mut().insert(HEADER, id);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_and_plain() {
        for id in ["a", "req_1", "3f2a-…".trim_end_matches('…'), "a/b:c=d"] {
            assert!(is_id(id), "{id:?}");
        }
        let long = "x".repeat(MAX_ID_CHARS + 1);
        for text in ["", " ", "a b", "a\n", "é", long.as_str()] {
            assert!(!is_id(text), "{text:?}");
        }
    }
}
