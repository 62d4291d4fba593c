//! Tokens that come before what is constrained.

use std::sync::Arc;

use crate::engine::{ConstraintError, TokenConstraint, TokenId, TokenMask};

/// `prefix`, and behind it what `rest` allows.
#[derive(Debug, Clone)]
struct Prefixed {
    prefix: Arc<[TokenId]>,
    rest: Box<dyn TokenConstraint>,
    num_accepted: usize,
}

/// An answer that begins with `prefix` and then keeps to `rest`.
pub fn prefixed(prefix: &[TokenId], rest: Box<dyn TokenConstraint>) -> Box<dyn TokenConstraint> {
    Box::new(Prefixed {
        prefix: prefix.into(),
        rest,
        num_accepted: 0,
    })
}

impl Prefixed {
    /// The token of the prefix that must come now.
    fn next(&self) -> Option<TokenId> {
        self.prefix.get(self.num_accepted).copied()
    }
}

impl TokenConstraint for Prefixed {
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        match self.next() {
            Some(token_id) => {
                mask.allow(token_id);
                Ok(())
            }
            None => self.rest.mask(mask),
        }
    }

    fn accept(&mut self, token_id: TokenId) -> bool {
        let is_accepted = match self.next() {
            Some(next) => next == token_id,
            None => self.rest.accept(token_id),
        };
        self.num_accepted += usize::from(is_accepted);
        is_accepted
    }

    fn rollback(&mut self, num_tokens: usize) {
        let num_tokens = num_tokens.min(self.num_accepted);
        let of_rest = self.num_accepted.saturating_sub(self.prefix.len());
        self.rest.rollback(num_tokens.min(of_rest));
        self.num_accepted -= num_tokens;
    }

    fn forced(&mut self, most: usize) -> Vec<TokenId> {
        let prefix = self.prefix.iter().skip(self.num_accepted).take(most);
        let mut forced: Vec<TokenId> = prefix.copied().collect();
        if self.num_accepted + forced.len() >= self.prefix.len() {
            forced.extend(self.rest.forced(most - forced.len()));
        }
        forced
    }

    fn has_cheap_masks(&self) -> bool {
        self.next().is_some() || self.rest.has_cheap_masks()
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
    fn the_prefix_comes_first() {
        let rest = Box::new(AllowedTokens::new(8, [5, 6]));
        let mut constraint = prefixed(&[1, 2], rest);
        let allowed = |constraint: &mut Box<dyn TokenConstraint>| {
            let mut mask = TokenMask::none(8);
            constraint.mask(&mut mask).unwrap();
            (0..8).filter(|id| mask.is_allowed(*id)).collect::<Vec<_>>()
        };
        assert_eq!(allowed(&mut constraint), [1]);
        assert_eq!(constraint.forced(9), [1, 2]);
        assert_eq!(constraint.forced(1), [1]);
        assert!(!constraint.accept(5) && constraint.accept(1) && constraint.accept(2));
        assert_eq!(allowed(&mut constraint), [5, 6]);
        assert!(!constraint.accept(1) && constraint.accept(6) && constraint.accept(5));
        let mut fork = constraint.fork();
        fork.rollback(3);
        assert_eq!(allowed(&mut fork), [2]);
        constraint.rollback(1);
        assert_eq!(allowed(&mut constraint), [5, 6]);
        constraint.rollback(9);
        assert_eq!(allowed(&mut constraint), [1]);
    }
}
