//! What clients bring of their own: keys in other headers, preflight requests of browsers, ids of
//! requests, other spellings of routes. Over the fake model.

use ponder::api::{CHAT, ServerConfig};
use serde_json::json;

use crate::offline::{Offline, chat, completion};

#[test]
fn browsers_may_send_keys() {
    let offline = Offline::with(ServerConfig {
        cors_allow_origins: vec!["https://app.example".to_owned()],
        api_keys: vec!["secret".to_owned()],
        ..ServerConfig::default()
    });
    let send = |method: reqwest::Method, path: &str, headers: &[(&str, &str)]| {
        offline.server.runtime.block_on(async {
            let url = format!("{}{path}", offline.server.url);
            let mut request = reqwest::Client::new().request(method, url);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            request.send().await.unwrap()
        })
    };
    let origin = ("origin", "https://app.example");
    let preflight = send(
        reqwest::Method::OPTIONS,
        CHAT,
        &[
            origin,
            ("access-control-request-method", "POST"),
            (
                "access-control-request-headers",
                "authorization, content-type",
            ),
        ],
    );
    let header = |response: &reqwest::Response, name: &str| {
        let value = response.headers().get(name);
        value.map(|value| value.to_str().unwrap().to_lowercase())
    };
    assert_eq!(preflight.status(), 200);
    let allowed = header(&preflight, "access-control-allow-headers").unwrap();
    assert_eq!(allowed, "authorization, content-type");
    let methods = header(&preflight, "access-control-allow-methods").unwrap();
    for method in ["get", "head", "post", "delete"] {
        assert!(methods.contains(method), "{methods}");
    }
    // A request without a key is refused so that the browser sees why, and its id.
    let denied = send(reqwest::Method::GET, "/v1/models", &[origin]);
    assert_eq!(denied.status(), 401);
    let origin_of = header(&denied, "access-control-allow-origin");
    assert_eq!(origin_of.as_deref(), Some("https://app.example"));
    let exposed = header(&denied, "access-control-expose-headers").unwrap();
    assert!(exposed.contains("x-request-id"), "{exposed}");
    assert!(header(&denied, "x-request-id").unwrap().starts_with("req_"));
    // The scheme's case does not count, and other headers carry a key too.
    for (name, value) in [
        ("authorization", "BEARER secret"),
        ("authorization", "bearer secret"),
        ("api-key", "secret"),
        ("x-api-key", "secret"),
    ] {
        let id = ("x-request-id", "mine-7");
        let response = send(reqwest::Method::GET, "/v1/models", &[(name, value), id]);
        assert_eq!(response.status(), 200, "{name}: {value}");
        assert_eq!(header(&response, "x-request-id").as_deref(), Some("mine-7"));
    }
    let odd = [("x-api-key", "secret"), ("x-request-id", "two words")];
    let response = send(reqwest::Method::GET, "/nowhere", &odd);
    assert!(
        header(&response, "x-request-id")
            .unwrap()
            .starts_with("req_")
    );
}

#[test]
fn models_and_routes_have_other_spellings() {
    let offline = Offline::start();
    let model = offline.get("/v1/models/m");
    assert_eq!(model["object"], "model");
    assert_eq!(model["max_model_len"], 512);
    assert_eq!(offline.get("/models")["data"][0]["id"], "m");
    for path in ["/v1/models/org%2Fname", "/v1/models/org/name"] {
        let (status, error) = offline.server.get(path);
        assert_eq!(status, 404, "{path}");
        assert!(
            error.contains("org/name") && error.contains("model_not_found"),
            "{error}"
        );
    }
    for (path, body) in [
        ("/chat/completions", chat(json!({}))),
        ("/v1/chat/completions/", chat(json!({}))),
        ("/completions", completion(json!({}))),
        ("/v1/completions/", completion(json!({}))),
    ] {
        assert_eq!(offline.ask(path, body)["model"], "m");
    }
}
