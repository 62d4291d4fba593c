//! Parts of an answer that the policy did not write: what its code printed.

use std::ops::Range;
use std::sync::Arc;

use crate::engine::TokenId;
use crate::tool::CodeCall;

/// One such part. Places are those in the sample, node or answer that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inserted {
    pub tokens: Range<usize>,
    /// In bytes.
    pub text: Range<usize>,
    /// The block before it.
    pub call: Arc<CodeCall>,
}

impl Inserted {
    /// The same part of something that begins so much earlier.
    pub(super) fn moved(&self, num_tokens: usize, num_bytes: usize) -> Self {
        let Range { start, end } = self.tokens;
        let text = &self.text;
        Self {
            tokens: start + num_tokens..end + num_tokens,
            text: text.start + num_bytes..text.end + num_bytes,
            call: Arc::clone(&self.call),
        }
    }

    /// The same part of what begins so much later; `None` if it does not lie there.
    pub(super) fn behind(&self, num_tokens: usize, num_bytes: usize) -> Option<Self> {
        let (tokens, text) = (&self.tokens, &self.text);
        Some(Self {
            tokens: tokens.start.checked_sub(num_tokens)?..tokens.end - num_tokens,
            text: text.start.checked_sub(num_bytes)?..text.end - num_bytes,
            call: Arc::clone(&self.call),
        })
    }
}

/// Tokens that the policy did not write.
pub fn num_inserted(inserted: &[Inserted]) -> usize {
    inserted.iter().map(|it| it.tokens.len()).sum()
}

/// The tokens that the policy wrote.
pub fn own_tokens(token_ids: &[TokenId], inserted: &[Inserted]) -> Vec<TokenId> {
    let mut own = Vec::with_capacity(token_ids.len());
    let mut from = 0;
    for it in inserted {
        own.extend_from_slice(&token_ids[from..it.tokens.start]);
        from = it.tokens.end;
    }
    own.extend_from_slice(&token_ids[from..]);
    own
}

/// A part of a text, by who wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Own(String),
    Inserted {
        text: String,
        num_tokens: usize,
        /// Tokens of the policy before it, in all of the answer.
        num_before: usize,
        call: Arc<CodeCall>,
    },
}

/// The parts of an answer's text from a byte on, at which one of them begins.
pub fn pieces(text: &str, inserted: &[Inserted], start: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let (mut from, mut num_inserted) = (start, 0);
    let own = |range: Range<usize>| {
        let text = text.get(range).unwrap_or_default();
        (!text.is_empty()).then(|| Piece::Own(text.to_owned()))
    };
    for it in inserted {
        if it.text.start >= start {
            pieces.extend(own(from..it.text.start));
            pieces.push(Piece::Inserted {
                text: text[it.text.clone()].to_owned(),
                num_tokens: it.tokens.len(),
                num_before: it.tokens.start - num_inserted,
                call: Arc::clone(&it.call),
            });
            from = it.text.end;
        }
        num_inserted += it.tokens.len();
    }
    pieces.extend(own(from..text.len()));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::CallStatus;

    #[test]
    fn parts_are_told_apart_by_who_wrote_them() {
        let call = Arc::new(CodeCall {
            code: "x".to_owned(),
            output: "1".to_owned(),
            status: CallStatus::Completed,
        });
        let part = |tokens, text| Inserted {
            tokens,
            text,
            call: Arc::clone(&call),
        };
        let inserted = [part(2..4, 1..3), part(5..6, 5..6)];
        let token_ids: Vec<TokenId> = (0..8).collect();
        assert_eq!(own_tokens(&token_ids, &inserted), [0, 1, 4, 6, 7]);
        assert_eq!(num_inserted(&inserted), 3);
        let piece = |text: &str, num_tokens, num_before| Piece::Inserted {
            text: text.to_owned(),
            num_tokens,
            num_before,
            call: Arc::clone(&call),
        };
        let own = |text: &str| Piece::Own(text.to_owned());
        let all = [
            own("a"),
            piece("bc", 2, 2),
            own("de"),
            piece("f", 1, 3),
            own("g"),
        ];
        assert_eq!(pieces("abcdefg", &inserted, 0), all);
        assert_eq!(pieces("abcdefg", &inserted, 3), all[2..]);
        assert_eq!(inserted[1].behind(4, 3), Some(part(1..2, 2..3)));
        assert_eq!(inserted[0].behind(4, 3), None);
        assert_eq!(inserted[0].moved(1, 2), part(3..5, 3..5));
    }
}
