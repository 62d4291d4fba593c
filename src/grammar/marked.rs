//! Calls that begin with their mark. Small models leave the mark out, and what stands there instead
//! is no call that a grammar knows: an answer may not begin so.

use std::sync::Arc;

use crate::engine::{ConstraintError, TokenConstraint, TokenId, TokenMask};
use crate::text::Tokenizer;

/// What calls without marks begin with: objects, lists, fences, tags of other names.
const UNMARKED: [char; 4] = ['{', '[', '`', '<'];

/// A constraint whose answers begin with `mark` where they begin with a call.
#[derive(Debug, Clone)]
struct Marked {
    constraint: Box<dyn TokenConstraint>,
    tokens: Arc<Tokens>,
    /// Tokens since the first that is not white space, itself among them.
    num_begun: usize,
}

#[derive(Debug)]
struct Tokens {
    /// What may not begin an answer.
    unmarked: TokenMask,
    /// White space, behind which the answer still begins.
    space: TokenMask,
}

/// `constraint`, and no answer that begins with a call without `mark`.
pub fn with_mark(
    constraint: Box<dyn TokenConstraint>,
    mark: &str,
    tokenizer: &Tokenizer,
    vocab_size: usize,
) -> Box<dyn TokenConstraint> {
    let mut unmarked = TokenMask::none(vocab_size);
    let mut space = TokenMask::none(vocab_size);
    let own = tokenizer.token_to_id(mark);
    for id in 0..vocab_size as TokenId {
        let bytes = tokenizer.token_bytes(id);
        let text = bytes.trim_ascii();
        if text.is_empty() && !bytes.is_empty() {
            space.allow(id);
        }
        let begins_so = text
            .first()
            .is_some_and(|byte| UNMARKED.contains(&char::from(*byte)));
        let may_be_mark = match own {
            Some(own) => id == own,
            None => mark.as_bytes().starts_with(text) || text.starts_with(mark.as_bytes()),
        };
        if begins_so && !may_be_mark {
            unmarked.allow(id);
        }
    }
    Box::new(Marked {
        constraint,
        tokens: Arc::new(Tokens { unmarked, space }),
        num_begun: 0,
    })
}

impl TokenConstraint for Marked {
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        self.constraint.mask(mask)?;
        if self.num_begun == 0 {
            let unmarked = self.tokens.unmarked.words();
            for (word, unmarked) in mask.words_mut().iter_mut().zip(unmarked) {
                *word &= !unmarked;
            }
        }
        Ok(())
    }

    fn accept(&mut self, token_id: TokenId) -> bool {
        let has_begun = self.num_begun > 0;
        if !has_begun && self.tokens.unmarked.is_allowed(token_id) {
            return false;
        }
        let is_accepted = self.constraint.accept(token_id);
        if is_accepted && (has_begun || !self.tokens.space.is_allowed(token_id)) {
            self.num_begun += 1;
        }
        is_accepted
    }

    fn rollback(&mut self, num_tokens: usize) {
        self.num_begun = self.num_begun.saturating_sub(num_tokens);
        self.constraint.rollback(num_tokens);
    }

    fn forced(&mut self, most: usize) -> Vec<TokenId> {
        self.constraint.forced(most)
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::AllowedTokens;

    #[test]
    fn answers_begin_with_the_mark_or_with_text() {
        let pieces = ["a", "{", " [", "\n", "<", "<t", "<x", "```", "<call>", "a{"];
        let vocab: serde_json::Map<String, serde_json::Value> = pieces
            .iter()
            .enumerate()
            .map(|(id, piece)| ((*piece).to_owned(), id.into()))
            .collect();
        let json = serde_json::json!({"version": "1.0", "added_tokens": [],
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"}});
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        let size = pieces.len();
        let any = || Box::new(AllowedTokens::new(size, 0..size as u32));
        let mut marked = with_mark(any(), "<tool>", &tokenizer, size);
        let allowed = |marked: &mut Box<dyn TokenConstraint>| {
            let mut mask = TokenMask::none(size);
            marked.mask(&mut mask).unwrap();
            let ids = (0..size).filter(|id| mask.is_allowed(*id as u32));
            ids.map(|id| pieces[id]).collect::<Vec<_>>()
        };
        let at_first = ["a", "\n", "<", "<t", "a{"];
        assert_eq!(allowed(&mut marked), at_first);
        assert!(!marked.accept(1) && marked.accept(3));
        assert_eq!(allowed(&mut marked), at_first, "white space begins nothing");
        assert!(marked.accept(4) && marked.accept(1));
        assert_eq!(allowed(&mut marked), pieces);
        marked.rollback(2);
        assert_eq!(allowed(&mut marked), at_first);
        let mut fork = marked.fork();
        assert!(fork.accept(0) && fork.accept(1) && !marked.accept(1));
    }
}
