//! What an answer must look like: JSON schemas, patterns, grammars and the calls of tools, as constraints on tokens.
//!
//! The parsers and the masks are llguidance's. This room builds its grammars, bounds their compilation, and gives the engine a
//! [`crate::engine::TokenConstraint`] of each. It knows no HTTP.

mod combined;
mod spec;
mod tools;

pub use combined::{both, either};
pub use spec::{Grammar, GrammarError};
pub use tools::{ToolGrammar, ToolSpec};

use crate::engine::TokenConstraint;
use crate::text::Tokenizer;
use crate::work::Budget;

/// Compiles grammars for one tokenizer.
#[derive(Debug, Clone)]
pub struct Grammars {
    vocab_size: usize,
}

impl Grammars {
    /// `vocab_size` is the model's: its logits may have more places than the tokenizer has tokens.
    ///
    /// # Errors
    /// Where the tokenizer is one that grammars cannot be made for.
    pub fn new(_tokenizer: &Tokenizer, vocab_size: usize) -> Result<Self, GrammarError> {
        Ok(Self { vocab_size })
    }

    /// A constraint at the beginning of an answer.
    ///
    /// # Errors
    /// [`GrammarError`]: the grammar's own fault, or too much work.
    pub fn compile(
        &self,
        _grammar: &Grammar,
        _budget: &Budget,
    ) -> Result<Box<dyn TokenConstraint>, GrammarError> {
        Err(GrammarError::Invalid(format!(
            "grammars over {} tokens are not built yet",
            self.vocab_size
        )))
    }
}

/// Where a model thinks before it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thought {
    pub start: Vec<u32>,
    pub end: Vec<u32>,
    pub is_open: bool,
    pub max_tokens: Option<usize>,
}

pub fn after_thought(
    _thought: Thought,
    rest: Option<Box<dyn TokenConstraint>>,
    _vocab_size: usize,
) -> Box<dyn TokenConstraint> {
    rest.unwrap_or_else(|| Box::new(crate::engine::AllowedTokens::new(0, [])))
}
