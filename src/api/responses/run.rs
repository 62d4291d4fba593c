//! A response while it is made, for a client that waits, one that watches, or nobody.

use serde_json::Value;
use tokio::sync::mpsc;

use super::background::{EventLog, Seat};
use super::names::renamed;
use super::stored::Keeper;
use crate::api::answer::deliver::{EventSender, Produce, Sink};
use crate::api::answer::event::{AnswerEvent, Summary};
use crate::api::answer::producer::Producer;
use crate::api::error::ApiError;
use crate::api::wire::format::Frame;
use crate::api::wire::responses::{ResponseWriter, in_progress_object};

/// Events between the producer and the writer.
const EVENT_BUFFER: usize = 64;

/// Where a stream's frames go.
pub(super) enum Outlet<'a> {
    Nowhere,
    Stream(&'a mpsc::Sender<Frame>),
    Log(&'a EventLog),
}

impl Outlet<'_> {
    fn is_watched(&self) -> bool {
        !matches!(self, Self::Nowhere)
    }

    async fn send(&self, frames: Vec<Frame>, is_last: bool) {
        match self {
            Self::Nowhere => {}
            Self::Log(log) => log.push(frames, is_last),
            Self::Stream(sender) => {
                for frame in frames {
                    let _ = sender.send(frame).await;
                }
            }
        }
    }
}

/// What writes a response and keeps it.
pub(super) struct Answering {
    pub writer: ResponseWriter,
    /// `None` for a response that is not kept.
    pub keeper: Option<Keeper>,
}

impl Answering {
    /// The response, for a client that waits for the whole.
    pub async fn whole(mut self, producer: Producer) -> Result<Value, ApiError> {
        let summary = self.events(producer, &Outlet::Nowhere).await?;
        let mut response = self.writer.conclude(&summary);
        self.keep(&mut response).await;
        Ok(response)
    }

    /// The response, event by event.
    pub async fn streamed(mut self, producer: Producer, frames: mpsc::Sender<Frame>) {
        let outlet = Outlet::Stream(&frames);
        let ended = self.events(producer, &outlet).await;
        self.end(ended, &outlet).await;
    }

    /// The response, for those who ask for it later. Its place is given back once it is stored.
    pub async fn background(mut self, producer: Producer, seat: Seat) {
        let running = std::sync::Arc::clone(&seat.running);
        let outlet = match &running.log {
            Some(log) => Outlet::Log(log),
            None => Outlet::Nowhere,
        };
        running.set(in_progress_object(running.response()));
        let ended = tokio::select! {
            ended = self.events(producer, &outlet) => Some(ended),
            () = running.cancel.cancelled() => None,
        };
        let response = match ended {
            Some(ended) => self.end(ended, &outlet).await,
            None => {
                let mut response = self.writer.cancel();
                self.keep(&mut response).await;
                outlet.send(self.writer.last(&response), true).await;
                response
            }
        };
        running.set(response);
        drop(seat);
    }

    /// The end of a response whose frames go somewhere.
    async fn end(&mut self, ended: Result<Summary, ApiError>, outlet: &Outlet<'_>) -> Value {
        let mut response = match &ended {
            Ok(summary) => self.writer.conclude(summary),
            Err(error) => self.writer.fail(error),
        };
        self.keep(&mut response).await;
        let frames = match &ended {
            Ok(_) => self.writer.last(&response),
            Err(error) => self.writer.last_of_failed(error, &response),
        };
        outlet.send(frames, true).await;
        response
    }

    async fn keep(&self, response: &mut Value) {
        if let Some(keeper) = &self.keeper {
            keeper.finish(response).await;
        }
    }

    /// Writes all events but the last.
    async fn events(
        &mut self,
        producer: Producer,
        outlet: &Outlet<'_>,
    ) -> Result<Summary, ApiError> {
        outlet.send(self.writer.begin(), false).await;
        let (events, mut received) = mpsc::channel(EVENT_BUFFER);
        let is_watched = outlet.is_watched();
        let made = async move {
            let mut sender = EventSender { events, is_watched };
            producer.run(&mut Sink::Events(&mut sender)).await
        };
        tokio::pin!(made);
        let mut summary = None;
        let result = loop {
            tokio::select! {
                biased;
                Some(event) = received.recv() => self.write(event, &mut summary, outlet).await,
                result = &mut made => break result,
            }
        };
        while let Ok(event) = received.try_recv() {
            self.write(event, &mut summary, outlet).await;
        }
        result.map_err(|error| renamed(error, &[]))?;
        summary.ok_or_else(|| ApiError::internal("the answer has no end; this is a bug"))
    }

    async fn write(
        &mut self,
        event: AnswerEvent,
        summary: &mut Option<Summary>,
        outlet: &Outlet<'_>,
    ) {
        match event {
            AnswerEvent::Done(done) => *summary = Some(*done),
            event => outlet.send(self.writer.take(event), false).await,
        }
    }
}
