//! Token ids to text, one at a time.

use super::tokenizer::Tokenizer;

/// Emits only whole characters; bytes that can never become UTF-8 turn into U+FFFD.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Special tokens that have a text all the same.
    visible: Vec<u32>,
    pending: Vec<u8>,
}

impl Detokenizer {
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        Self::with_visible(tokenizer, skip_special, &[])
    }

    /// With `skip_special`, the special tokens among `visible` keep their texts: those of the marks
    /// that a parser of the text needs ([`super::OutputFormat::marks`]).
    pub fn with_visible(tokenizer: &Tokenizer, skip_special: bool, visible: &[u32]) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            skip_special,
            visible: visible.to_vec(),
            pending: Vec::new(),
        }
    }

    /// The text that `token_id` completes.
    pub fn push(&mut self, token_id: u32) -> String {
        let is_special = self.skip_special && self.tokenizer.is_special(token_id);
        if is_special && !self.visible.contains(&token_id) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::tests::byte_level_json;

    #[test]
    fn only_visible_special_tokens_have_a_text() {
        let json = byte_level_json().to_string();
        let tokenizer = Tokenizer::from_json(json.as_bytes()).unwrap();
        let is_special = |id: &u32| tokenizer.is_special(*id);
        let mut special = (0..tokenizer.vocab_size() as u32).filter(is_special);
        let id = special.next().expect("the tokenizer has special tokens");
        let text = |mut detokenizer: Detokenizer| detokenizer.push(id) + &detokenizer.finish();
        assert_eq!(text(Detokenizer::new(&tokenizer, true)), "");
        assert_eq!(text(Detokenizer::with_visible(&tokenizer, true, &[])), "");
        let shown = tokenizer.token_text(id);
        assert!(!shown.is_empty());
        assert_eq!(
            text(Detokenizer::with_visible(&tokenizer, true, &[id])),
            shown
        );
        assert_eq!(text(Detokenizer::new(&tokenizer, false)), shown);
    }
}
