//! More clients than there is place for.

use axum::routing::post;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::api::admission::Reason;
use crate::api::config::RESERVED_CONNECTIONS;

fn limited(keys: &[&str], connections: ConnectionLimits) -> (TestServer, AppState) {
    TestServer::new(ServerConfig {
        connections,
        ..with_keys(keys)
    })
}

/// A request that is at work until its body ends.
async fn begin(server: &TestServer, headers: &[&str]) -> DuplexStream {
    let mut client = server.connect();
    let headers = [headers, &["content-length: 2"]].concat();
    let head = request(&format!("POST {CHAT}"), &headers, "");
    client.write_all(head.as_bytes()).await.unwrap();
    settle().await;
    client
}

/// Lets every task do what it can.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn silent_connections_shut_nobody_out() {
    let (server, state) = limited(
        &[],
        ConnectionLimits {
            max_connections: 64,
            ..ConnectionLimits::default()
        },
    );
    let mut silent: Vec<DuplexStream> = Vec::new();
    for _ in 0..1500 {
        silent.push(server.connect());
        // Each of them is looked at before the next comes.
        settle().await;
    }
    assert_eq!(state.places().num_open(), 64);
    let health = request("GET /health", &["connection: close"], "");
    let (answer, elapsed) = server.tell(health).await;
    assert_eq!((status(&answer), elapsed), (200, Duration::ZERO));
    assert_eq!(rest(&mut silent[0]).await, "", "the first ones are closed");
    // A client in the middle of a body is waited for, but not as long as there is somebody else.
    let mut working = begin(&server, &[]).await;
    for _ in 0..64 {
        silent.push(server.connect());
        settle().await;
    }
    working.write_all(b"{}").await.unwrap();
    assert_eq!(status(&some(&mut working).await), 400);
}

#[tokio::test(start_paused = true)]
async fn the_reserve_serves_probes_and_keys() {
    let (server, state) = limited(
        &["first", "second"],
        ConnectionLimits {
            max_connections: 2,
            max_requests_per_key: Some(2),
            ..ConnectionLimits::default()
        },
    );
    let first = "authorization: Bearer first";
    let _held = [
        begin(&server, &[first]).await,
        begin(&server, &[first]).await,
    ];
    let close = "connection: close";
    let ask = async |line: &str, headers: &[&str]| server.tell(request(line, headers, "")).await.0;
    assert_eq!(status(&ask("GET /health", &[close]).await), 200);
    assert_eq!(status(&ask("GET /ready", &[close]).await), 503);
    assert_eq!(status(&ask("GET /v1/models", &[close]).await), 401);
    let second = "x-api-key: second";
    assert_eq!(status(&ask("GET /v1/models", &[second, close]).await), 200);
    let answer = ask("GET /v1/models", &[first, close]).await;
    assert_eq!(status(&answer), 429, "{answer}");
    assert!(answer.contains("--max-requests-per-key"), "{answer}");
    assert!(answer.contains("retry-after: 1"), "{answer}");
    assert_eq!(state.admission().num_refused(Reason::KeyShare), 1);
}

#[tokio::test(start_paused = true)]
async fn without_keys_the_reserve_is_for_probes() {
    let (server, state) = limited(
        &[],
        ConnectionLimits {
            max_connections: 1,
            ..ConnectionLimits::default()
        },
    );
    let mut held = begin(&server, &[]).await;
    let (answer, elapsed) = server.tell(request("GET /v1/models", &[], "")).await;
    assert_eq!(status(&answer), 503, "{answer}");
    for expected in ["--max-connections", "connection: close", "retry-after: 1"] {
        assert!(answer.contains(expected), "{answer}");
    }
    assert_eq!(elapsed, Duration::ZERO, "it is closed at once");
    assert_eq!(state.admission().num_refused(Reason::Connections), 1);
    // More than the reserve: the oldest silent ones of it go, never the one at work.
    let mut silent = Vec::new();
    for _ in 0..3 * RESERVED_CONNECTIONS {
        silent.push(server.connect());
        settle().await;
    }
    let health = request("GET /health", &["connection: close"], "");
    assert_eq!(status(&server.tell(health).await.0), 200);
    held.write_all(b"{}").await.unwrap();
    assert_eq!(status(&some(&mut held).await), 400);
    // Now the place can be had.
    let models = request("GET /v1/models", &["connection: close"], "");
    assert_eq!(status(&server.tell(models).await.0), 200);
}

#[tokio::test(start_paused = true)]
async fn bodies_share_a_budget() {
    let config = ServerConfig {
        max_body_bytes: 1000,
        connections: ConnectionLimits {
            max_inflight_body_bytes: 4000,
            ..ConnectionLimits::default()
        },
        ..with_keys(&["a", "b", "c", "d", "e"])
    };
    let (server, state) = TestServer::new(config);
    let head = |key: &str, length: usize| {
        let headers = [
            format!("x-api-key: {key}"),
            format!("content-length: {length}"),
        ];
        request(
            &format!("POST {CHAT}"),
            &headers.each_ref().map(String::as_str),
            "",
        )
    };
    let mut held = Vec::new();
    for key in ["a", "b", "c", "d"] {
        let mut client = server.connect();
        client.write_all(head(key, 1000).as_bytes()).await.unwrap();
        settle().await;
        held.push(client);
        let (answer, _) = server.tell(head(key, 1)).await;
        assert_eq!(status(&answer), 429, "{answer}");
        assert!(answer.contains("--max-inflight-body-bytes"), "{answer}");
    }
    assert_eq!(state.admission().body_bytes.held(), 4000);
    assert_eq!(status(&server.tell(head("e", 1)).await.0), 429);
    // One without a length counts as it comes.
    let chunked = ["x-api-key: e", "transfer-encoding: chunked"];
    let post = request(&format!("POST {CHAT}"), &chunked, "1\r\n{\r\n");
    assert_eq!(status(&server.tell(post).await.0), 429);
    assert_eq!(state.admission().num_refused(Reason::BodyBytes), 6);
    // What has no body goes on.
    let models = request("GET /v1/models", &["x-api-key: a", "connection: close"], "");
    assert_eq!(status(&server.tell(models).await.0), 200);
    drop(held);
    settle().await;
    assert_eq!(state.admission().body_bytes.held(), 0);
    assert_eq!(state.admission().requests.held(), 0);
}

/// A request counts until its answer has been sent.
#[tokio::test(start_paused = true)]
async fn shares_end_with_answers() {
    let (server, state) = limited(
        &["a", "b"],
        ConnectionLimits {
            max_requests_per_key: Some(1),
            ..ConnectionLimits::default()
        },
    );
    let close = "connection: close";
    let mut working = begin(&server, &["x-api-key: a"]).await;
    let models = |key: &str| request("GET /v1/models", &[&format!("x-api-key: {key}"), close], "");
    assert_eq!(status(&server.tell(models("a")).await.0), 429);
    assert_eq!(status(&server.tell(models("b")).await.0), 200);
    assert_eq!(state.admission().requests.held(), 1);
    working.write_all(b"{}").await.unwrap();
    assert_eq!(status(&some(&mut working).await), 400);
    assert_eq!(status(&server.tell(models("a")).await.0), 200);
    // Keys that nobody knows are not counted, wherever they ask.
    for _ in 0..3 {
        let health = request("GET /health", &["x-api-key: guess", close], "");
        assert_eq!(status(&server.tell(health).await.0), 200);
    }
    assert_eq!(state.admission().requests.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_draining_server_ends_its_connections() {
    let echo = Router::new().route("/", post(|body: String| async { body }));
    let server = TestServer::of(echo);
    let draining = CancellationToken::new();
    let connect = || server.connect_until(draining.clone().cancelled_owned());
    let (mut silent, mut idle, mut working) = (connect(), connect(), connect());
    let head = request("POST /", &["content-length: 4"], "");
    idle.write_all((head.clone() + "done").as_bytes())
        .await
        .unwrap();
    assert!(some(&mut idle).await.ends_with("done"));
    working.write_all(head.as_bytes()).await.unwrap();
    settle().await;
    let started = Instant::now();
    draining.cancel();
    assert_eq!(rest(&mut silent).await, "");
    assert_eq!(rest(&mut idle).await, "");
    assert_eq!(started.elapsed(), Duration::ZERO);
    tokio::time::sleep(20 * SECOND).await;
    working.write_all(b"done").await.unwrap();
    assert!(rest(&mut working).await.ends_with("done"));
    settle().await;
    assert_eq!(server.places.num_open(), 0);
}
