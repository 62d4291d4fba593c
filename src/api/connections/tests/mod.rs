//! Connections of hostile and of slow clients, in virtual time, without a model.

mod hostile;
mod limits;
mod timeouts;

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;

use super::places::Places;
use super::{Timeouts, attend};
use crate::api::config::{ConnectionLimits, ServerConfig};
use crate::api::router::router;
use crate::api::state::AppState;

const SECOND: Duration = Duration::from_secs(1);
/// What a socket takes before its other end reads.
const SOCKET_BYTES: usize = 4096;
const CHAT: &str = "/v1/chat/completions";

/// A server without sockets.
struct TestServer {
    router: Router,
    places: Arc<Places>,
    timeouts: Timeouts,
}

impl TestServer {
    /// Every route of a server whose model is still loading.
    fn new(config: ServerConfig) -> (Self, AppState) {
        let state = AppState::new(config);
        let server = Self {
            router: router(state.clone()),
            places: Arc::clone(state.places()),
            timeouts: Timeouts::from(&state.config().connections),
        };
        (server, state)
    }

    fn of(router: Router) -> Self {
        let limits = ConnectionLimits::default();
        Self {
            router,
            places: Arc::new(Places::new(limits.max_connections)),
            timeouts: Timeouts::from(&limits),
        }
    }

    fn connect(&self) -> DuplexStream {
        self.connect_until(pending())
    }

    fn connect_until(&self, draining: impl Future<Output = ()> + Send + 'static) -> DuplexStream {
        let (client, server) = duplex(SOCKET_BYTES);
        let place = self.places.take(Instant::now());
        let connection = attend(server, place, self.router.clone(), self.timeouts, draining);
        tokio::spawn(connection);
        client
    }

    /// What one connection answers to some bytes, and how long it stays open.
    async fn tell(&self, bytes: impl AsRef<[u8]>) -> (String, Duration) {
        let started = Instant::now();
        let mut client = self.connect();
        // The server may close before it has read everything.
        let _ = client.write_all(bytes.as_ref()).await;
        let answer = rest(&mut client).await;
        (answer, started.elapsed())
    }
}

/// Everything until the connection ends.
async fn rest(client: &mut DuplexStream) -> String {
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

/// The next bytes; nothing if the connection has ended.
async fn some(client: &mut DuplexStream) -> String {
    let mut answer = vec![0; 64 << 10];
    let length = client.read(&mut answer).await.unwrap_or(0);
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

/// A request by its first line, with more header lines and a body.
fn request(line: &str, headers: &[&str], body: &str) -> String {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    format!("{line} HTTP/1.1\r\nhost: x\r\n{headers}\r\n{body}")
}

fn with_keys(keys: &[&str]) -> ServerConfig {
    ServerConfig {
        api_keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        ..ServerConfig::default()
    }
}

/// The status of an answer.
fn status(answer: &str) -> u16 {
    let status = answer.split(' ').nth(1).unwrap_or_default();
    status.parse().unwrap_or(0)
}
