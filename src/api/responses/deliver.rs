//! Streams of a response's events: of one that is made for this client, or of one in the
//! background.

use std::sync::Arc;

use axum::response::Response;
use tokio::sync::mpsc;

use super::background::Running;
use super::run::Answering;
use crate::api::answer::deliver::{FRAME_BUFFER, streamed};
use crate::api::answer::producer::Producer;
use crate::api::wire::format::Frame;

/// The stream of a response that is made now, and ends with its reader.
pub(super) fn live(answering: Answering, producer: Producer) -> Response {
    streamed(|frames| answering.streamed(producer, frames))
}

/// The stream of a background response, behind an event of it.
pub(super) fn replayed(running: Arc<Running>, starting_after: Option<u64>) -> Response {
    streamed(move |frames| async move { replay(&running, starting_after, frames).await })
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
