//! A stream of text, told apart.

use super::format::OutputFormat;

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
#[derive(Debug, Clone)]
pub struct OutputParser {
    _format: OutputFormat,
}

impl OutputParser {
    /// `is_thinking`: the prompt's end has opened a thought.
    pub fn new(format: OutputFormat, _is_thinking: bool) -> Self {
        Self { _format: format }
    }

    /// What a piece of text adds. Text that may still become a mark is held back.
    pub fn push(&mut self, piece: &str) -> Vec<OutputPiece> {
        vec![OutputPiece::Content(piece.to_owned())]
    }

    /// The text ends here: what was held back.
    pub fn finish(&mut self) -> Vec<OutputPiece> {
        Vec::new()
    }
}
