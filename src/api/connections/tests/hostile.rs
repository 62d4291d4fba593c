//! Clients that send what nobody should.

use axum::routing::get;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;

use super::super::socket::MAX_PIPELINED_BYTES;
use super::*;

const MOMENT: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn headers_are_bounded() {
    let (server, _) = TestServer::new(ServerConfig::default());
    let line = format!("x: {}", "y".repeat(1 << 20));
    let lines = vec!["x: y"; 10_000];
    let long_path = format!("GET /{}", "y".repeat(1 << 20));
    for bytes in [
        request("GET /health", &[&line], ""),
        request("GET /health", &lines, ""),
        request("GET /health", &["x: y"; 101], ""),
        request(&long_path, &[], ""),
    ] {
        let (answer, elapsed) = server.tell(&bytes).await;
        let refused = matches!(status(&answer), 414 | 431);
        assert!(refused, "{} bytes: {answer}", bytes.len());
        assert!(elapsed <= 2 * SECOND, "{elapsed:?}");
    }
    let fair = format!("x: {}", "y".repeat(30_000));
    let bytes = request("GET /health", &[&fair, "connection: close"], "");
    assert_eq!(status(&server.tell(bytes).await.0), 200);
}

#[tokio::test(start_paused = true)]
async fn lengths_that_cannot_be_are_refused() {
    let (server, state) = TestServer::new(ServerConfig::default());
    let post = format!("POST {CHAT}");
    for (headers, expected) in [
        (vec!["content-length: 99999999999999999999999999"], 400),
        (vec!["content-length: -1"], 400),
        (vec!["content-length: 1", "content-length: 2"], 400),
        (vec!["content-length: 18446744073709551615"], 431),
        (vec!["content-length: 9223372036854775807"], 413),
        (vec!["content-length: 16777217"], 413),
        (vec!["transfer-encoding: gzip"], 400),
    ] {
        let (answer, elapsed) = server.tell(request(&post, &headers, "{}")).await;
        assert_eq!(status(&answer), expected, "{headers:?}: {answer}");
        assert!(elapsed <= 2 * SECOND, "{headers:?}: {elapsed:?}");
    }
    // HTTP/2 is not spoken here, known before or upgraded to.
    let (answer, elapsed) = server.tell("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    assert!(elapsed <= 2 * SECOND, "{elapsed:?}");
    let upgrade = ["connection: upgrade, close", "upgrade: h2c"];
    let (answer, _) = server.tell(request("GET /health", &upgrade, "")).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(state.admission().body_bytes.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn chunked_bodies_are_bounded() {
    let (server, _) = TestServer::new(ServerConfig {
        max_body_bytes: 4096,
        ..ServerConfig::default()
    });
    let chunked = ["transfer-encoding: chunked", "connection: close"];
    let post = |body: &str| request(&format!("POST {CHAT}"), &chunked, body);
    let (answer, _) = server.tell(post("2\r\n{}\r\n0\r\nx: y\r\n\r\n")).await;
    assert_eq!(status(&answer), 400, "read with its trailer: {answer}");
    assert!(answer.contains("messages"), "{answer}");
    let large = format!("1001\r\n{}\r\n0\r\n\r\n", " ".repeat(4097));
    assert_eq!(status(&server.tell(post(&large)).await.0), 413);
    let trailers = format!("2\r\n{{}}\r\n0\r\n{}\r\n", "x: y\r\n".repeat(10_000));
    assert_eq!(status(&server.tell(post(&trailers)).await.0), 400);
    let trailer = format!("2\r\n{{}}\r\n0\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    assert_eq!(status(&server.tell(post(&trailer)).await.0), 400);
    // A chunk's length that cannot be, and extensions without end.
    for chunk in [
        "fffffffffffffffff\r\n",
        &format!("1;{}", "x".repeat(1 << 20)),
    ] {
        let (answer, elapsed) = server.tell(post(chunk)).await;
        assert_eq!(status(&answer), 400, "{answer}");
        assert!(elapsed <= 2 * SECOND, "{elapsed:?}");
    }
}

/// An unknown key's body is not read, and nobody asks for it.
#[tokio::test(start_paused = true)]
async fn unknown_keys_are_refused_before_their_bodies() {
    let (server, state) = TestServer::new(with_keys(&["secret"]));
    let body = " ".repeat(16 << 20);
    let length = format!("content-length: {}", body.len());
    let expect = "expect: 100-continue";
    for method in ["POST", "OPTIONS", "GET", "DELETE"] {
        for headers in [vec![length.as_str()], vec![&length, "x-api-key: guess"]] {
            let mut client = server.connect();
            let head = request(&format!("{method} {CHAT}"), &headers, "");
            client.write_all(head.as_bytes()).await.unwrap();
            let mut taken = 0;
            while taken < body.len() {
                let next = &body.as_bytes()[taken..];
                let written = tokio::time::timeout(SECOND, client.write(next)).await;
                match written {
                    Ok(Ok(length)) => taken += length,
                    _ => break,
                }
            }
            assert!(taken <= 2 << 20, "{method}: {taken}");
            assert_eq!(status(&rest(&mut client).await), 401);
        }
        let head = request(&format!("{method} {CHAT}"), &[&length, expect], "");
        let (answer, elapsed) = server.tell(head).await;
        assert_eq!(status(&answer), 401, "{answer}");
        assert!(elapsed <= 2 * SECOND, "{elapsed:?}");
    }
    let headers = ["content-length: 2", expect, "authorization: Bearer secret"];
    let mut client = server.connect();
    let head = request(&format!("POST {CHAT}"), &headers, "");
    client.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(status(&some(&mut client).await), 100);
    client.write_all(b"{}").await.unwrap();
    assert_eq!(status(&some(&mut client).await), 400);
    assert_eq!(state.admission().requests.held(), 0);
}

/// A browser asks before it sends a key; with CORS off there is nothing to ask.
#[tokio::test(start_paused = true)]
async fn options_open_nothing() {
    let ask = |server: TestServer| async move {
        let headers = [
            "origin: https://app.example",
            "access-control-request-method: POST",
            "connection: close",
        ];
        let options = request(&format!("OPTIONS {CHAT}"), &headers, "");
        server.tell(options).await.0
    };
    let (closed, _) = TestServer::new(with_keys(&["secret"]));
    assert_eq!(status(&ask(closed).await), 401);
    let (open, _) = TestServer::new(ServerConfig {
        cors_allow_origins: vec!["https://app.example".to_owned()],
        ..with_keys(&["secret"])
    });
    let answer = ask(open).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(answer.contains("access-control-allow-origin"), "{answer}");
    let (keyless, _) = TestServer::new(ServerConfig::default());
    assert_eq!(status(&ask(keyless).await), 405);
}

/// A route that answers when it is told to, and says when it begins and ends.
fn gated() -> (
    Router,
    Arc<Semaphore>,
    mpsc::UnboundedReceiver<&'static str>,
) {
    struct Ended(mpsc::UnboundedSender<&'static str>);
    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.send("ended");
        }
    }
    let gate = Arc::new(Semaphore::new(0));
    let (sender, events) = mpsc::unbounded_channel();
    let permits = Arc::clone(&gate);
    let handler = move || async move {
        let _ = sender.send("begun");
        let _ended = Ended(sender);
        permits.acquire().await.unwrap().forget();
        "done"
    };
    (Router::new().route("/", get(handler)), gate, events)
}

#[tokio::test(start_paused = true)]
async fn pipelined_requests_are_answered_in_turn() {
    let (router, gate, mut events) = gated();
    let server = TestServer::of(router);
    let mut client = server.connect();
    let get = request("GET /", &[], "");
    client.write_all(get.repeat(3).as_bytes()).await.unwrap();
    assert_eq!(events.recv().await, Some("begun"));
    // More, in pieces, while the first is answered.
    for piece in get.repeat(2).as_bytes().chunks(7) {
        client.write_all(piece).await.unwrap();
        sleep(MOMENT).await;
    }
    gate.add_permits(5);
    let last = request("GET /", &["connection: close"], "");
    let mut answers = String::new();
    while answers.matches("done").count() < 5 {
        let answer = some(&mut client).await;
        assert_ne!(answer, "", "after {answers}");
        answers += &answer;
    }
    gate.add_permits(1);
    client.write_all(last.as_bytes()).await.unwrap();
    assert!(rest(&mut client).await.ends_with("done"));
}

/// However much a client has sent of its next requests: when it leaves, its request ends.
#[tokio::test(start_paused = true)]
async fn whoever_leaves_ends_the_request() {
    let get = request("GET /", &[], "");
    let post = request("GET /", &["content-length: 3"], "abc");
    for (sent, more) in [
        (get.clone(), String::new()),
        (get.clone() + "G", String::new()),
        (get.repeat(3), String::new()),
        (get.clone(), "x".repeat(3000)),
        (post, get.clone()),
    ] {
        for is_half_closed in [false, true] {
            let (router, _gate, mut events) = gated();
            let server = TestServer::of(router);
            let mut client = server.connect();
            client.write_all(sent.as_bytes()).await.unwrap();
            assert_eq!(events.recv().await, Some("begun"));
            client.write_all(more.as_bytes()).await.unwrap();
            sleep(10 * SECOND).await;
            assert!(events.try_recv().is_err(), "{sent:?}: it waits");
            let left = Instant::now();
            match is_half_closed {
                true => client.shutdown().await.unwrap(),
                false => drop(client),
            }
            assert_eq!(events.recv().await, Some("ended"), "{sent:?}");
            assert!(left.elapsed() < SECOND);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn later_requests_are_not_kept_without_limit() {
    let (router, _gate, mut events) = gated();
    let server = TestServer::of(router);
    let mut client = server.connect();
    let get = request("GET /", &[], "");
    client.write_all(get.as_bytes()).await.unwrap();
    assert_eq!(events.recv().await, Some("begun"));
    let flood = vec![b'x'; 16 << 20];
    let mut taken = 0;
    while let Ok(length) = client.write(&flood[taken..]).await {
        taken += length;
    }
    assert!(taken <= 2 * MAX_PIPELINED_BYTES, "{taken}");
    assert_eq!(events.recv().await, Some("ended"));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_ends_its_request() {
    let (server, state) = TestServer::new(ServerConfig::default());
    for headers in ["content-length: 1000", "transfer-encoding: chunked"] {
        let mut client = server.connect();
        let post = request(&format!("POST {CHAT}"), &[headers], "3e8\r\n{");
        client.write_all(post.as_bytes()).await.unwrap();
        sleep(SECOND).await;
        assert_eq!(state.admission().requests.held(), 1);
        drop(client);
        sleep(MOMENT).await;
        assert_eq!(state.admission().requests.held(), 0);
        assert_eq!(state.admission().body_bytes.held(), 0);
    }
}
