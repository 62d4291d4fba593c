//! `/v1/chat/completions`: bodies and chunks.

use serde_json::{Map, Value, json};

use super::envelope::{Head, prompt_logprobs};
use super::format::{Format, Frame};
use crate::api::answer::event::{AnswerEvent, ChoiceEnd, Delta, Token, TokenLogprob};
use crate::api::answer::whole::{Whole, WholeChoice};

pub(super) const ID_PREFIX: &str = "chatcmpl";
const BODY: &str = "chat.completion";
const CHUNK: &str = "chat.completion.chunk";

/// One chat answer.
pub(super) struct ChatFormat {
    head: Head,
    /// Choices whose role was sent.
    started: Vec<bool>,
}

impl ChatFormat {
    pub fn new(head: Head) -> Self {
        Self {
            head,
            started: Vec::new(),
        }
    }

    fn chunk(&self, index: usize, delta: Value, logprobs: Value, reason: Option<&str>) -> Frame {
        let choice = json!({
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": reason,
        });
        self.head.chunk(CHUNK, choice)
    }

    /// The role comes alone before all else of a choice, the finish reason alone after it.
    fn chunks(&mut self, index: usize, delta: Delta, end: Option<&ChoiceEnd>) -> Vec<Frame> {
        if self.started.len() <= index {
            self.started.resize(index + 1, false);
        }
        let mut frames = Vec::new();
        if !std::mem::replace(&mut self.started[index], true) {
            let role = json!({"role": "assistant", "content": ""});
            frames.push(self.chunk(index, role, Value::Null, None));
        }
        if !delta.text.is_empty() || delta.logprobs.is_some() {
            let mut content = Map::new();
            if !delta.text.is_empty() {
                content.insert("content".to_owned(), delta.text.into());
            }
            let logprobs = logprobs(delta.logprobs);
            frames.push(self.chunk(index, content.into(), logprobs, None));
        }
        if let Some(end) = end {
            let reason = Some(end.reason.name());
            frames.push(self.chunk(index, json!({}), Value::Null, reason));
        }
        frames
    }
}

impl Format for ChatFormat {
    fn body(&mut self, whole: Whole) -> Value {
        let prompt_logprobs = prompt_logprobs(whole.prompt(0));
        let choices = whole.choices.into_iter().enumerate();
        let choices = choices.map(|(index, choice)| body_choice(index, choice));
        let mut body = self.head.envelope(BODY, choices.collect());
        if self.head.shows_prompt_logprobs {
            body["prompt_logprobs"] = prompt_logprobs;
        }
        self.head.conclude(&mut body, &whole.summary);
        body
    }

    fn frames(&mut self, event: AnswerEvent) -> Vec<Frame> {
        match event {
            // Streams have no place for it.
            AnswerEvent::Prompt(_) => Vec::new(),
            AnswerEvent::Delta { choice, delta } => self.chunks(choice, delta, None),
            AnswerEvent::End { choice, last, end } => self.chunks(choice, last, Some(&end)),
            AnswerEvent::Search(progress) => vec![self.head.progress(CHUNK, &progress)],
            AnswerEvent::Done(summary) => self.head.last_frames(CHUNK, &summary),
        }
    }
}

fn body_choice(index: usize, choice: WholeChoice) -> Value {
    let mut body = json!({
        "index": index,
        "message": {"role": "assistant", "content": choice.text, "refusal": null},
        "logprobs": logprobs(choice.logprobs),
        "finish_reason": choice.end.as_ref().map(|end| end.reason.name()),
    });
    if let Some(value) = choice.end.and_then(|end| end.value) {
        body["value"] = value.into();
    }
    body
}

/// OpenAI's `logprobs` object.
fn logprobs(tokens: Option<Vec<TokenLogprob>>) -> Value {
    let Some(tokens) = tokens else {
        return Value::Null;
    };
    let content = tokens.iter().map(|entry| {
        let mut own = token_json(&entry.token, entry.logprob);
        let top = entry.top.iter();
        let top: Vec<Value> = top
            .map(|(token, logprob)| token_json(token, *logprob).into())
            .collect();
        own.insert("top_logprobs".to_owned(), top.into());
        Value::Object(own)
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

fn token_json(token: &Token, logprob: f32) -> Map<String, Value> {
    let mut entry = Map::new();
    entry.insert("token".to_owned(), token.text().into());
    entry.insert("logprob".to_owned(), logprob.into());
    entry.insert("bytes".to_owned(), token.bytes.as_slice().into());
    entry
}
