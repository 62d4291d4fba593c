//! Byte-level byte-pair encoding as a stream of words: the text is read once, memory is that of one word, and
//! every piece looks at the limit and at who waits.
//!
//! The `tokenizers` crate encodes a text as a whole, with some 400 bytes of memory a byte. Its results are the
//! definition of these (see the tests).

mod classes;
mod merge;
mod nfc;
#[cfg(test)]
mod tests;
mod words;

use std::borrow::Cow;
use std::collections::HashMap;

use super::watch::{PIECE_BYTES, Watch};
use super::weights::ByteWeights;
use super::{TokenizerError, byte_level};
use merge::{Merges, Scratch};
use words::Words;
pub(super) use words::{Isolated, Pattern};

/// What a vocabulary's files say of it.
pub(super) struct Parts<'a> {
    pub vocabulary: &'a HashMap<String, u32>,
    /// In the order of their rank.
    pub merges: &'a [(&'a str, &'a str)],
    pub pattern: Pattern,
    pub isolated: Isolated,
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
    words: Option<HashMap<Box<[u8]>, u32>>,
    pattern: Pattern,
    isolated: Isolated,
    composes: bool,
    weights: ByteWeights,
}

impl ByteBpe {
    pub(super) fn new(parts: &Parts<'_>) -> Result<Self, TokenizerError> {
        let alphabet = byte_level::alphabet();
        let mut byte_ids = [None; 256];
        for (character, byte) in &alphabet {
            let id = parts.vocabulary.get(character.to_string().as_str());
            byte_ids[usize::from(*byte)] = id.copied();
        }
        let spelled: HashMap<Box<[u8]>, u32> = parts
            .vocabulary
            .iter()
            .filter(|(token, _)| token.chars().all(|c| alphabet.contains_key(&c)))
            .map(|(token, id)| (byte_level::token_bytes(token, &alphabet).into(), *id))
            .collect();
        let weights = ByteWeights::new(spelled.keys().map(AsRef::as_ref), |byte| {
            byte_ids[usize::from(byte)].is_none()
        });
        Ok(Self {
            merges: Merges::new(parts.merges.iter().copied(), parts.vocabulary)?,
            byte_ids,
            words: parts.ignores_merges.then_some(spelled),
            pattern: parts.pattern,
            isolated: parts.isolated,
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
        let mut scratch = Scratch::default();
        for word in Words::new(self.pattern, self.isolated, &text) {
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
            ids.push(*id);
            return Ok(());
        }
        let word = word
            .iter()
            .filter_map(|byte| self.byte_ids[usize::from(*byte)]);
        self.merges.apply(word, scratch, watch, ids)
    }
}
