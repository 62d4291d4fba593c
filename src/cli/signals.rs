//! Signals that ask this process to end.

/// Until SIGINT or SIGTERM comes.
#[cfg(unix)]
pub(in crate::cli) async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

#[cfg(not(unix))]
pub(in crate::cli) async fn wait_for_signal() {
    let _ = tokio::signal::ctrl_c().await;
}
