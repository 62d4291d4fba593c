//! A constraint with a state, and a watcher: what they allow depends on all tokens before.

use ponder::engine::{ConstraintError, TokenConstraint, TokenId, TokenMask, TokenWatcher, Watch};

use crate::setup::VOCAB_SIZE;

/// Allows the tokens that are not a given rest of three, which moves with every token.
#[derive(Debug, Clone)]
pub struct Rotating {
    accepted: Vec<TokenId>,
    start: u32,
}

impl Rotating {
    /// After `output` of a continuation.
    pub fn after(start: u32, output: &[TokenId]) -> Self {
        Self {
            accepted: output.to_vec(),
            start,
        }
    }

    fn forbids(&self, token_id: TokenId) -> bool {
        let sum: u32 = self.accepted.iter().sum::<u32>() + self.start;
        (token_id + sum + self.accepted.len() as u32).is_multiple_of(3)
    }
}

impl TokenConstraint for Rotating {
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        let allowed = (0..VOCAB_SIZE as TokenId).filter(|id| !self.forbids(*id));
        allowed.for_each(|id| mask.allow(id));
        Ok(())
    }

    fn accept(&mut self, token_id: TokenId) -> bool {
        let is_allowed = !self.forbids(token_id);
        if is_allowed {
            self.accepted.push(token_id);
        }
        is_allowed
    }

    fn rollback(&mut self, num_tokens: usize) {
        let kept = self.accepted.len() - num_tokens;
        self.accepted.truncate(kept);
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

/// Ends a continuation when the sum of its tokens is a multiple of a number, and taps those of another.
#[derive(Debug, Clone)]
pub struct SumWatcher {
    pub sum: u32,
    pub ends_at: u32,
}

impl TokenWatcher for SumWatcher {
    fn push(&mut self, token_id: TokenId) -> Watch {
        self.sum += token_id;
        if self.sum.is_multiple_of(self.ends_at) {
            Watch::End
        } else if self.sum.is_multiple_of(2) {
            Watch::Tap
        } else {
            Watch::Continue
        }
    }

    fn boxed_clone(&self) -> Box<dyn TokenWatcher> {
        Box::new(self.clone())
    }
}
