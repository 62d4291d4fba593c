//! A request's body while it is read: how much of it there is room for, and how slowly it may come.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::quota::{Full, Hold};
use crate::api::config::{BYTES_A_VALUE, MAX_BODY_VALUES};

/// A body must come at this rate at least, but for one timeout in which it may do as it likes:
/// one byte before each timeout would hold its place for months.
const MIN_BYTES_PER_SECOND: u64 = 16 << 10;

/// Why a body was not read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::api) enum BodyError {
    #[error("the body came too slowly")]
    Slow,
    #[error("there is no room for the body")]
    NoRoom(Full),
    #[error("the body has too many values")]
    TooManyValues,
    #[error("the body was not sent to its end")]
    Broken,
}

/// What the reader of a body leaves for whoever answers the request.
#[derive(Debug, Default)]
pub(super) struct Outcome(Mutex<Option<BodyError>>);

impl Outcome {
    fn set(&self, error: BodyError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    pub fn get(&self) -> Option<BodyError> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body that counts against a quota and has deadlines. It is read by one reader.
pub(super) struct MeteredBody {
    body: Body,
    /// Shared with the answer: what was read is held until there is one.
    hold: Arc<Mutex<Hold>>,
    outcome: Arc<Outcome>,
    /// How long it may pause.
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    waits_since: Option<Instant>,
    /// How long it was waited for before, in all.
    waited: Duration,
    received: usize,
    /// JSON values that have come, roughly: a comma inside of a text looks like another one.
    num_values: usize,
}

impl MeteredBody {
    /// `hold` has room for the length that the header told, if it did.
    pub fn new(body: Body, hold: Arc<Mutex<Hold>>, timeout: Duration) -> (Self, Arc<Outcome>) {
        let outcome = Arc::new(Outcome::default());
        let metered = Self {
            body,
            hold,
            outcome: Arc::clone(&outcome),
            timeout,
            timer: Box::pin(sleep_until(Instant::now())),
            waits_since: None,
            waited: Duration::ZERO,
            received: 0,
            num_values: 0,
        };
        (metered, outcome)
    }

    /// Counts what came: its bytes, and what its values will take once they are read. Two bytes of a
    /// body can become a value of thirty times their size.
    fn received(&mut self, num_bytes: usize, num_values: usize) -> Result<(), BodyError> {
        if let Some(since) = self.waits_since.take() {
            self.waited += since.elapsed();
        }
        self.received = self.received.saturating_add(num_bytes);
        self.num_values = self.num_values.saturating_add(num_values);
        if self.num_values > MAX_BODY_VALUES {
            return Err(BodyError::TooManyValues);
        }
        let weight = self
            .received
            .saturating_add(self.num_values * BYTES_A_VALUE);
        let mut hold = self.hold.lock().unwrap_or_else(PoisonError::into_inner);
        match weight.checked_sub(hold.amount()) {
            Some(missing) if missing > 0 => hold.grow(missing).map_err(BodyError::NoRoom),
            _ => Ok(()),
        }
    }

    /// The pause is too long, or all of them together are for what has come.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.waits_since.get_or_insert_with(Instant::now);
        let earned = Duration::from_secs(self.received as u64 / MIN_BYTES_PER_SECOND);
        let left = self.timeout.saturating_add(earned);
        let left = left.saturating_sub(self.waited).min(self.timeout);
        let Some(deadline) = since.checked_add(left) else {
            return Poll::Pending;
        };
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        self.timer.as_mut().poll(cx)
    }
}

impl HttpBody for MeteredBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let metered = &mut *self;
        let failed = match Pin::new(&mut metered.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame
                    .data_ref()
                    .map_or_else(|| frame.trailers_ref().map_or(0, trailer_bytes), Bytes::len);
                let num_values = frame.data_ref().map_or(0, |data| count_values(data));
                match metered.received(length, num_values) {
                    Ok(()) => return Poll::Ready(Some(Ok(frame))),
                    Err(error) => error,
                }
            }
            Poll::Ready(Some(Err(_))) => BodyError::Broken,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => match metered.poll_deadline(cx) {
                Poll::Ready(()) => BodyError::Slow,
                Poll::Pending => return Poll::Pending,
            },
        };
        metered.outcome.set(failed);
        Poll::Ready(Some(Err(failed)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Values that begin in a piece of JSON: one behind each bracket and each comma.
fn count_values(data: &[u8]) -> usize {
    let begins = |byte: &&u8| matches!(byte, b',' | b'[' | b'{');
    data.iter().filter(begins).count()
}

fn trailer_bytes(trailers: &HeaderMap) -> usize {
    let lengths = trailers.iter();
    lengths
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum()
}
