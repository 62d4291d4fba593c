//! The page: a small application for browsers at `/`, built from `web/` into this binary
//! (`build.rs`). It talks to the same API as everybody else, so this file knows nothing of the rest
//! of the server.

use axum::Router;
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// No script or style but the page's own files, and no other host: whatever a model's answer says,
/// a browser that shows it loads and runs nothing of it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' data:; connect-src 'self'; font-src 'self'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

/// Where the page's files are, but for the page itself.
const ASSETS: &str = "/assets/";

struct File {
    path: &'static str,
    kind: &'static str,
    etag: &'static str,
    bytes: &'static [u8],
    /// Empty where the file is not packed.
    gzip: &'static [u8],
}

/// Empty where the page could not be built.
static FILES: &[File] = include!(concat!(env!("OUT_DIR"), "/page.rs"));

/// What is shown instead.
static PLAIN: File = File {
    path: "/",
    kind: "text/html; charset=utf-8",
    etag: "W/\"plain\"",
    bytes: include_bytes!("page.html"),
    gzip: &[],
};

/// Whether a path is the page's: browsers ask for those without a key.
pub(super) fn is_page(path: &str) -> bool {
    path == "/" || path.starts_with(ASSETS)
}

/// The page's routes.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let files = match FILES {
        [] => std::slice::from_ref(&PLAIN),
        files => files,
    };
    files.iter().fold(Router::new(), |router, file| {
        let handler = move |headers: HeaderMap| async move { answer(file, &headers) };
        router.route(file.path, get(handler))
    })
}

fn answer(file: &'static File, asked: &HeaderMap) -> Response {
    let is_packed = !file.gzip.is_empty() && names(asked, header::ACCEPT_ENCODING, "gzip");
    let mut response = if names(asked, header::IF_NONE_MATCH, file.etag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else if is_packed {
        ([(header::CONTENT_ENCODING, "gzip")], file.gzip).into_response()
    } else {
        file.bytes.into_response()
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, file.kind),
        (header::ETAG, file.etag),
        // A browser asks each time and mostly gets a 304: names of files do not change.
        (header::CACHE_CONTROL, "no-cache"),
        (header::VARY, "accept-encoding"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether a list in a header names something, and not with the quality 0.
fn names(headers: &HeaderMap, header: HeaderName, what: &str) -> bool {
    let values = headers.get_all(header).into_iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    let mut items = texts.flat_map(|text| text.split(','));
    items.any(|item| {
        let mut parts = item.split(';').map(str::trim);
        let is_named = parts.next() == Some(what);
        is_named && !parts.any(|part| matches!(part, "q=0" | "q=0.0"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_name_what_they_have_and_want() {
        for (text, is_named) in [
            ("gzip", true),
            ("deflate, gzip;q=0.5, br", true),
            ("gzip;q=0", false),
            ("x-gzip", false),
            ("", false),
        ] {
            let value = HeaderValue::from_static(text);
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, value)]);
            let found = names(&headers, header::ACCEPT_ENCODING, "gzip");
            assert_eq!(found, is_named, "{text}");
        }
    }

    #[test]
    fn the_pages_paths_are_no_others() {
        for path in ["/", "/assets/app.js"] {
            assert!(is_page(path), "{path}");
        }
        for path in ["", "/v1/models", "/assets", "/docs/", "/metrics"] {
            assert!(!is_page(path), "{path}");
        }
    }
}
