//! `text_offset`: where in an answer's text each token begins, in characters.

/// Follows a text token by token, as [`crate::text::Detokenizer`] writes it.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    /// Whole characters so far.
    num_chars: usize,
    /// The beginning of a character that the next tokens finish.
    pending: Vec<u8>,
}

impl Offsets {
    /// Where a token begins that adds `bytes` to the text. A token that is a part of a character
    /// begins where the character does.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let mut offset = self.num_chars;
        let num_before = self.pending.len();
        self.pending.extend_from_slice(bytes);
        let mut start = 0;
        loop {
            let (valid, invalid) = match std::str::from_utf8(&self.pending[start..]) {
                Ok(text) => (text, Some(0)),
                Err(error) => {
                    let valid = &self.pending[start..start + error.valid_up_to()];
                    (
                        std::str::from_utf8(valid).unwrap_or_default(),
                        error.error_len(),
                    )
                }
            };
            self.num_chars += valid.chars().count();
            start += valid.len();
            match invalid {
                // What is left may become a character.
                None | Some(0) => break,
                // Bytes that no character has are one replacement character.
                Some(len) => {
                    self.num_chars += 1;
                    start += len;
                    if start <= num_before {
                        offset = self.num_chars;
                    }
                }
            }
        }
        self.pending.drain(..start);
        offset
    }

    /// Text follows that no token stands for.
    pub fn skip(&mut self, num_chars: usize) {
        if num_chars > 0 {
            self.end_of_prompt();
            self.num_chars += num_chars;
        }
    }

    /// The prompt ends here: what is left of a character in it is a replacement character.
    pub fn end_of_prompt(&mut self) {
        if !std::mem::take(&mut self.pending).is_empty() {
            self.num_chars += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offsets(tokens: &[&[u8]]) -> Vec<usize> {
        let mut offsets = Offsets::default();
        tokens.iter().map(|token| offsets.push(token)).collect()
    }

    #[test]
    fn parts_of_a_character_begin_where_it_does() {
        let emoji = "😸".as_bytes();
        let tokens = [&emoji[..2], &emoji[2..], emoji, b" a", b" b"];
        assert_eq!(offsets(&tokens), [0, 0, 1, 2, 4]);
        // A token with the end of one character and the beginning of the next.
        let two = "éé".as_bytes();
        assert_eq!(
            offsets(&[&two[..1], &two[1..3], &two[3..], b"x"]),
            [0, 0, 1, 2]
        );
    }

    proptest! {
        /// Offsets index the text, wherever it is cut into tokens and whatever its bytes are.
        #[test]
        fn offsets_index_the_text(
            bytes in prop_oneof![
                "[a é😸\u{fffd}]{0,12}".prop_map(String::into_bytes),
                prop::collection::vec(any::<u8>(), 0..24),
            ],
            cuts in prop::collection::vec(0..25_usize, 0..12),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| (*cut).min(bytes.len())).collect();
            cuts.push(0);
            cuts.push(bytes.len());
            cuts.sort_unstable();
            cuts.dedup();
            let tokens: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            // Where each character of the text ends in the bytes.
            let mut ends = Vec::new();
            let mut end = 0;
            for chunk in bytes.utf8_chunks() {
                for character in chunk.valid().chars() {
                    end += character.len_utf8();
                    ends.push(end);
                }
                end += chunk.invalid().len();
                ends.extend((!chunk.invalid().is_empty()).then_some(end));
            }
            prop_assert_eq!(ends.len(), String::from_utf8_lossy(&bytes).chars().count());
            for (offset, start) in offsets(&tokens).into_iter().zip(&cuts) {
                let num_before = ends.iter().filter(|end| *end <= start).count();
                // Nothing tells yet that the text ends in the middle of a character.
                let is_last = *start == bytes.len();
                prop_assert!(offset == num_before || is_last && offset + 1 == num_before);
            }
        }
    }
}
