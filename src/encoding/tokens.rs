//! What an encoder reads of a text: its tokens between the model's own marks.

use std::borrow::Cow;
use std::cmp::{max, min};

use super::Sequence;
use crate::model::encoder::SentenceConfig;
use crate::text::{Tokenizer, TokenizerError};

/// Text that is tokenised between two looks at the budget.
const PIECE_BYTES: usize = 4096;
/// A piece ends between words; a word may be so much longer.
const WORD_BYTES: usize = 16 << 10;

/// How many tokens a text may have, marks included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// A longer text is refused.
    Refuse(usize),
    /// A longer text loses its end.
    Cut(usize),
}

impl Limit {
    fn max_tokens(self) -> usize {
        match self {
            Self::Refuse(most) | Self::Cut(most) => most,
        }
    }
}

/// The tokenizer of an encoder: WordPiece, `[CLS] text [SEP]`.
pub struct EncoderTokenizer {
    tokenizer: Tokenizer,
    cls: u32,
    sep: u32,
    do_lower_case: bool,
    prompt: String,
}

impl EncoderTokenizer {
    pub(super) fn new(tokenizer: Tokenizer, config: &SentenceConfig) -> Option<Self> {
        Some(Self {
            cls: tokenizer.token_to_id("[CLS]")?,
            sep: tokenizer.token_to_id("[SEP]")?,
            tokenizer,
            do_lower_case: config.do_lower_case,
            prompt: config.default_prompt.clone(),
        })
    }

    /// The model's own tokenizer, without marks.
    pub fn plain(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens around a text.
    pub const fn num_marks(is_pair: bool) -> usize {
        if is_pair { 3 } else { 2 }
    }

    /// A text between its marks, and whether it lost its end. Without `add_marks` it is the text
    /// alone.
    ///
    /// # Errors
    /// [`TokenizerError::TooLong`], and [`TokenizerError::Stopped`] when `may_go_on` says so.
    pub fn encode(
        &self,
        text: &str,
        add_marks: bool,
        limit: Limit,
        may_go_on: &dyn Fn() -> bool,
    ) -> Result<Sequence, TokenizerError> {
        let text = match self.prompt.is_empty() {
            true => Cow::Borrowed(text),
            false => Cow::Owned(format!("{}{text}", self.prompt)),
        };
        let num_marks = if add_marks { Self::num_marks(false) } else { 0 };
        let room = limit.max_tokens().saturating_sub(num_marks);
        let mut ids = self.tokens(&text, room, may_go_on)?;
        if ids.len() > room {
            refuse(limit, text.len())?;
            ids.truncate(room);
        }
        if add_marks {
            ids.insert(0, self.cls);
            ids.push(self.sep);
        }
        Ok(Sequence::whole(ids))
    }

    /// Two texts for a model that reads them together. The longer one is cut first.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_pair(
        &self,
        texts: [&str; 2],
        limit: Limit,
        may_go_on: &dyn Fn() -> bool,
    ) -> Result<Sequence, TokenizerError> {
        let room = limit.max_tokens().saturating_sub(Self::num_marks(true));
        let mut first = self.tokens(texts[0], room, may_go_on)?;
        let mut second = self.tokens(texts[1], room, may_go_on)?;
        if first.len() + second.len() > room {
            refuse(limit, texts[0].len() + texts[1].len())?;
            let lens = longest_first(first.len(), second.len(), room);
            first.truncate(lens.0);
            second.truncate(lens.1);
        }
        let mut token_ids = Vec::with_capacity(first.len() + second.len() + 3);
        token_ids.push(self.cls);
        token_ids.append(&mut first);
        token_ids.push(self.sep);
        let second_from = token_ids.len();
        token_ids.append(&mut second);
        token_ids.push(self.sep);
        Ok(Sequence {
            token_ids,
            second_from,
        })
    }

    /// The tokens of a text; of one with more than `room`, at least one more than that.
    ///
    /// The text is read a piece at a time: BERT's tokens never reach over whitespace, so the
    /// pieces' tokens are the text's, but for a single word of more than [`WORD_BYTES`].
    fn tokens(
        &self,
        text: &str,
        room: usize,
        may_go_on: &dyn Fn() -> bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        let mut rest = text;
        while !rest.is_empty() && ids.len() <= room {
            if !may_go_on() {
                return Err(TokenizerError::Stopped);
            }
            let (piece, after) = rest.split_at(piece_len(rest));
            rest = after;
            let piece = match self.do_lower_case {
                true => Cow::Owned(piece.to_lowercase()),
                false => Cow::Borrowed(piece),
            };
            ids.extend(self.tokenizer.encode(&piece, false, true)?);
        }
        Ok(ids)
    }
}

fn refuse(limit: Limit, num_bytes: usize) -> Result<(), TokenizerError> {
    match limit {
        Limit::Cut(_) => Ok(()),
        Limit::Refuse(max_tokens) => Err(TokenizerError::TooLong {
            max_tokens,
            num_bytes,
        }),
    }
}

/// Where the first piece of a text ends: before whitespace.
fn piece_len(text: &str) -> usize {
    if text.len() <= PIECE_BYTES {
        return text.len();
    }
    let bytes = &text.as_bytes()[PIECE_BYTES..min(text.len(), PIECE_BYTES + WORD_BYTES)];
    if let Some(at) = bytes.iter().position(|byte| byte.is_ascii_whitespace()) {
        return PIECE_BYTES + at;
    }
    let mut end = PIECE_BYTES + bytes.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    end
}

/// What two texts keep of their tokens where there is room for `most`: the longer one is cut until
/// they are even.
fn longest_first(first: usize, second: usize, most: usize) -> (usize, usize) {
    let (short, long) = (min(first, second), max(first, second));
    if first + second <= most {
        return (first, second);
    }
    let (short, long) = match short > most / 2 {
        true => (most / 2, most - most / 2),
        false => (short, min(long, most - short)),
    };
    if first <= second {
        (short, long)
    } else {
        (long, short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_text_is_cut_first() {
        for ((first, second, most), expected) in [
            ((3, 4, 10), (3, 4)),
            ((2, 20, 10), (2, 8)),
            ((20, 2, 10), (8, 2)),
            ((20, 20, 10), (5, 5)),
            ((20, 20, 11), (5, 6)),
            ((20, 5, 11), (6, 5)),
            ((0, 9, 4), (0, 4)),
        ] {
            assert_eq!(longest_first(first, second, most), expected);
        }
    }

    #[test]
    fn pieces_end_before_whitespace() {
        assert_eq!(piece_len("a b"), 3);
        let words = "word ".repeat(2000);
        let len = piece_len(&words);
        assert!(len >= PIECE_BYTES && words[len..].starts_with(' '));
        let word = "é".repeat(PIECE_BYTES + WORD_BYTES);
        let len = piece_len(&word);
        assert!(len <= PIECE_BYTES + WORD_BYTES && word.is_char_boundary(len));
    }
}
