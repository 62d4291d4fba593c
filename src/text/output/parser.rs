//! A stream of text, told apart.

use std::collections::BTreeSet;

use serde_json::Value;

use super::deepseek::DeepSeek;
use super::format::{OutputFormat, ReasoningFormat, ToolFormat};
use super::harmony::Harmony;
use super::json_calls::JsonCalls;
use super::mistral::Mistral;
use super::offered::Offered;
use super::out::Out;
use super::parameters::Parameters;
use super::pythonic::Pythonic;
use super::qwen3_coder::Qwen3Coder;
use super::thoughts::Thoughts;

/// A part of an answer. Pieces of a call follow each other, and calls do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputPiece {
    Content(String),
    Reasoning(String),
    /// A call begins; its name is whole. `index` counts the calls of one answer.
    Call {
        index: usize,
        name: String,
    },
    /// More of the arguments of a call, as JSON text.
    Arguments {
        index: usize,
        text: String,
    },
}

/// Tells a model's text apart while it comes.
///
/// - Pieces depend on the text alone, not on how it is cut. Text that may still become a mark or a
///   call is held back, and nothing else.
/// - A call is told as soon as its name is certain. Its arguments follow as the model writes them,
///   in formats of JSON byte for byte. A call without arguments has `{}`. Brackets that are missing
///   before a closing mark are added.
/// - What turns out to be no call is content. A call that the text's end cuts has the arguments so
///   far; one whose name is not known yet is content.
/// - White space around thoughts, and between content and the calls that end an answer, is left out.
#[derive(Debug, Clone)]
pub struct OutputParser {
    tools: Option<ToolFormat>,
    offered: Offered,
    parameters: Parameters,
    thoughts: Thoughts,
    calls: Calls,
    out: Out,
}

#[derive(Debug, Clone)]
enum Calls {
    None,
    Json(Box<JsonCalls>),
    Mistral(Box<Mistral>),
    Pythonic(Box<Pythonic>),
    DeepSeek(Box<DeepSeek>),
    Qwen3Coder(Box<Qwen3Coder>),
    /// Reads thoughts, too.
    Harmony(Box<Harmony>),
}

impl OutputParser {
    /// `is_thinking`: the prompt's end has opened a thought.
    pub fn new(format: OutputFormat, is_thinking: bool) -> Self {
        let is_harmony = format.is_harmony();
        let tells_thoughts = format
            .reasoning
            .as_ref()
            .is_some_and(ReasoningFormat::is_harmony);
        let reads_calls = format.tools == Some(ToolFormat::Harmony);
        let mut parser = Self {
            tools: format.tools,
            offered: Offered::default(),
            parameters: Parameters::default(),
            thoughts: Thoughts::new(format.reasoning.filter(|_| !is_harmony), is_thinking),
            calls: Calls::None,
            out: Out::default(),
        };
        parser.out.holds_space = is_harmony || parser.tools.is_some();
        match is_harmony {
            true => {
                let is_thinking = tells_thoughts && is_thinking;
                let reader = Harmony::new(tells_thoughts, reads_calls, is_thinking);
                parser.calls = Calls::Harmony(Box::new(reader));
            }
            false => parser.choose_calls(),
        }
        parser
    }

    /// The names of the tools that the request offers; before any text.
    ///
    /// Calls that no mark shows (Hermes' and Llama's bare or fenced objects, Python's lists) count
    /// only if their tool is offered, and are content otherwise. Behind a mark every name is a
    /// call: the reader of the pieces decides what to do with it.
    ///
    /// Without this, bare objects count in Llama's format and lists in Python's whatever they name,
    /// but only at the beginning of an answer, and Hermes' format reads `<tool_call>` alone.
    pub fn with_tools<I: IntoIterator<Item: Into<String>>>(mut self, names: I) -> Self {
        let names: BTreeSet<String> = names.into_iter().map(Into::into).collect();
        self.offered = Offered::new(names);
        self.choose_calls();
        self
    }

    /// The tools in OpenAI's shape, whose schemas say which parameters are strings: Qwen3-Coder
    /// writes values without quotes. Other formats do not need them.
    pub fn with_schemas(mut self, tools: &[Value]) -> Self {
        self.parameters = Parameters::new(tools);
        self.choose_calls();
        self
    }

    fn choose_calls(&mut self) {
        // All of its calls have marks and JSON.
        if matches!(self.calls, Calls::Harmony(_)) {
            return;
        }
        let offered = self.offered.clone();
        self.calls = match self.tools {
            None | Some(ToolFormat::Harmony) => Calls::None,
            Some(ToolFormat::Hermes) => Calls::Json(Box::new(JsonCalls::hermes(offered))),
            Some(ToolFormat::Llama3Json) => Calls::Json(Box::new(JsonCalls::llama(offered))),
            Some(ToolFormat::Mistral) => Calls::Mistral(Box::new(Mistral::new())),
            Some(ToolFormat::Pythonic) => Calls::Pythonic(Box::new(Pythonic::new(offered))),
            Some(ToolFormat::DeepSeek) => Calls::DeepSeek(Box::new(DeepSeek::new())),
            Some(ToolFormat::Qwen3Coder) => {
                let reader = Qwen3Coder::new(self.parameters.clone());
                Calls::Qwen3Coder(Box::new(reader))
            }
        };
    }

    /// Whether the text so far ends inside a thought.
    pub fn is_thinking(&self) -> bool {
        match &self.calls {
            Calls::Harmony(reader) => reader.is_thinking(),
            _ => self.thoughts.is_thinking(),
        }
    }

    /// What a piece of text adds. Text that may still become a mark is held back.
    pub fn push(&mut self, piece: &str) -> Vec<OutputPiece> {
        let mut chars = piece.chars();
        let mut body = String::new();
        while !self.thoughts.is_body() {
            let Some(c) = chars.next() else {
                break;
            };
            self.thoughts.push(c, &mut self.out, &mut body);
        }
        body.push_str(chars.as_str());
        self.read(&body);
        self.out.take()
    }

    /// What was held back: what follows is no part of it.
    ///
    /// gpt-oss' format is read on: its marks are control tokens, which nothing is held back for.
    pub fn flush(&mut self) -> Vec<OutputPiece> {
        if matches!(self.calls, Calls::Harmony(_)) {
            return self.out.take();
        }
        match self.thoughts.is_thinking() {
            true => self.thoughts.flush(&mut self.out),
            false => {
                self.settle();
                self.choose_calls();
            }
        }
        self.out.take()
    }

    /// What a text adds that the model did not write: marks in it are text. It belongs to the
    /// thought or the content that it stands in.
    pub fn insert(&mut self, text: &str) -> Vec<OutputPiece> {
        let mut pieces = self.flush();
        match &mut self.calls {
            Calls::Harmony(reader) => reader.push(text, &mut self.out),
            _ if self.thoughts.is_thinking() => self.thoughts.insert(text, &mut self.out),
            _ => self.out.content(text),
        }
        pieces.extend(self.out.take());
        pieces
    }

    /// The text ends here: what was held back.
    pub fn finish(&mut self) -> Vec<OutputPiece> {
        self.settle();
        self.out.finish();
        self.out.take()
    }

    /// Nothing follows of what was held back.
    fn settle(&mut self) {
        let mut body = String::new();
        self.thoughts.finish(&mut self.out, &mut body);
        self.read(&body);
        let out = &mut self.out;
        match &mut self.calls {
            Calls::None => {}
            Calls::Json(reader) => reader.finish(out),
            Calls::Mistral(reader) => reader.finish(out),
            Calls::Pythonic(reader) => reader.finish(out),
            Calls::DeepSeek(reader) => reader.finish(out),
            Calls::Qwen3Coder(reader) => reader.finish(out),
            Calls::Harmony(reader) => reader.finish(out),
        }
    }

    fn read(&mut self, body: &str) {
        let out = &mut self.out;
        match &mut self.calls {
            Calls::None => out.content(body),
            Calls::Json(reader) => reader.push(body, out),
            Calls::Mistral(reader) => reader.push(body, out),
            Calls::Pythonic(reader) => reader.push(body, out),
            Calls::DeepSeek(reader) => reader.push(body, out),
            Calls::Qwen3Coder(reader) => reader.push(body, out),
            Calls::Harmony(reader) => reader.push(body, out),
        }
    }
}
