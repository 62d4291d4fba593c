//! The page for browsers, whether it could be built in or not.

use ponder::api::ServerConfig;
use reqwest::header::HeaderMap;

use crate::offline::Offline;

/// Status, headers and body of a `GET` without a key.
fn get(offline: &Offline, path: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap, Vec<u8>) {
    let url = format!("{}{path}", offline.server.url);
    offline.server.runtime.block_on(async {
        let mut request = reqwest::Client::new().get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        (status, headers, response.bytes().await.unwrap().to_vec())
    })
}

#[test]
fn browsers_get_a_page_that_runs_nothing_but_itself() {
    let offline = Offline::start();
    let (status, headers, body) = get(&offline, "/", &[]);
    assert_eq!(status, 200);
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(headers["referrer-policy"], "no-referrer");
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    let page = String::from_utf8(body).unwrap();
    assert!(page.contains("<title>Ponder</title>"), "{page}");
    let etag = headers["etag"].to_str().unwrap();
    let (status, _, body) = get(&offline, "/", &[("if-none-match", etag)]);
    assert_eq!((status, body.len()), (304, 0));
    // What the page names is there, packed where the browser takes that.
    for path in ["/assets/app.js", "/assets/app.css", "/assets/icon.svg"] {
        if !page.contains(path) {
            continue;
        }
        let (status, _, whole) = get(&offline, path, &[]);
        assert_eq!(status, 200, "{path}");
        let (_, headers, packed) = get(&offline, path, &[("accept-encoding", "gzip")]);
        assert_eq!(headers["content-encoding"], "gzip", "{path}");
        assert!(packed.len() < whole.len(), "{path}");
    }
    assert_eq!(get(&offline, "/assets/other.js", &[]).0, 404);
}

#[test]
fn the_page_needs_no_key_and_the_api_does() {
    let offline = Offline::with(ServerConfig {
        api_keys: vec!["k".to_owned()],
        ..ServerConfig::default()
    });
    assert_eq!(get(&offline, "/", &[]).0, 200);
    assert_eq!(get(&offline, "/v1/models", &[]).0, 401);
    assert_eq!(get(&offline, "/docs/", &[]).0, 401);
}

#[test]
fn a_server_without_its_page_has_no_route_there() {
    let offline = Offline::with(ServerConfig {
        ui: false,
        ..ServerConfig::default()
    });
    assert_eq!(get(&offline, "/", &[]).0, 404);
    assert_eq!(get(&offline, "/assets/app.js", &[]).0, 404);
}
