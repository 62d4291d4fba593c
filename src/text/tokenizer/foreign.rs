//! Pipelines of `tokenizer.json` that the `tokenizers` crate runs, as a whole.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::TokenizerError;
use super::watch::Watch;

/// Normalisers make a text no shorter than one part in this many, as far as the bound on its bytes goes. One that
/// drops most of a text makes the bound strict.
const SHRINKS_BY: usize = 4;

pub(super) struct Foreign {
    tokenizer: tokenizers::Tokenizer,
    longest: usize,
}

impl Foreign {
    pub(super) fn new(mut tokenizer: tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        // A prompt that is cut or filled up is another prompt.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| TokenizerError::Invalid(error.to_string()))?;
        let vocabulary = tokenizer.get_vocab(true);
        let longest = vocabulary.keys().map(String::len).max().unwrap_or(1).max(1);
        Ok(Self { tokenizer, longest })
    }

    /// Appends the tokens of a text. Nothing is known of how its parts depend on each other, so that it is
    /// encoded as a whole; what bounds the work is that a text of too many bytes is refused before.
    pub(super) fn encode(
        &self,
        text: &str,
        watch: &mut Watch<'_>,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let min_tokens = text.len() / SHRINKS_BY / self.longest;
        watch.check_room(ids.len().saturating_add(min_tokens))?;
        watch.ask()?;
        // The regex engine panics when a pattern takes it too many steps.
        let encoding = catch_unwind(AssertUnwindSafe(|| self.tokenizer.encode_fast(text, false)))
            .map_err(|_| {
                TokenizerError::Encode("a pattern of tokenizer.json takes too long".to_owned())
            })?
            .map_err(|error| TokenizerError::Encode(error.to_string()))?;
        ids.extend_from_slice(encoding.get_ids());
        watch.check_room(ids.len())
    }
}
