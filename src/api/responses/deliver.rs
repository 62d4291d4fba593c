//! Streams of a response's events: of one that is made for this client, or of one in the background.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::background::Running;
use super::run::Answering;
use crate::api::answer::producer::Producer;
use crate::api::wire::format::Frame;

/// Frames buffered for a slow reader; the reader's own socket applies back-pressure after that.
const FRAME_BUFFER: usize = 64;
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The stream of a response that is made now, and ends with its reader.
pub(super) fn live(answering: Answering, producer: Producer) -> Response {
    let (frames, receiver) = mpsc::channel(FRAME_BUFFER);
    tokio::spawn(async move {
        let reader = frames.clone();
        tokio::select! {
            () = answering.streamed(producer, frames) => {}
            () = reader.closed() => {}
        }
    });
    sse(receiver)
}

/// The stream of a background response, behind an event of it.
pub(super) fn replayed(running: Arc<Running>, starting_after: Option<u64>) -> Response {
    let (frames, receiver) = mpsc::channel(FRAME_BUFFER);
    tokio::spawn(async move {
        let reader = frames.clone();
        let replay = replay(&running, starting_after, frames);
        tokio::select! {
            () = replay => {}
            () = reader.closed() => {}
        }
    });
    sse(receiver)
}

async fn replay(running: &Running, starting_after: Option<u64>, frames: mpsc::Sender<Frame>) {
    let Some(log) = &running.log else {
        return;
    };
    let mut place = 0;
    loop {
        let read = log.read(place, FRAME_BUFFER).await;
        if read.is_empty() {
            return;
        }
        place += read.len();
        for (number, frame) in read {
            let is_wanted = starting_after.is_none_or(|after| number > after);
            if is_wanted && frames.send(Frame::clone(&frame)).await.is_err() {
                return;
            }
        }
    }
}

fn sse(receiver: mpsc::Receiver<Frame>) -> Response {
    let events = ReceiverStream::new(receiver).map(|Frame { name, data }| {
        let event = Event::default();
        let event = match name {
            Some(name) => event.event(name),
            None => event,
        };
        Ok::<_, Infallible>(event.data(data))
    });
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}
