//! The server's life.

use std::future::Future;
use std::io::ErrorKind;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
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

/// Serves until `shutdown` resolves, then stops accepting, lets requests finish for at most the
/// configured time, and aborts the rest.
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
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
    loop {
        let has_room = connections.len() < max_tasks;
        let socket = tokio::select! {
            socket = accept(&listener, places), if has_room => socket,
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
}

/// The next connection. Where there is no descriptor for it, somebody else's is made free, and the
/// listener rests instead of asking again at once.
async fn accept(listener: &TcpListener, places: &Places) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return socket,
            // The client's fault.
            Err(error) if is_of_connection(error.kind()) => {}
            Err(error) => {
                tracing::warn!("no connection can be accepted: {error}");
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
