//! The text of a choice on its way to the client, told apart: thoughts, calls of tools, the answer
//! itself. What a choice's end is called, and how many of its tokens were thoughts, is decided here
//! for every producer.

use std::sync::Arc;

use serde_json::Value;

use super::event::{
    ChoiceEnd, Delta, EndReason, StopReason, ToolCallDelta, ToolCallHead, ToolOutput,
};
use crate::search::Piece;
use crate::text::{Detokenizer, OutputFormat, OutputParser, OutputPiece, Tokenizer, ToolFormat};

/// Letters and digits of a call's id behind `call_`.
const CALL_ID_LEN: usize = 24;
/// All of a call's id that Mistral's templates take.
const MISTRAL_ID_LEN: usize = 9;

/// How the text of an answer is read.
#[derive(Debug, Clone)]
pub(in crate::api) struct ReadingRules {
    /// The marks that are looked for; by default none, and the text is all content.
    pub format: OutputFormat,
    /// The end of the prompt has opened a thought.
    pub is_thinking: bool,
    /// Thoughts are sent.
    pub shows_reasoning: bool,
    /// Calls that are sent at most.
    pub max_calls: usize,
    /// The one call was named by the client. OpenAI's finish reason is `stop` then.
    pub is_named: bool,
    /// Marks that are special tokens: the detokenizer must show them.
    pub visible: Vec<u32>,
    /// The tools that the request offers, as OpenAI has them.
    pub tools: Arc<[Value]>,
    /// Calls count without their marks, too: no JSON is asked for that could look like one.
    pub reads_unmarked: bool,
}

impl Default for ReadingRules {
    fn default() -> Self {
        Self {
            format: OutputFormat::default(),
            is_thinking: false,
            shows_reasoning: true,
            max_calls: usize::MAX,
            is_named: false,
            visible: Vec::new(),
            tools: Arc::default(),
            reads_unmarked: true,
        }
    }
}

impl ReadingRules {
    /// Rules for a format whose marks this tokenizer may know as special tokens.
    pub fn of(format: OutputFormat, tokenizer: &Tokenizer) -> Self {
        let marks = format.marks();
        let ids = marks.iter().filter_map(|mark| tokenizer.token_to_id(mark));
        Self {
            visible: ids.filter(|id| tokenizer.is_special(*id)).collect(),
            format,
            ..Self::default()
        }
    }

    fn parser(&self) -> Option<OutputParser> {
        let format = &self.format;
        if format.tools.is_none() && format.reasoning.is_none() {
            return None;
        }
        let mut parser = OutputParser::new(format.clone(), self.is_thinking);
        // Hermes has a mark always; other formats begin calls with less.
        if self.reads_unmarked || format.tools != Some(ToolFormat::Hermes) {
            let names = self.tools.iter();
            parser = parser.with_tools(names.filter_map(|it| it["function"]["name"].as_str()));
        }
        Some(parser.with_schemas(&self.tools))
    }
}

/// Reads the text of one choice.
#[derive(Debug, Clone)]
pub(in crate::api) struct Reader {
    parser: Option<OutputParser>,
    tools: Option<ToolFormat>,
    shows_reasoning: bool,
    max_calls: usize,
    is_named: bool,
    num_thought_tokens: usize,
    num_calls: usize,
}

impl Reader {
    pub fn new(rules: &ReadingRules) -> Self {
        let format = &rules.format;
        Self {
            parser: rules.parser(),
            tools: format.tools,
            shows_reasoning: rules.shows_reasoning,
            max_calls: rules.max_calls,
            is_named: rules.is_named,
            num_thought_tokens: 0,
            num_calls: 0,
        }
    }

    /// What a token's text adds; the text may be empty.
    pub fn token(&mut self, text: &str) -> Delta {
        let was_thinking = self.is_thinking();
        let delta = self.push(text);
        // The marks themselves are no thoughts.
        self.num_thought_tokens += usize::from(was_thinking && self.is_thinking());
        delta
    }

    fn is_thinking(&self) -> bool {
        self.parser.as_ref().is_some_and(OutputParser::is_thinking)
    }

    /// What more text adds.
    pub fn push(&mut self, text: &str) -> Delta {
        let pieces = match &mut self.parser {
            None => {
                return Delta {
                    text: text.to_owned(),
                    ..Delta::default()
                };
            }
            Some(_) if text.is_empty() => Vec::new(),
            Some(parser) => parser.push(text),
        };
        self.delta(pieces)
    }

    /// Something follows that the model did not write: what was held back.
    pub fn flush(&mut self) -> Delta {
        let pieces = self.parser.as_mut().map(OutputParser::flush);
        self.delta(pieces.unwrap_or_default())
    }

    /// What text adds that the model did not write: it holds no marks.
    pub fn insert(&mut self, text: &str) -> Delta {
        match &mut self.parser {
            None => self.push(text),
            Some(parser) => {
                let pieces = parser.insert(text);
                self.delta(pieces)
            }
        }
    }

    /// What a part of an answer adds; what a program printed is alone in its delta.
    pub fn piece(&mut self, piece: Piece) -> Vec<Delta> {
        let (text, num_tokens, num_before, call) = match piece {
            Piece::Own(text) => return vec![self.push(&text)],
            Piece::Inserted {
                text,
                num_tokens,
                num_before,
                call,
            } => (text, num_tokens, num_before, call),
        };
        let own = self.flush();
        if self.is_thinking() && !self.shows_reasoning {
            return vec![own];
        }
        let mut delta = self.insert(&text);
        delta.tool_outputs.push(ToolOutput {
            text,
            num_tokens,
            num_before,
            call,
        });
        let deltas = [own, delta].into_iter();
        deltas.filter(|delta| !delta.is_empty()).collect()
    }

    /// The text ends: what was held back. Nothing is read after that.
    pub fn finish(&mut self) -> Delta {
        let pieces = self.parser.take().map(|mut parser| parser.finish());
        self.delta(pieces.unwrap_or_default())
    }

    /// Tokens that were thoughts so far.
    pub fn num_thought_tokens(&self) -> usize {
        self.num_thought_tokens
    }

    /// The end as clients are told of it, once the text is read.
    pub fn end(&self, end: ChoiceEnd) -> ChoiceEnd {
        // A stop string cuts; the model itself ends with its calls.
        let is_cut = matches!(end.stop, Some(StopReason::Text(_)));
        let has_called = self.num_calls > 0 && !self.is_named && !is_cut;
        match end.reason {
            EndReason::Stop if has_called => ChoiceEnd {
                reason: EndReason::ToolCalls,
                ..end
            },
            _ => end,
        }
    }

    fn delta(&mut self, pieces: Vec<OutputPiece>) -> Delta {
        let mut delta = Delta::default();
        for piece in pieces {
            match piece {
                OutputPiece::Content(text) => delta.text.push_str(&text),
                OutputPiece::Reasoning(text) if self.shows_reasoning => {
                    delta.reasoning.push_str(&text);
                }
                OutputPiece::Reasoning(_) => {}
                OutputPiece::Call { index, name } if index < self.max_calls => {
                    self.num_calls = self.num_calls.max(index + 1);
                    let id = new_call_id(self.tools);
                    delta.tool_calls.push(ToolCallDelta {
                        index,
                        head: Some(ToolCallHead { id, name }),
                        arguments: String::new(),
                    });
                }
                OutputPiece::Arguments { index, text } if index < self.max_calls => {
                    delta.add_arguments(index, text);
                }
                OutputPiece::Call { .. } | OutputPiece::Arguments { .. } => {}
            }
        }
        delta
    }
}

/// Tokens of a whole answer that are thoughts.
pub(in crate::api) fn num_thought_tokens(
    rules: &ReadingRules,
    mut detokenizer: Detokenizer,
    token_ids: &[u32],
) -> usize {
    if rules.format.reasoning.is_none() {
        return 0;
    }
    let mut reader = Reader::new(rules);
    for token_id in token_ids {
        reader.token(&detokenizer.push(*token_id));
    }
    reader.num_thought_tokens()
}

fn new_call_id(tools: Option<ToolFormat>) -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    match tools {
        Some(ToolFormat::Mistral) => random[..MISTRAL_ID_LEN].to_owned(),
        _ => format!("call_{}", &random[..CALL_ID_LEN]),
    }
}
