//! Other spellings of routes that clients use: llama.cpp serves OpenAI's routes without `/v1` too,
//! and some clients end a path with a slash.

use axum::extract::Request;
use axum::http::Uri;

const PREFIX: &str = "/v1";
/// Routes that are served without the prefix as well.
const BARE: [&str; 5] = [
    "/chat/completions",
    "/completions",
    "/models",
    "/embeddings",
    "/responses",
];

/// The request under the route's own path.
pub(super) fn rewrite(mut request: Request) -> Request {
    if let Some(uri) = canonical(request.uri()) {
        *request.uri_mut() = uri;
    }
    request
}

/// The URI that is meant, where it is another one.
fn canonical(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    let trimmed = path.strip_suffix('/').unwrap_or(path);
    let is_under = |route: &str| {
        let rest = trimmed.strip_prefix(route);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let prefix = match () {
        () if BARE.iter().any(|route| is_under(route)) => PREFIX,
        () if is_under(PREFIX) && trimmed != path => "",
        () => return None,
    };
    let query = uri
        .query()
        .map_or(String::new(), |query| format!("?{query}"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{prefix}{trimmed}{query}").parse().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_get_their_prefix_and_lose_their_last_slash() {
        for (from, to) in [
            ("/chat/completions", Some("/v1/chat/completions")),
            ("/chat/completions/", Some("/v1/chat/completions")),
            (
                "/v1/chat/completions/?a=b",
                Some("/v1/chat/completions?a=b"),
            ),
            ("/models/org/name", Some("/v1/models/org/name")),
            ("/models?x=%2F", Some("/v1/models?x=%2F")),
            (
                "http://host/completions",
                Some("http://host/v1/completions"),
            ),
            ("/v1/chat/completions", None),
            ("/completions_", None),
            ("/docs/", None),
            ("/", None),
            ("*", None),
        ] {
            let found = canonical(&from.parse().unwrap()).map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), to, "{from}");
        }
    }
}
