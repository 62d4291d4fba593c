//! What clients may ask for.

use serde_json::Value;

use super::tools::ToolGrammar;

/// What an answer must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema accepts. `strict`: a keyword that cannot be enforced is an error;
    /// otherwise it is left out.
    JsonSchema { schema: Value, strict: bool },
    /// A whole answer matches the pattern.
    Regex(String),
    /// The answer is one of these.
    Choice(Vec<String>),
    /// Lark, as llguidance reads it.
    Lark(String),
    /// llama.cpp's notation.
    Gbnf(String),
    /// Either Lark or GBNF, as vLLM's `grammar`: which one is seen from the text.
    Ebnf(String),
    /// vLLM's `structural_tag`: free text in which tags begin parts that a schema describes.
    StructuralTag(Value),
    /// Calls of tools.
    Tools(ToolGrammar),
}

/// Why a grammar is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It is wrong, or asks for what cannot be enforced.
    #[error("{0}")]
    Invalid(String),
    /// It is larger than the server's limits.
    #[error("{0}")]
    TooMuchWork(String),
}
