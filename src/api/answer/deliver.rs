//! An answer on its way to the client: as one body, or as server-sent events while it is made.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use axum::Json;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::event::AnswerEvent;
use super::whole::Whole;
use crate::api::error::ApiError;
use crate::api::wire::format::{Format, Frame};

/// Frames buffered for a slow reader; the reader's own socket applies back-pressure after that.
pub(in crate::api) const FRAME_BUFFER: usize = 64;
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Makes an answer. Dropping its future aborts what it asked the engine for.
pub(in crate::api) trait Produce: Send + 'static {
    /// Sends every event of the answer, the last of which is [`AnswerEvent::Done`].
    fn run(self, sink: &mut Sink<'_>) -> impl Future<Output = Result<(), ApiError>> + Send;
}

/// Where events go.
pub(in crate::api) enum Sink<'a> {
    Whole(&'a mut Whole),
    Stream(&'a mut FrameSender),
    /// To whoever makes of them what its client asked for.
    Events(&'a mut EventSender),
}

/// The writing half of a queue of events.
pub(in crate::api) struct EventSender {
    pub events: mpsc::Sender<AnswerEvent>,
    pub is_watched: bool,
}

/// The writing half of a stream.
pub(in crate::api) struct FrameSender {
    format: Box<dyn Format>,
    frames: mpsc::Sender<Frame>,
}

impl Sink<'_> {
    /// Whether somebody sees the events one by one.
    pub fn is_watched(&self) -> bool {
        match self {
            Self::Whole(_) => false,
            Self::Stream(_) => true,
            Self::Events(sender) => sender.is_watched,
        }
    }

    /// Waits for a reader who is slow. One who is gone is noticed by [`deliver`].
    pub async fn send(&mut self, event: AnswerEvent) {
        match self {
            Self::Whole(whole) => whole.take(event),
            Self::Stream(stream) => {
                let frames = stream.format.frames(event);
                stream.write(frames).await;
            }
            Self::Events(sender) => {
                let _ = sender.events.send(event).await;
            }
        }
    }
}

impl FrameSender {
    async fn write(&mut self, frames: Vec<Frame>) {
        for frame in frames {
            let _ = self.frames.send(frame).await;
        }
    }
}

/// Answers as the client asked.
pub(in crate::api) async fn deliver(
    producer: impl Produce,
    mut format: Box<dyn Format>,
    is_stream: bool,
) -> Result<Response, ApiError> {
    if is_stream {
        return Ok(stream(producer, format));
    }
    let mut whole = Whole::default();
    producer.run(&mut Sink::Whole(&mut whole)).await?;
    Ok(Json(format.body(whole)).into_response())
}

fn stream(producer: impl Produce, format: Box<dyn Format>) -> Response {
    streamed(|frames| async move {
        let mut sender = FrameSender { format, frames };
        if let Err(error) = producer.run(&mut Sink::Stream(&mut sender)).await {
            let frames = sender.format.error(&error);
            sender.write(frames).await;
        }
    })
}

/// A stream of the frames that `write` sends. A reader who goes away ends the answer: dropping it
/// aborts its requests.
pub(in crate::api) fn streamed<F>(write: impl FnOnce(mpsc::Sender<Frame>) -> F) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    let (frames, receiver) = mpsc::channel(FRAME_BUFFER);
    let reader = frames.clone();
    let written = write(frames);
    tokio::spawn(async move {
        tokio::select! {
            () = written => {}
            () = reader.closed() => {}
        }
    });
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
