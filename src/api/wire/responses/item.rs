//! One item of a response's output, while it is written.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::head::{ResponseHead, output_id};
use crate::api::answer::event::{Token, TokenLogprob, ToolCallHead};

/// Before the text of a thought in an `encrypted_content`.
const THOUGHT: &str = "ponder1:";

/// An item that is not done.
#[derive(Debug)]
pub(super) struct OpenItem {
    id: String,
    pub kind: Kind,
    /// Of a thought or a message, the arguments of a call.
    pub text: String,
    summarises: bool,
    encrypts: bool,
}

#[derive(Debug)]
pub(super) enum Kind {
    Reasoning,
    Message {
        logprobs: Vec<TokenLogprob>,
    },
    Call {
        /// Of the call in its answer.
        index: usize,
        head: ToolCallHead,
    },
}

type Fields = Vec<(&'static str, Value)>;

impl OpenItem {
    pub fn new(kind: Kind, hex: &str, index: usize, head: &ResponseHead) -> Self {
        let prefix = match kind {
            Kind::Reasoning => "rs",
            Kind::Message { .. } => "msg",
            Kind::Call { .. } => "fc",
        };
        Self {
            id: output_id(prefix, hex, index),
            kind,
            text: String::new(),
            summarises: head.summarises,
            encrypts: head.encrypts,
        }
    }

    /// The item. `is_new`: as it is before its first delta.
    pub fn json(&self, status: &str, is_new: bool) -> Value {
        match &self.kind {
            Kind::Reasoning => self.reasoning(status, is_new),
            Kind::Message { .. } => {
                let content = match is_new {
                    true => Vec::new(),
                    false => vec![self.part(false)],
                };
                json!({"id": self.id, "type": "message", "status": status, "role": "assistant",
                    "content": content})
            }
            Kind::Call { head, .. } => json!({"id": self.id, "type": "function_call",
                "status": status, "arguments": self.text, "call_id": head.id, "name": head.name}),
        }
    }

    fn reasoning(&self, status: &str, is_new: bool) -> Value {
        let parts = match is_new {
            true => Vec::new(),
            false => vec![self.part(false)],
        };
        let (summary, content) = match self.summarises {
            true => (parts, Vec::new()),
            false => (Vec::new(), parts),
        };
        let encrypted = (self.encrypts && !is_new).then(|| encode_thought(&self.text));
        json!({"id": self.id, "type": "reasoning", "summary": summary, "content": content,
            "encrypted_content": encrypted, "status": status})
    }

    /// The one part of a thought or a message; null for a call.
    fn part(&self, is_new: bool) -> Value {
        match &self.kind {
            Kind::Reasoning if self.summarises => {
                json!({"type": "summary_text", "text": self.text})
            }
            Kind::Reasoning => json!({"type": "reasoning_text", "text": self.text}),
            Kind::Message { logprobs } => {
                let logprobs = match is_new {
                    true => json!([]),
                    false => long_logprobs(logprobs),
                };
                json!({"type": "output_text", "annotations": [], "logprobs": logprobs,
                    "text": self.text})
            }
            Kind::Call { .. } => Value::Null,
        }
    }

    /// The event about the item's part.
    pub fn part_event(&self, what: &str, is_new: bool) -> Option<(&'static str, Value)> {
        let is_summary = self.summarises && matches!(self.kind, Kind::Reasoning);
        let name = match (&self.kind, is_summary, what) {
            (Kind::Call { .. }, _, _) => return None,
            (_, true, "added") => "response.reasoning_summary_part.added",
            (_, true, _) => "response.reasoning_summary_part.done",
            (_, false, "added") => "response.content_part.added",
            (_, false, _) => "response.content_part.done",
        };
        Some((name, self.part(is_new)))
    }

    /// The events that repeat all of the item's text.
    pub fn done_events(&self) -> Vec<(&'static str, Fields)> {
        let text = || Value::from(self.text.as_str());
        let event = match &self.kind {
            Kind::Reasoning if self.summarises => (
                "response.reasoning_summary_text.done",
                vec![("text", text())],
            ),
            Kind::Reasoning => ("response.reasoning_text.done", vec![("text", text())]),
            Kind::Message { logprobs } => (
                "response.output_text.done",
                vec![("text", text()), ("logprobs", short_logprobs(logprobs))],
            ),
            Kind::Call { head, .. } => (
                "response.function_call_arguments.done",
                vec![("name", head.name.as_str().into()), ("arguments", text())],
            ),
        };
        vec![event]
    }

    /// Where the item is, and more.
    pub fn place(
        &self,
        index: usize,
        fields: impl IntoIterator<Item = (&'static str, Value)>,
    ) -> Value {
        let mut place = Map::new();
        place.insert("item_id".to_owned(), self.id.as_str().into());
        place.insert("output_index".to_owned(), index.into());
        match self.kind {
            Kind::Reasoning if self.summarises => {
                place.insert("summary_index".to_owned(), 0.into());
            }
            Kind::Reasoning | Kind::Message { .. } => {
                place.insert("content_index".to_owned(), 0.into());
            }
            Kind::Call { .. } => {}
        }
        place.extend(
            fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value)),
        );
        place.into()
    }
}

/// A thought for clients that send it back: encoded, and no secret, since nothing of it is one.
fn encode_thought(text: &str) -> String {
    format!("{THOUGHT}{}", STANDARD.encode(text))
}

/// The text of an `encrypted_content`, if it is one of this server's.
pub(in crate::api) fn decode_thought(encrypted: &str) -> Option<String> {
    let bytes = STANDARD.decode(encrypted.strip_prefix(THOUGHT)?).ok()?;
    String::from_utf8(bytes).ok()
}

fn token_json(token: &Token, logprob: f32, has_bytes: bool) -> Map<String, Value> {
    let mut entry = Map::new();
    entry.insert("token".to_owned(), token.text().into());
    if has_bytes {
        entry.insert("bytes".to_owned(), token.bytes.as_slice().into());
    }
    entry.insert("logprob".to_owned(), logprob.into());
    entry
}

fn logprobs_json(tokens: &[TokenLogprob], has_bytes: bool) -> Value {
    let entry = |entry: &TokenLogprob| {
        let mut own = token_json(&entry.token, entry.logprob, has_bytes);
        let top = entry.top.iter();
        let top = top.map(|(token, logprob)| token_json(token, *logprob, has_bytes).into());
        own.insert(
            "top_logprobs".to_owned(),
            top.collect::<Vec<Value>>().into(),
        );
        Value::Object(own)
    };
    tokens.iter().map(entry).collect::<Vec<_>>().into()
}

/// Those of an item.
fn long_logprobs(tokens: &[TokenLogprob]) -> Value {
    logprobs_json(tokens, true)
}

/// Those of an event, which have no bytes.
pub(super) fn short_logprobs(tokens: &[TokenLogprob]) -> Value {
    logprobs_json(tokens, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_come_back() {
        for text in ["", "a", "ä\n\"😸\""] {
            assert_eq!(decode_thought(&encode_thought(text)).as_deref(), Some(text));
        }
        for bad in ["", "gAAAAA==", "ponder1:?", "ponder1:/w=="] {
            assert_eq!(decode_thought(bad), None, "{bad}");
        }
    }
}
