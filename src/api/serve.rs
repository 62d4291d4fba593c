//! The server's life.

use std::future::Future;
use std::time::Duration;

use tokio::net::TcpListener;

use super::router::router;
use super::state::AppState;

/// Serves until `shutdown` resolves, then stops accepting, lets requests finish for at most the
/// configured time, and aborts the rest.
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let timeout = state.config().shutdown_timeout;
    let (started, mut draining) = tokio::sync::watch::channel(false);
    let draining_state = state.clone();
    let signal = async move {
        shutdown.await;
        draining_state.set_draining();
        let _ = started.send(true);
    };
    let server = axum::serve(listener, router(state.clone())).with_graceful_shutdown(signal);
    let limit = async move {
        if draining.wait_for(|is_draining| *is_draining).await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(timeout).await;
        if let Some(served) = state.served() {
            served.engine.abort_all();
        }
        // Aborted requests still write their last bytes.
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    tokio::select! {
        result = server => result,
        () = limit => Ok(()),
    }
}
