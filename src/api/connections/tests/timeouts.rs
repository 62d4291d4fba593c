//! Clients that take their time.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, Bytes};
use axum::routing::get;
use futures::stream;
use tokio::time::sleep;

use super::*;

fn is_about(elapsed: Duration, seconds: u64) -> bool {
    let expected = seconds * 1000;
    (expected..expected + 100).contains(&(elapsed.as_millis() as u64))
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_ends() {
    let (server, state) = TestServer::new(ServerConfig::default());
    let (answer, elapsed) = server.tell("").await;
    assert_eq!(answer, "");
    assert!(is_about(elapsed, 10), "{elapsed:?}");
    assert_eq!(state.places().num_timed_out(), 1);
    assert_eq!(state.places().num_open(), 0);
}

/// One byte a second would never be silent.
#[tokio::test(start_paused = true)]
async fn a_header_byte_by_byte_ends() {
    let (server, _) = TestServer::new(ServerConfig::default());
    let started = Instant::now();
    let mut client = server.connect();
    for byte in request("GET /health", &["x: y"; 20], "").bytes() {
        if client.write_all(&[byte]).await.is_err() {
            break;
        }
        sleep(SECOND).await;
    }
    assert_eq!(rest(&mut client).await, "");
    assert!(started.elapsed() < 12 * SECOND, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_waits_for_its_next_request_but_not_for_ever() {
    let (server, _) = TestServer::new(ServerConfig::default());
    let mut client = server.connect();
    let health = request("GET /health", &[], "");
    for _ in 0..3 {
        client.write_all(health.as_bytes()).await.unwrap();
        assert_eq!(status(&some(&mut client).await), 200);
        sleep(74 * SECOND).await;
    }
    let started = Instant::now();
    assert_eq!(rest(&mut client).await, "");
    assert!(is_about(started.elapsed(), 1), "{:?}", started.elapsed());
    // A next header that never ends.
    let mut client = server.connect();
    client.write_all(health.as_bytes()).await.unwrap();
    some(&mut client).await;
    sleep(70 * SECOND).await;
    client.write_all(b"GET /").await.unwrap();
    let started = Instant::now();
    assert_eq!(rest(&mut client).await, "");
    assert!(is_about(started.elapsed(), 10), "{:?}", started.elapsed());
}

/// A body that pauses too long, one that comes byte by byte, and one that is slow but fair.
#[tokio::test(start_paused = true)]
async fn a_body_may_be_slow_but_not_for_ever() {
    let (server, state) = TestServer::new(ServerConfig {
        // A large body is read by another thread, for which this clock does not wait.
        request_timeout: Duration::MAX,
        ..ServerConfig::default()
    });
    let head = |length: usize| {
        let length = format!("content-length: {length}");
        request(&format!("POST {CHAT}"), &[&length], "")
    };
    let (answer, elapsed) = server.tell(head(10) + "{").await;
    assert_eq!(status(&answer), 408, "{answer}");
    assert!(answer.contains("--body-timeout"), "{answer}");
    assert!(is_about(elapsed, 30), "{elapsed:?}");
    let started = Instant::now();
    let mut client = server.connect();
    client.write_all(head(1000).as_bytes()).await.unwrap();
    while client.write_all(b" ").await.is_ok() && started.elapsed() < 100 * SECOND {
        sleep(7 * SECOND).await;
    }
    assert_eq!(status(&rest(&mut client).await), 408);
    assert!(started.elapsed() < 40 * SECOND, "{:?}", started.elapsed());
    // 32 KiB a second, for a minute.
    let mut client = server.connect();
    let chunk = vec![b' '; 32 << 10];
    let length = 60 * chunk.len();
    client.write_all(head(length).as_bytes()).await.unwrap();
    for _ in 0..60 {
        client.write_all(&chunk).await.unwrap();
        sleep(SECOND).await;
    }
    let answer = some(&mut client).await;
    assert_eq!(status(&answer), 400, "no JSON: {answer}");
    assert_eq!(state.admission().requests.held(), 0);
    assert_eq!(state.admission().body_bytes.held(), 0);
}

/// Counts those that live.
struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A route whose answer never ends.
fn endless(alive: &Arc<AtomicUsize>) -> Router {
    let alive = Arc::clone(alive);
    let handler = move || async move {
        alive.fetch_add(1, Ordering::AcqRel);
        let alive = Alive(alive);
        Body::from_stream(stream::repeat_with(move || {
            let _ = &alive;
            Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 1000]))
        }))
    };
    Router::new().route("/", get(handler))
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_reads_ends() {
    let alive = Arc::new(AtomicUsize::new(0));
    let server = TestServer::of(endless(&alive));
    let mut client = server.connect();
    let get = request("GET /", &[], "");
    client.write_all(get.as_bytes()).await.unwrap();
    // Slow, which is allowed: a byte now and then makes no room, a piece does.
    let mut piece = vec![0; SOCKET_BYTES];
    for _ in 0..5 {
        client.read_exact(&mut piece).await.unwrap();
        sleep(299 * SECOND).await;
        assert_eq!(alive.load(Ordering::Acquire), 1);
    }
    sleep(2 * SECOND).await;
    assert_eq!(alive.load(Ordering::Acquire), 0, "the request ended too");
    assert_eq!(server.places.num_open(), 0);
    // Whoever hangs up ends it at once.
    let mut client = server.connect();
    client.write_all(get.as_bytes()).await.unwrap();
    some(&mut client).await;
    assert_eq!(alive.load(Ordering::Acquire), 1);
    drop(client);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(alive.load(Ordering::Acquire), 0);
}
