//! Connections over real sockets: the ones that do nothing, the ones that leave, and the end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ponder::api::ServerConfig;
use ponder::api::config::ConnectionLimits;
use ponder::api::connections::descriptors;
use serde_json::json;

use crate::api::CHAT;
use crate::offline::{Offline, chat};

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn with_places(max_connections: usize) -> Offline {
    Offline::with(ServerConfig {
        connections: ConnectionLimits {
            max_connections,
            ..ConnectionLimits::default()
        },
        ..ServerConfig::default()
    })
}

fn connect(offline: &Offline) -> TcpStream {
    let address = offline.server.url.strip_prefix("http://").unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

fn metric(offline: &Offline, name: &str) -> u64 {
    let metrics = offline.server.get("/metrics").1;
    let head = format!("{name}{{model_name=\"m\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&head));
    let value = value.unwrap_or_else(|| panic!("{name} is not in\n{metrics}"));
    value.parse().unwrap()
}

/// As many as 256 descriptors allow, and many more clients that do nothing.
#[test]
fn idle_connections_shut_nobody_out() {
    let places = descriptors::max_connections(1024, Some(256));
    let offline = with_places(places);
    let num_descriptors = descriptors::raise_limit().unwrap_or(u64::MAX);
    // Half of each pair is the server's, which closes most of its.
    let num_clients = usize::try_from(num_descriptors / 2).unwrap_or(usize::MAX);
    let num_clients = num_clients.min(1500);
    assert!(num_clients > 2 * places, "too few descriptors to test");
    let mut clients = Vec::new();
    for index in 0..num_clients {
        let mut client = connect(&offline);
        match index % 3 {
            0 => {}
            1 => client.write_all(b"POST /v1/chat/completions HT").unwrap(),
            _ => client
                .write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                .unwrap(),
        }
        clients.push(client);
    }
    assert_eq!(offline.server.get("/health").0, 200);
    offline.ask(CHAT, chat(json!({})));
    assert!(metric(&offline, "ponder_http_connections") <= places as u64);
    let num_evicted = metric(&offline, "ponder_http_connections_evicted_total");
    assert!(num_evicted >= (num_clients - places) as u64);
    let mut rest = Vec::new();
    // Closed, in one way or the other.
    let _ = clients[0].read_to_end(&mut rest);
    assert!(rest.is_empty());
}

/// Whoever stops listening in the middle of a stream or a body costs nothing afterwards.
#[test]
fn whoever_leaves_frees_everything() {
    let offline = Offline::start();
    let body = chat(json!({"stream": true, "ignore_eos": true, "max_tokens": 400})).to_string();
    let head = |length: usize| {
        format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n")
    };
    for sent in [
        head(body.len()) + &body,
        head(body.len()) + &body + "GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
        head(body.len() + 1) + &body,
        head(1 << 20) + &body,
    ] {
        let mut client = connect(&offline);
        client.write_all(sent.as_bytes()).unwrap();
        drop(client);
    }
    let deadline = Instant::now() + LONG;
    // The one that asks is in progress neither.
    while metric(&offline, "ponder_http_requests_in_progress") > 0 {
        assert!(Instant::now() < deadline, "a request goes on");
        std::thread::yield_now();
    }
    assert_eq!(metric(&offline, "ponder_http_body_bytes"), 0);
    offline.server.wait_until_free();
}

#[test]
fn silent_connections_do_not_hold_up_the_end() {
    let mut offline = with_places(64);
    let mut silent: Vec<TcpStream> = (0..20).map(|_| connect(&offline)).collect();
    assert_eq!(offline.server.get("/health").0, 200);
    let started = Instant::now();
    offline.server.stop.take().unwrap().send(()).unwrap();
    let task = offline.server.task.take().unwrap();
    let ended = offline.server.runtime.block_on(task).unwrap();
    assert!(ended.is_ok());
    assert!(started.elapsed() < Duration::from_secs(10));
    for client in &mut silent {
        assert_eq!(client.read(&mut [0; 1]).unwrap_or(0), 0);
    }
}
