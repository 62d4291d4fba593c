//! Requests to every route of the OpenAPI document: whatever a client sends, it gets an answer in
//! time and none that says the server is broken.
//!
//! An input is up to eight requests, the later ones about what the earlier ones made. Each begins
//! with a letter for its route, in the order of the document, and one for its headers. Then follows
//! a body, or the query of a URL where a route takes no body.

#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ponder_fuzz::{files, mutate, parts, server, tell, words::Words};
use serde_json::Value;
use tokio::runtime::Runtime;
use tower::ServiceExt;

const MAX_REQUESTS: usize = 8;
/// Letters of the route and of the headers.
const PREFIX: usize = 2;
const FIRST_LETTER: u8 = b'A';
/// Of the server.
const TIMEOUT: Duration = Duration::from_millis(150);
/// A stream that follows new traces has no end of its own, and is left then.
const PATIENCE: Duration = Duration::from_millis(200);
const KEYS: [&str; 2] = ["one", "two"];

struct Route {
    method: Method,
    path: String,
    has_body: bool,
}

struct Fuzzed {
    runtime: Runtime,
    router: Router,
    routes: Vec<Route>,
    _folder: tempfile::TempDir,
}

/// What later requests are about.
#[derive(Default)]
struct Made {
    session: Option<String>,
    trace: Option<String>,
}

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(&ponder::api::document_json()).expect("the document is JSON")
});

static WORDS: LazyLock<Words> = LazyLock::new(|| {
    let mut words = Words::of_seeds("requests", PREFIX);
    words.learn_document(&DOCUMENT);
    words
});

static FUZZED: LazyLock<Fuzzed> = LazyLock::new(|| {
    let folder = files::folder();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().expect("a runtime");
    let router = {
        let _inside = runtime.enter();
        server::start(folder.path(), &KEYS, TIMEOUT)
    };
    let paths = DOCUMENT["paths"].as_object().expect("paths");
    let routes = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().expect("methods").iter();
        methods.map(|(method, described)| Route {
            method: method.to_uppercase().parse().expect("a method"),
            path: path.clone(),
            has_body: described.get("requestBody").is_some(),
        })
    });
    Fuzzed {
        routes: routes.collect(),
        router,
        runtime,
        _folder: folder,
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::mutate(data, size, max_size, seed, PREFIX, &WORDS)
});

/// The request that a part stands for; `None` when it is not one of HTTP.
fn request(part: &[u8], fuzzed: &Fuzzed, made: &Made) -> Option<Request<Body>> {
    let [route, headers, rest @ ..] = part else {
        return None;
    };
    let route = usize::from(route.wrapping_sub(FIRST_LETTER));
    let route = &fuzzed.routes[route % fuzzed.routes.len()];
    let id = match route.path.as_str() {
        path if path.contains("/branches/") => made.session.as_deref(),
        path if path.contains("/traces/") => made.trace.as_deref(),
        _ => Some("m"),
    };
    let path = route.path.replace("{id}", id.unwrap_or("none"));
    let (path, body) = match route.has_body {
        true => (path, Body::from(rest.to_vec())),
        false => (format!("{path}?{}", parts::text(rest)?), Body::empty()),
    };
    let key = KEYS[usize::from(headers & 1)];
    let mut request = Request::builder()
        .method(route.method.clone())
        .uri(path)
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json");
    if headers & 2 != 0 {
        request = request.header("request-timeout-ms", "20");
    }
    request.body(body).ok()
}

/// Sends a request and reads its answer.
async fn send(router: &Router, request: Request<Body>) -> Option<Value> {
    let Ok(answer) = router.clone().oneshot(request).await;
    let status = answer.status();
    let body = answer.into_body().collect();
    let bytes = tokio::time::timeout(PATIENCE, body)
        .await
        .ok()?
        .ok()?
        .to_bytes();
    let text = String::from_utf8_lossy(&bytes);
    tell(|| format!("{status} {text}"));
    assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "{text}");
    serde_json::from_slice(&bytes).ok()
}

impl Made {
    fn learn(&mut self, path: &str, answer: &Value) {
        let id = |value: &Value| value.as_str().map(str::to_owned);
        if path == "/v1/branches" {
            self.session = id(&answer["id"]).or(self.session.take());
        }
        let trace = id(&answer["trace_id"]).or_else(|| id(&answer["search"]["trace_id"]));
        self.trace = trace.or(self.trace.take());
    }
}

fuzz_target!(|data: &[u8]| {
    let fuzzed = &*FUZZED;
    let mut made = Made::default();
    let mut sessions = Vec::new();
    fuzzed.runtime.block_on(async {
        for part in parts::split(data).take(MAX_REQUESTS) {
            let Some(request) = request(part, fuzzed, &made) else {
                continue;
            };
            let path = request.uri().path().to_owned();
            let key = request.headers()["authorization"].clone();
            if let Some(answer) = send(&fuzzed.router, request).await {
                made.learn(&path, &answer);
            }
            if path == "/v1/branches" {
                sessions.extend(made.session.clone().map(|session| (session, key)));
            }
        }
        for (session, key) in sessions {
            let request = Request::delete(format!("/v1/branches/{session}"));
            let request = request.header("authorization", key).body(Body::empty());
            send(&fuzzed.router, request.expect("a request")).await;
        }
    });
});
