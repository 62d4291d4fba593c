//! What an answer must look like: JSON schemas, patterns, grammars and the calls of tools, as
//! constraints on tokens.
//!
//! The parsers and the masks are llguidance's. This room builds its grammars, bounds their
//! compilation, and gives the engine a [`crate::engine::TokenConstraint`] of each. It knows no
//! HTTP.

mod cache;
mod calls;
mod combined;
mod compile;
mod constraint;
mod gbnf;
mod lark;
pub mod limits;
mod marked;
mod numbers;
mod schema;
mod source;
mod spec;
mod tags;
#[cfg(test)]
mod tests;
mod thought;
mod tools;
mod vocabulary;
mod watch;

pub use combined::either;
pub use marked::with_mark;
pub use spec::{Grammar, GrammarError};
pub use thought::{Thought, after_thought, prefixed};
pub use tools::{ToolGrammar, ToolSpec};

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::api::ParserLimits;
use llguidance::earley::SlicedBiasComputer;
use toktrie::InferenceCapabilities;

use crate::engine::TokenConstraint;
use crate::text::Tokenizer;
use crate::work::Budget;
use cache::Cache;
use compile::{Compiled, Slots};
use vocabulary::Vocabulary;
use watch::Watch;

/// Compiles grammars for one tokenizer; cheap to clone.
#[derive(Clone)]
pub struct Grammars {
    inner: Arc<Inner>,
}

struct Inner {
    vocabulary: Arc<Vocabulary>,
    factory: Arc<ParserFactory>,
    cache: Cache<Compiled>,
    slots: Slots,
    watch: Watch,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Grammars({:?})", self.inner.vocabulary)
    }
}

impl Grammars {
    /// `vocab_size` is the model's: its logits may have more places than the tokenizer has tokens.
    /// Takes about half a second for a vocabulary of 150,000 tokens.
    ///
    /// # Errors
    /// Where the tokenizer is one that grammars cannot be made for.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Self, GrammarError> {
        Self::within(tokenizer, vocab_size, limits::parser_limits())
    }

    fn within(
        tokenizer: &Tokenizer,
        vocab_size: usize,
        parser_limits: ParserLimits,
    ) -> Result<Self, GrammarError> {
        let vocabulary = Vocabulary::new(tokenizer, vocab_size)?;
        let factory = ParserFactory::new(
            vocabulary.env(),
            InferenceCapabilities::default(),
            &SlicedBiasComputer::json_slices(),
        );
        let mut factory = factory.map_err(|error| GrammarError::Invalid(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = parser_limits;
        let inner = Inner {
            vocabulary: Arc::new(vocabulary),
            factory: Arc::new(factory),
            cache: Cache::new(limits::MAX_CACHED_GRAMMARS, limits::MAX_CACHED_BYTES),
            slots: Slots::default(),
            watch: Watch::new(limits::MAX_MASK_TIME),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// A constraint at the beginning of an answer. A grammar that was compiled before costs a copy.
    ///
    /// # Errors
    /// [`GrammarError`]: the grammar's own fault, or too much work.
    pub fn compile(
        &self,
        grammar: &Grammar,
        budget: &Budget,
    ) -> Result<Box<dyn TokenConstraint>, GrammarError> {
        let Inner {
            vocabulary,
            factory,
            cache,
            slots,
            watch,
        } = &*self.inner;
        let key = source::key(grammar)?;
        let compiled = match cache.get(&key) {
            Some(compiled) => compiled,
            None => {
                let compiled = compile::compile(grammar, vocabulary, factory, slots, budget);
                let compiled = compiled.map_err(|error| source::with_place(grammar, error))?;
                let compiled = Arc::new(compiled);
                cache.insert(key, Arc::clone(&compiled), compiled.num_bytes);
                compiled
            }
        };
        Ok(Box::new(compiled.constraint(vocabulary, watch)))
    }

    /// As [`after_thought`], where the thought's end may be tokenized in any way, and where a
    /// thought before a constrained answer cannot end the answer.
    pub fn after_thought(
        &self,
        thought: Thought,
        rest: Option<Box<dyn TokenConstraint>>,
    ) -> Box<dyn TokenConstraint> {
        thought::after_thought_within(thought, rest, Arc::clone(&self.inner.vocabulary))
    }
}
