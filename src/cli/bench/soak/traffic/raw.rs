//! What no HTTP library sends: halves of requests, and connections that say nothing.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cli::bench::soak::child::{HEADER_TIMEOUT, KEYS};
use crate::cli::bench::soak::client::Client;
use crate::cli::bench::soak::tally::{Ended, ensure};

/// Connections that say nothing, at once.
const NUM_SILENT: usize = 200;
/// The server must have closed them all after so long.
const SILENCE: Duration = Duration::from_secs(HEADER_TIMEOUT + 15);

fn failed(client: &Client, what: &str, error: &std::io::Error) -> Ended {
    match client.is_same_life() {
        true => Ended::Failed(format!("{what}: {error}")),
        false => Ended::Cut,
    }
}

/// The beginning of a request, and nothing more.
pub(super) async fn half_request(client: &mut Client) -> Result<(), Ended> {
    let address = client.address().await?;
    let body = format!(
        "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{}",
        "x".repeat(500)
    );
    let whole = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{body}",
        KEYS[client.key]
    );
    let end = 1 + client.dice.below(whole.len());
    let pause = client.dice.within(Duration::ZERO, Duration::from_secs(1));
    let connected = TcpStream::connect(&address).await;
    let mut stream = connected.map_err(|error| failed(client, "no connection", &error))?;
    // The server may close it first, as it likes.
    let _ = stream.write_all(&whole.as_bytes()[..end]).await;
    tokio::time::sleep(pause).await;
    Err(Ended::HungUp)
}

/// Many connections that never say anything: the server closes each of them in its time.
pub(super) async fn silence(client: &mut Client) -> Result<(), Ended> {
    let shared = std::sync::Arc::clone(&client.shared);
    let Ok(_turn) = shared.silence.try_lock() else {
        return Err(Ended::NotNow);
    };
    let address = client.address().await?;
    let mut streams = Vec::with_capacity(NUM_SILENT);
    for _ in 0..NUM_SILENT {
        let connected = TcpStream::connect(&address).await;
        streams.push(connected.map_err(|error| failed(client, "no connection", &error))?);
    }
    let started = Instant::now();
    let closed = futures::future::join_all(streams.iter_mut().map(is_closed));
    let closed = tokio::time::timeout(SILENCE, closed).await;
    let is_right = closed.is_ok() || !client.is_same_life();
    ensure(is_right, || {
        let seconds = started.elapsed().as_secs();
        format!("silent connections are still open after {seconds} s")
    })
}

/// Waits until the other side closes.
async fn is_closed(stream: &mut TcpStream) {
    let mut buffer = [0; 512];
    while let Ok(1..) = stream.read(&mut buffer).await {}
}
