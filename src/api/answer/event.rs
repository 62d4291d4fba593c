//! What an answer is made of, whoever makes it and in whatever format it is sent.
//!
//! [`super::whole`] and each format of [`crate::api::wire`] match all kinds of content, so that the
//! compiler names every place that must know a new one.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::engine::DraftCounts;
use crate::search::{End, SearchEvent};
use crate::tool::CodeCall;

/// One piece of an answer, in the order in which they come to be. Choices are numbered over all
/// prompts of a request.
#[derive(Debug, Clone)]
pub(in crate::api) enum AnswerEvent {
    /// What a request wants to know of its prompt; comes before the prompt's choices.
    Prompt(PromptReport),
    /// More of a choice. The first one of a choice may be empty: it says that the choice has begun.
    Delta { choice: usize, delta: Delta },
    /// The last of a choice, and why nothing follows.
    End {
        choice: usize,
        last: Delta,
        end: ChoiceEnd,
    },
    /// Progress of a search, for those who asked for it.
    Search(SearchEvent),
    /// The whole answer is there.
    Done(Box<Summary>),
}

/// What is new of a choice, in this order: thoughts, text, calls.
#[derive(Debug, Clone, Default)]
pub(in crate::api) struct Delta {
    pub reasoning: String,
    pub text: String,
    pub tool_calls: Vec<ToolCallDelta>,
    /// What of the text the model did not write, in order.
    pub tool_outputs: Vec<ToolOutput>,
    /// Of the tokens since the delta before; `None` when nobody asked.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// The tokens since the delta before.
    pub token_ids: Vec<u32>,
}

impl Delta {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.reasoning.is_empty()
            && self.text.is_empty()
            && self.tool_calls.is_empty()
            && self.tool_outputs.is_empty()
            && self.logprobs.is_none()
    }

    /// Adds what comes next of the same choice.
    pub fn append(&mut self, next: Self) {
        self.reasoning.push_str(&next.reasoning);
        self.text.push_str(&next.text);
        for call in next.tool_calls {
            match call.head {
                Some(_) => self.tool_calls.push(call),
                None => self.add_arguments(call.index, call.arguments),
            }
        }
        self.tool_outputs.extend(next.tool_outputs);
        self.token_ids.extend(next.token_ids);
        if let Some(logprobs) = next.logprobs {
            self.logprobs.get_or_insert_default().extend(logprobs);
        }
    }

    /// More of the arguments of a call.
    pub fn add_arguments(&mut self, index: usize, arguments: String) {
        match self.tool_calls.last_mut() {
            Some(last) if last.index == index => last.arguments.push_str(&arguments),
            _ => self.tool_calls.push(ToolCallDelta {
                index,
                head: None,
                arguments,
            }),
        }
    }
}

/// What a program that the server ran for an answer printed into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) struct ToolOutput {
    /// As it stands in the answer.
    pub text: String,
    pub num_tokens: usize,
    /// Tokens of the model before it, of the whole choice.
    pub num_before: usize,
    pub call: Arc<CodeCall>,
}

impl ToolOutput {
    pub fn json(&self) -> Value {
        json!({
            "type": "code_interpreter",
            "code": self.call.code,
            "output": self.call.output,
            "status": self.call.status.name(),
            "text": self.text,
            "num_tokens": self.num_tokens,
        })
    }
}

/// More of a call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) struct ToolCallDelta {
    /// Of the call in its choice.
    pub index: usize,
    /// In the first piece of a call.
    pub head: Option<ToolCallHead>,
    /// JSON text.
    pub arguments: String,
}

/// What is known when a call begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) struct ToolCallHead {
    /// `call_…`.
    pub id: String,
    pub name: String,
}

/// A token's log-probability and the likeliest others in its place, best first.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::api) struct TokenLogprob {
    pub token: Token,
    pub logprob: f32,
    pub top: Vec<(Token, f32)>,
}

/// A token as clients see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) struct Token {
    pub id: u32,
    pub bytes: Vec<u8>,
    /// Texts leave the token out unless the client asks for special tokens.
    pub is_special: bool,
}

impl Token {
    /// Lossy when the token is part of a character.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// A prompt's own tokens.
#[derive(Debug, Clone)]
pub(in crate::api) struct PromptReport {
    pub prompt: usize,
    /// The prompt's text, when the answer begins with it.
    pub echo: Option<String>,
    /// Each token, with its log-probability where it has one (the first has none).
    pub tokens: Option<Vec<(Token, Option<TokenLogprob>)>>,
    /// The prompt's tokens, when the client wants to know them.
    pub token_ids: Option<Vec<u32>>,
}

/// Why a choice ended. It is decided in one place for each producer: by the engine's
/// [`crate::engine::FinishReason`] or by a stop string, by the end of a search's leaf.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::api) struct ChoiceEnd {
    pub reason: EndReason,
    pub stop: Option<StopReason>,
    /// A search's value of the answer.
    pub value: Option<f64>,
}

/// OpenAI's finish reasons, and one that no client sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum EndReason {
    Stop,
    Length,
    ToolCalls,
    /// The server ended it: the answer fails then.
    Abort,
}

impl EndReason {
    /// The name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::Abort => "abort",
        }
    }
}

impl From<End> for EndReason {
    fn from(end: End) -> Self {
        match end {
            End::Stop | End::Step => Self::Stop,
            End::Length | End::Cut | End::Unsure => Self::Length,
        }
    }
}

/// The client's own stop that ended a choice (vLLM's extension).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) enum StopReason {
    Text(String),
    Token(u32),
}

impl StopReason {
    pub fn json(&self) -> Value {
        match self {
            Self::Text(text) => text.as_str().into(),
            Self::Token(id) => (*id).into(),
        }
    }
}

/// What is known once all choices have ended.
#[derive(Debug, Clone, Default)]
pub(in crate::api) struct Summary {
    pub usage: Usage,
    /// The ids of the traces, one a prompt, when the answer was to be kept; `None` for one that
    /// could not be.
    pub traces: Option<Vec<Option<String>>>,
    /// What adaptation did, when it was asked for.
    pub adaptation: Option<Value>,
    /// The `search` object.
    pub search: Option<Value>,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::api) struct Usage {
    pub num_prompt_tokens: usize,
    /// Prompt tokens that the prefix cache had.
    pub num_cached_tokens: usize,
    /// All that were generated, those of discarded branches too.
    pub num_completion_tokens: usize,
    /// Generated tokens that are thoughts, and those that are in no answer: of a search's discarded
    /// branches.
    pub num_reasoning_tokens: usize,
    pub drafts: DraftCounts,
    /// Tokens that code printed into the answers, where it may be called: nobody generated them.
    pub num_tool_output_tokens: Option<usize>,
}
