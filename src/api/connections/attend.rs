//! The task of one connection.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::activity::Timeouts;
use super::places::Place;
use super::requests::Requests;
use super::socket::Socket;

/// Bytes that a connection buffers in each direction; a request's header must fit.
const MAX_BUFFER_BYTES: usize = 64 << 10;
/// How long, and for how many bytes, the rest of a refused request is read: a client that was
/// answered before it had sent everything would lose the answer if the socket were closed at once.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 1 << 20;
const LINGER_CHUNK: usize = 16 << 10;

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// By HTTP's rules, or by the socket.
    Finished,
    /// What came was no HTTP.
    NoHttp,
    /// The client has left in the middle of an answer.
    Left,
    TimedOut,
    Evicted,
}

/// Serves the requests of one connection until it ends, its client has kept it waiting for too
/// long, or its place is another's. `draining` ends it after the request that it serves. A request
/// in progress ends with its connection.
pub(in crate::api) async fn attend<T>(
    socket: T,
    place: Place,
    router: Router,
    timeouts: Timeouts,
    draining: impl Future<Output = ()>,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let place = Arc::new(place);
    let socket = Socket::new(socket, Arc::clone(&place.activity));
    let end = serve(socket.clone(), &place, router, timeouts, draining).await;
    if end == End::TimedOut {
        place.places.timed_out();
    }
    let is_refused =
        end == End::NoHttp || (end == End::Finished && place.activity.has_unread_body());
    if is_refused {
        tokio::select! {
            _ = timeout(LINGER, linger(socket)) => {}
            () = place.activity.evicted() => {}
        }
    }
}

async fn serve<T>(
    socket: Socket<T>,
    place: &Arc<Place>,
    router: Router,
    timeouts: Timeouts,
    draining: impl Future<Output = ()>,
) -> End
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = &place.activity;
    let requests = Requests::new(router, Arc::clone(place));
    let mut connection = http1::Builder::new()
        .max_buf_size(MAX_BUFFER_BYTES)
        // Deadlines are the activity's.
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(socket.clone()), requests);
    let mut evicted = pin!(activity.evicted());
    let mut draining = pin!(draining);
    let mut is_draining = false;
    let mut timer = pin!(sleep_until(Instant::now()));
    poll_fn(|cx| {
        if evicted.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Evicted);
        }
        if !is_draining && draining.as_mut().poll(cx).is_ready() {
            is_draining = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
            return Poll::Ready(match result {
                Err(error) if error.is_parse() => End::NoHttp,
                _ => End::Finished,
            });
        }
        if socket.poll_left(cx).is_ready() {
            return Poll::Ready(End::Left);
        }
        // After the connection was polled: whatever changes a deadline happens there.
        match activity.deadline(&timeouts) {
            Some(deadline) => poll_deadline(timer.as_mut(), deadline, cx).map(|()| End::TimedOut),
            None => Poll::Pending,
        }
    })
    .await
}

/// Ready at `deadline`. A timer that is too early is left alone until it fires: deadlines move
/// with every request.
fn poll_deadline(mut timer: Pin<&mut Sleep>, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
    if deadline < timer.deadline() {
        timer.as_mut().reset(deadline);
    }
    while timer.as_mut().poll(cx).is_ready() {
        if deadline <= Instant::now() {
            return Poll::Ready(());
        }
        timer.as_mut().reset(deadline);
    }
    Poll::Pending
}

/// Reads what a refused client still sends, up to a limit.
async fn linger<T: AsyncRead + Unpin>(mut socket: Socket<T>) {
    let mut chunk = vec![0; LINGER_CHUNK];
    let mut num_read = 0;
    while num_read < LINGER_BYTES {
        match socket.read(&mut chunk).await {
            Ok(length) if length > 0 => num_read += length as u64,
            _ => return,
        }
    }
    // The client may still read its answer.
    std::future::pending().await
}
