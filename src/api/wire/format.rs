//! The trait of formats: how an answer's events become JSON.

use serde_json::Value;

use crate::api::answer::event::AnswerEvent;
use crate::api::answer::whole::Whole;
use crate::api::error::ApiError;

/// One server-sent event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) struct Frame {
    /// Its `event` field, in formats that name their events.
    pub name: Option<&'static str>,
    pub data: String,
}

impl Frame {
    pub fn of(json: &Value) -> Self {
        Self {
            name: None,
            data: json.to_string(),
        }
    }
}

/// Writes one answer, as a whole or event by event.
pub(in crate::api) trait Format: Send {
    /// The body of an answer that is there.
    fn body(&mut self, whole: Whole) -> Value;

    /// What an event adds to the stream, in order; the last event ends it.
    fn frames(&mut self, event: AnswerEvent) -> Vec<Frame>;

    /// The end of a stream that failed.
    fn error(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::of(&error.body())]
    }
}
