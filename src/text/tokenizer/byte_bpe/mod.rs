//! Byte-level byte-pair encoding as a stream of words: the text is read once, memory is that of one
//! word, and every piece looks at the limit and at who waits.
//!
//! The `tokenizers` crate encodes a text as a whole, with some 400 bytes of memory a byte. Its
//! results are the definition of these (see the tests).

mod classes;
mod merge;
mod nfc;
mod steps;
#[cfg(test)]
mod tests;
mod words;

use std::borrow::Cow;

use super::vocabulary::{Texts, Vocabulary};
use super::watch::{PIECE_BYTES, Watch};
use super::weights::ByteWeights;
use super::{TokenizerError, byte_level};
use merge::{Merges, Scratch};
use steps::StepWords;
pub(super) use steps::{BEFORE_THREES, IN_THREES, Step, WORD_IN_THREES};
use words::Words;
pub(super) use words::{GPT2_PATTERN, Isolated, Pattern, QWEN2_PATTERN};

/// How a text is cut into words, which merge each on its own.
pub(super) enum Cut {
    /// Once, by hand.
    ByHand(Isolated, Pattern),
    /// By one regular expression after the other.
    BySteps(Vec<Step>),
}

impl Cut {
    /// The pre-tokeniser that splits at the matches of each of `sources` in turn.
    ///
    /// # Errors
    /// [`TokenizerError::Invalid`] for a pattern that the engine cannot run.
    pub(super) fn of_sources(sources: &[&str]) -> Result<Self, TokenizerError> {
        if let [one] = sources
            && let Some(pattern) = Pattern::of_source(one)
        {
            return Ok(Self::ByHand(Isolated::Nothing, pattern));
        }
        let steps: Result<Vec<Step>, TokenizerError> =
            sources.iter().map(|source| Step::new(source)).collect();
        Ok(Self::BySteps(steps?))
    }

    #[cfg(test)]
    pub(super) fn words<'a>(&self, text: &'a str) -> Vec<&'a str> {
        match self {
            Self::ByHand(isolated, pattern) => Words::new(*pattern, *isolated, text).collect(),
            Self::BySteps(steps) => StepWords::new(steps, text).collect(),
        }
    }
}

/// What a vocabulary's files say of it.
pub(super) struct Parts<'a> {
    pub vocabulary: &'a Vocabulary,
    /// In the order of their rank.
    pub merges: &'a [(&'a str, &'a str)],
    pub cut: Cut,
    /// Whether a word that is a token needs no merges.
    pub ignores_merges: bool,
    /// Whether texts are composed (NFC) first.
    pub composes: bool,
}

pub(super) struct ByteBpe {
    merges: Merges,
    /// The token of each byte; bytes without one are left out.
    byte_ids: [Option<u32>; 256],
    /// Tokens by the bytes that they stand for, where a word may be one without merges.
    words: Option<Vocabulary>,
    cut: Cut,
    composes: bool,
    weights: ByteWeights,
}

impl ByteBpe {
    pub(super) fn new(parts: Parts<'_>) -> Result<Self, TokenizerError> {
        let alphabet = byte_level::alphabet();
        let mut byte_ids = [None; 256];
        for (character, byte) in alphabet.iter() {
            let id = parts.vocabulary.get(character.encode_utf8(&mut [0; 4]));
            byte_ids[usize::from(byte)] = id;
        }
        let mut spelled = Texts::default();
        let mut spelled_ids = Vec::new();
        for (token, id) in parts.vocabulary.iter() {
            if let Ok(token) = std::str::from_utf8(token)
                && alphabet.spells(token)
            {
                spelled.push_with(|bytes| alphabet.write(token, bytes));
                spelled_ids.push(id);
            }
        }
        let spelled = || (0..).map_while(|index| spelled.get(index));
        let weights = ByteWeights::new(spelled(), |byte| byte_ids[usize::from(byte)].is_none());
        let words = (parts.ignores_merges).then(|| {
            let words = spelled().zip(spelled_ids.iter().copied());
            Vocabulary::new(spelled_ids.len(), words)
        });
        Ok(Self {
            merges: Merges::new(parts.merges.iter().copied(), parts.vocabulary)?,
            byte_ids,
            words,
            cut: parts.cut,
            composes: parts.composes,
            weights,
        })
    }

    /// Appends the tokens of a text without special tokens.
    pub(super) fn encode(
        &self,
        text: &str,
        watch: &mut Watch<'_>,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let text = match self.composes {
            true => {
                let min_tokens = text.len() / nfc::SHRINKS_BY / self.weights.longest();
                watch.check_room(ids.len().saturating_add(min_tokens))?;
                nfc::composed(text, watch)?
            }
            false => Cow::Borrowed(text),
        };
        watch.check_room(ids.len().saturating_add(self.weights.min_tokens(&text)))?;
        match &self.cut {
            Cut::ByHand(isolated, pattern) => {
                self.encode_words(Words::new(*pattern, *isolated, &text), watch, ids)
            }
            Cut::BySteps(steps) => self.encode_words(StepWords::new(steps, &text), watch, ids),
        }
    }

    fn encode_words<'t>(
        &self,
        words: impl Iterator<Item = &'t str>,
        watch: &mut Watch<'_>,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut scratch = Scratch::default();
        for word in words {
            watch.spend(word.len())?;
            self.encode_word(word.as_bytes(), &mut scratch, watch, ids)?;
            watch.check_room(ids.len())?;
            if word.len() > PIECE_BYTES {
                scratch.shrink(PIECE_BYTES);
            }
        }
        Ok(())
    }

    fn encode_word(
        &self,
        word: &[u8],
        scratch: &mut Scratch,
        watch: &mut Watch<'_>,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        if let Some(id) = self.words.as_ref().and_then(|words| words.get(word)) {
            ids.push(id);
            return Ok(());
        }
        let word = word
            .iter()
            .filter_map(|byte| self.byte_ids[usize::from(*byte)]);
        self.merges.apply(word, scratch, watch, ids)
    }
}
