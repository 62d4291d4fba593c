//! A choice between two constraints.

use crate::engine::{ConstraintError, TokenConstraint, TokenId, TokenMask};

/// An answer that keeps to one of two constraints. A constraint is out at the first token that it
/// does not allow.
#[derive(Debug, Clone)]
struct Either {
    parts: [Alternative; 2],
}

#[derive(Debug, Clone)]
struct Alternative {
    constraint: Box<dyn TokenConstraint>,
    /// Tokens since it is out, the first that it did not allow among them.
    num_missed: usize,
}

/// One of the constraints holds.
pub fn either(
    a: Box<dyn TokenConstraint>,
    b: Box<dyn TokenConstraint>,
) -> Box<dyn TokenConstraint> {
    let alternative = |constraint| Alternative {
        constraint,
        num_missed: 0,
    };
    Box::new(Either {
        parts: [a, b].map(alternative),
    })
}

impl Either {
    fn open(&mut self) -> impl Iterator<Item = &mut Box<dyn TokenConstraint>> {
        let open = self.parts.iter_mut().filter(|part| part.num_missed == 0);
        open.map(|part| &mut part.constraint)
    }
}

impl TokenConstraint for Either {
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        let mut others = None;
        for part in self.open() {
            let mut own = TokenMask::none(mask.vocab_size());
            match part.mask(&mut own) {
                Ok(()) => {
                    for (word, own) in mask.words_mut().iter_mut().zip(own.words()) {
                        *word |= own;
                    }
                    others = Some(Ok(()));
                }
                // The other one may still be of use.
                Err(error) => {
                    others.get_or_insert(Err(error));
                }
            }
        }
        others.unwrap_or(Ok(()))
    }

    fn accept(&mut self, token_id: TokenId) -> bool {
        let is_accepted = self
            .parts
            .each_mut()
            .map(|part| part.num_missed == 0 && part.constraint.accept(token_id));
        if is_accepted == [false, false] {
            return false;
        }
        for (part, is_accepted) in self.parts.iter_mut().zip(is_accepted) {
            part.num_missed += usize::from(!is_accepted);
        }
        true
    }

    fn rollback(&mut self, num_tokens: usize) {
        for part in &mut self.parts {
            let num_missed = part.num_missed.min(num_tokens);
            part.num_missed -= num_missed;
            part.constraint.rollback(num_tokens - num_missed);
        }
    }

    fn forced(&mut self, most: usize) -> Vec<TokenId> {
        let mut open = self.open();
        match (open.next(), open.next()) {
            (Some(only), None) => only.forced(most),
            // What one of them forces, the other may not.
            _ => Vec::new(),
        }
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Allows one text of tokens.
    #[derive(Debug, Clone)]
    struct Script {
        tokens: Vec<TokenId>,
        at: usize,
    }

    impl TokenConstraint for Script {
        fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
            if let Some(token_id) = self.tokens.get(self.at) {
                mask.allow(*token_id);
            }
            Ok(())
        }

        fn accept(&mut self, token_id: TokenId) -> bool {
            let is_next = self.tokens.get(self.at) == Some(&token_id);
            self.at += usize::from(is_next);
            is_next
        }

        fn rollback(&mut self, num_tokens: usize) {
            self.at -= num_tokens;
        }

        fn forced(&mut self, most: usize) -> Vec<TokenId> {
            let rest = self.tokens[self.at..].iter();
            rest.take(most).copied().collect()
        }

        fn fork(&self) -> Box<dyn TokenConstraint> {
            Box::new(self.clone())
        }
    }

    fn script(tokens: &[TokenId]) -> Box<dyn TokenConstraint> {
        Box::new(Script {
            tokens: tokens.to_vec(),
            at: 0,
        })
    }

    fn allowed(constraint: &mut dyn TokenConstraint) -> Vec<TokenId> {
        let mut mask = TokenMask::none(40);
        constraint.mask(&mut mask).unwrap();
        (0..40).filter(|id| mask.is_allowed(*id)).collect()
    }

    #[test]
    fn either_may_turn_out_to_hold() {
        let mut either = either(script(&[1, 2, 3]), script(&[1, 35]));
        assert_eq!(allowed(&mut *either), [1]);
        assert_eq!(either.forced(9), [0; 0]);
        assert!(either.accept(1));
        assert_eq!(allowed(&mut *either), [2, 35]);
        let mut fork = either.fork();
        assert!(either.accept(2) && !either.accept(35) && either.accept(3));
        assert_eq!(allowed(&mut *fork), [2, 35], "a fork goes its own way");
        // Back to where both were possible.
        either.rollback(2);
        assert_eq!(allowed(&mut *either), [2, 35]);
        assert!(either.accept(35));
        assert_eq!(allowed(&mut *either), [0; 0]);
        either.rollback(2);
        assert_eq!(allowed(&mut *either), [1]);
        assert!(either.accept(1) && either.accept(2));
        assert_eq!(either.forced(9), [3]);
    }
}
