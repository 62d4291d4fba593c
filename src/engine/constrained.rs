//! A sequence's constraint. What it does wrong, panics included, ends its own request and nothing
//! else.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::request::{ConstraintError, TokenConstraint, TokenId, TokenMask};

/// A constraint as the engine calls it: no call panics. Once one has, the constraint is gone and
/// every later call fails.
#[derive(Debug)]
pub(super) struct Constrained {
    constraint: Result<Box<dyn TokenConstraint>, ConstraintError>,
    /// Of its masks.
    vocab_size: usize,
}

fn panicked() -> ConstraintError {
    ConstraintError("it panicked".to_owned())
}

impl Constrained {
    pub fn new(constraint: Box<dyn TokenConstraint>) -> Self {
        Self {
            constraint: Ok(constraint),
            vocab_size: 0,
        }
    }

    fn call<R>(
        &mut self,
        call: impl FnOnce(&mut dyn TokenConstraint) -> R,
    ) -> Result<R, ConstraintError> {
        let constraint = self.constraint.as_mut();
        let constraint = constraint.map_err(|error| error.clone())?;
        let called = catch_unwind(AssertUnwindSafe(|| call(&mut **constraint)));
        called.map_err(|_| {
            self.constraint = Err(panicked());
            panicked()
        })
    }

    /// Allows in `mask` what may come next; nothing is allowed before.
    pub fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        let vocab_size = mask.vocab_size();
        self.vocab_size = vocab_size;
        self.call(|constraint| constraint.mask(mask))??;
        if mask.vocab_size() != vocab_size {
            *mask = TokenMask::none(vocab_size);
            let message = "its mask is for another vocabulary";
            return Err(ConstraintError(message.to_owned()));
        }
        Ok(())
    }

    /// Takes the next token; false when it is not allowed or the constraint is gone.
    pub fn accept(&mut self, token_id: TokenId) -> bool {
        self.call(|constraint| constraint.accept(token_id))
            .unwrap_or(false)
    }

    /// Takes back the newest accepted tokens.
    pub fn rollback(&mut self, num_tokens: usize) {
        if num_tokens > 0 {
            // A constraint that is gone has nothing to take back.
            let _ = self.call(|constraint| constraint.rollback(num_tokens));
        }
    }

    /// Tokens that must come next, at most `most`.
    pub fn forced(&mut self, most: usize) -> Vec<TokenId> {
        let forced = self.call(|constraint| constraint.forced(most));
        let forced = forced.unwrap_or_default().into_iter().take(most);
        let is_token = |id: &TokenId| (*id as usize) < self.vocab_size;
        forced.take_while(is_token).collect()
    }

    pub fn has_cheap_masks(&mut self) -> bool {
        self.call(|constraint| constraint.has_cheap_masks())
            .unwrap_or(true)
    }

    /// Why the constraint cannot go on, if it cannot.
    pub fn failure(&mut self) -> Option<ConstraintError> {
        self.mask(&mut TokenMask::none(self.vocab_size)).err()
    }
}

impl Clone for Constrained {
    fn clone(&self) -> Self {
        let fork = |constraint: &dyn TokenConstraint| {
            let forked = catch_unwind(AssertUnwindSafe(|| constraint.fork()));
            forked.map_err(|_| panicked())
        };
        let constraint = self.constraint.as_deref().map_err(Clone::clone);
        Self {
            constraint: constraint.and_then(fork),
            vocab_size: self.vocab_size,
        }
    }
}

/// A constraint that has accepted `token_ids` after all that `constraint` has.
///
/// # Errors
/// The constraint fails, or a token is not allowed.
pub fn constraint_after(
    constraint: &dyn TokenConstraint,
    token_ids: &[TokenId],
) -> Result<Box<dyn TokenConstraint>, ConstraintError> {
    let advanced = catch_unwind(AssertUnwindSafe(|| {
        let mut constraint = constraint.fork();
        let refused = token_ids.iter().position(|id| !constraint.accept(*id));
        refused.map_or(Ok(constraint), Err)
    }));
    match advanced {
        Ok(Ok(constraint)) => Ok(constraint),
        Ok(Err(at)) => Err(ConstraintError(format!(
            "it refuses token {at} of the text that it is to continue"
        ))),
        Err(_) => Err(panicked()),
    }
}
