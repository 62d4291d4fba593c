//! Pipelines of `tokenizer.json` that the `tokenizers` crate runs, as a whole.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::TokenizerError;
use super::watch::Watch;

/// Normalisers make a text no shorter than one part in this many, as far as the bound on its bytes goes. One that
/// drops most of a text makes the bound strict.
const SHRINKS_BY: usize = 4;

/// Characters of one class in a row, where a pattern of the file splits the text: a pattern that backtracks may look at
/// each of a run from each of it.
const MAX_RUN: usize = 2048;

pub(super) struct Foreign {
    tokenizer: tokenizers::Tokenizer,
    longest: usize,
    /// Whether regular expressions of the file run over texts.
    has_patterns: bool,
}

/// Whether a text has no long runs of letters, numbers, whitespace or other characters.
fn has_short_runs(text: &str) -> bool {
    let class = |c: char| (c.is_alphabetic(), c.is_numeric(), c.is_whitespace());
    let (mut last, mut run) = (None, 0);
    text.chars().all(|character| {
        let now = Some(class(character));
        run = if now == last { run + 1 } else { 1 };
        last = now;
        run <= MAX_RUN
    })
}

impl Foreign {
    pub(super) fn new(
        mut tokenizer: tokenizers::Tokenizer,
        has_patterns: bool,
    ) -> Result<Self, TokenizerError> {
        // A prompt that is cut or filled up is another prompt.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| TokenizerError::Invalid(error.to_string()))?;
        let vocabulary = tokenizer.get_vocab(true);
        let longest = vocabulary.keys().map(String::len).max().unwrap_or(1).max(1);
        Ok(Self {
            tokenizer,
            longest,
            has_patterns,
        })
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
        if self.has_patterns && !has_short_runs(text) {
            let message = format!(
                "it has more than {MAX_RUN} letters, digits, spaces or symbols in a row, which the patterns of \
                 this tokenizer.json may take for ever for"
            );
            return Err(TokenizerError::Encode(message));
        }
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
