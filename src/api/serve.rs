//! The server from its start to its end: the listener, the loop that accepts, the drain.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::connections::descriptors::MAX_CLOSING_CONNECTIONS;
use super::connections::places::Places;
use super::connections::{Timeouts, attend};
use super::router::router;
use super::state::AppState;
use crate::api::config::RESERVED_CONNECTIONS;

/// How long the listener rests when the system has no descriptor or no memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How often it says so at most.
const ACCEPT_WARNING_PAUSE: Duration = Duration::from_secs(10);
/// Connections that the system keeps until they are accepted. Where there are more, it drops them
/// and their clients wait a second: a flood would do that to everybody.
const BACKLOG: u32 = 4096;

/// A listener at `HOST:PORT`.
pub async fn listen(address: &str) -> io::Result<TcpListener> {
    let mut last = io::Error::new(ErrorKind::NotFound, "no such host");
    for address in lookup_host(address).await? {
        match listen_at(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn listen_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // A server that is started again has its port at once.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `shutdown` resolves, then stops accepting, lets requests finish for at most the
/// configured time, and aborts the rest.
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let timeout = state.config().shutdown_timeout;
    let draining_state = state.clone();
    tokio::spawn(async move {
        shutdown.await;
        draining_state.set_draining();
    });
    let server = accept_all(listener, state.clone());
    let limit = async move {
        state.drained().await;
        tokio::time::sleep(timeout).await;
        if let Some(served) = state.served() {
            served.engine.abort_all();
        }
        // Aborted requests still write their last bytes.
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    tokio::select! {
        () = server => Ok(()),
        () = limit => Ok(()),
    }
}

/// Serves connections, each in a task of its own, until the server drains and they have ended.
async fn accept_all(listener: TcpListener, state: AppState) {
    let timeouts = Timeouts::from(&state.config().connections);
    let places = state.places();
    // Tasks of connections that have lost their places are about to end.
    let max_tasks = places.max_ordinary() + RESERVED_CONNECTIONS + MAX_CLOSING_CONNECTIONS;
    let router = router(state.clone());
    let mut connections = JoinSet::new();
    let mut warned = None;
    loop {
        let has_room = connections.len() < max_tasks;
        let socket = tokio::select! {
            socket = accept(&listener, places, &mut warned), if has_room => socket,
            Some(_) = connections.join_next() => continue,
            () = state.drained() => break,
        };
        // Tokens are sent as they come.
        let _ = socket.set_nodelay(true);
        let place = places.take(Instant::now());
        let draining = state.clone();
        let draining = async move { draining.drained().await };
        connections.spawn(attend(socket, place, router.clone(), timeouts, draining));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    state.background().idle().await;
}

/// The next connection. Where there is no descriptor for it, somebody else's is made free, and the
/// listener rests instead of asking again at once.
async fn accept(
    listener: &TcpListener,
    places: &Places,
    warned: &mut Option<Instant>,
) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return socket,
            // The client's fault.
            Err(error) if is_of_connection(error.kind()) => {}
            Err(error) => {
                if warned.is_none_or(|warned| warned.elapsed() >= ACCEPT_WARNING_PAUSE) {
                    tracing::warn!("no connection can be accepted: {error}");
                    *warned = Some(Instant::now());
                }
                places.make_room(Instant::now());
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_connection(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}
