//! Token ids to text, one at a time.

use super::tokenizer::Tokenizer;

/// Emits only whole characters; bytes that can never become UTF-8 turn into U+FFFD.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    pending: Vec<u8>,
}

impl Detokenizer {
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            skip_special,
            pending: Vec::new(),
        }
    }

    /// As [`Self::new`], but for special tokens that are visible all the same.
    pub fn with_visible(tokenizer: &Tokenizer, skip_special: bool, _visible: &[u32]) -> Self {
        Self::new(tokenizer, skip_special)
    }

    /// The text that `token_id` completes.
    pub fn push(&mut self, token_id: u32) -> String {
        if self.skip_special && self.tokenizer.is_special(token_id) {
            return String::new();
        }
        self.pending
            .extend_from_slice(self.tokenizer.token_bytes(token_id));
        let mut text = String::new();
        let mut start = 0;
        loop {
            let rest = &self.pending[start..];
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    start = self.pending.len();
                    break;
                }
                Err(error) => {
                    let valid = &rest[..error.valid_up_to()];
                    text.push_str(&String::from_utf8_lossy(valid));
                    start += valid.len();
                    match error.error_len() {
                        Some(len) => {
                            text.push('\u{FFFD}');
                            start += len;
                        }
                        None => break,
                    }
                }
            }
        }
        self.pending.drain(..start);
        text
    }

    /// Whether the last token left a character unfinished.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What is left of an unfinished character.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}
