//! What a response carries beside its events, and the ids of all that belongs to it.

use serde_json::{Map, Value};

/// What a response carries beside its events.
#[derive(Debug, Clone, Default)]
pub(in crate::api) struct ResponseHead {
    /// The part of the response's id behind `resp_`; items' ids have it too.
    pub hex: String,
    /// Unix seconds.
    pub created: u64,
    /// The fields of the request, as the response repeats them.
    pub echo: Map<String, Value>,
    pub is_background: bool,
    pub is_streamed: bool,
    /// Thoughts are told as a summary, which is where most clients look for them.
    pub summarises: bool,
    /// Thoughts have an `encrypted_content`.
    pub encrypts: bool,
    /// Deltas have an `obfuscation`, which hides their lengths.
    pub obfuscates: bool,
}

impl ResponseHead {
    pub fn id(&self) -> String {
        response_id(&self.hex)
    }
}

/// The id of a response.
pub(in crate::api) fn response_id(hex: &str) -> String {
    format!("resp_{hex}")
}

/// The id of an item of a response's output.
pub(super) fn output_id(prefix: &str, hex: &str, index: usize) -> String {
    format!("{prefix}_{hex}{index:02x}")
}
