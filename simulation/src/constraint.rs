//! A constraint with a state, and a watcher: what they allow depends on all tokens before.

use ponder::engine::{
    ConstraintError, TokenConstraint, TokenId, TokenLogprobs, TokenMask, TokenWatcher, Watch,
};

use crate::random::Random;
use crate::setup::VOCAB_SIZE;

/// Allows the tokens that are not a given rest of three, which moves with every token; now and then
/// a single token.
#[derive(Debug, Clone)]
pub struct Rotating {
    accepted: Vec<TokenId>,
    /// Of where it starts and the accepted tokens.
    sum: u32,
    /// Its mask cannot be made after so many tokens.
    fails_at: Option<usize>,
    is_cheap: bool,
}

impl Rotating {
    /// One that never fails.
    pub fn random(random: &mut Random) -> Self {
        Self {
            accepted: Vec::new(),
            sum: random.below(3) as u32,
            fails_at: None,
            is_cheap: random.one_in(3),
        }
    }

    /// The same, failing now and then.
    pub fn failing(random: &mut Random) -> Self {
        let fails_at = random.one_in(4).then(|| random.below(30));
        Self {
            fails_at,
            ..Self::random(random)
        }
    }

    /// The same behind `output` of a continuation.
    pub fn after(&self, output: &[TokenId]) -> Self {
        let mut after = self.clone();
        output.iter().for_each(|id| after.push(*id));
        after
    }

    fn push(&mut self, token_id: TokenId) {
        self.accepted.push(token_id);
        self.sum += token_id;
    }

    /// The only token that may come.
    fn single(&self) -> Option<TokenId> {
        let sum = self.sum;
        let is_forced = sum.is_multiple_of(3) || sum.is_multiple_of(4);
        is_forced.then_some(sum * 7 % VOCAB_SIZE as u32)
    }

    fn forbids(&self, token_id: TokenId) -> bool {
        let rest = token_id + self.sum + self.accepted.len() as u32;
        match self.single() {
            Some(single) => token_id != single,
            None => rest.is_multiple_of(3),
        }
    }
}

impl TokenConstraint for Rotating {
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        // Jobs end in any order.
        for _ in 0..self.sum % 5 {
            std::thread::yield_now();
        }
        if self.fails_at == Some(self.accepted.len()) {
            return Err(ConstraintError("it fails here".to_owned()));
        }
        let allowed = (0..VOCAB_SIZE as TokenId).filter(|id| !self.forbids(*id));
        allowed.for_each(|id| mask.allow(id));
        Ok(())
    }

    fn accept(&mut self, token_id: TokenId) -> bool {
        let is_allowed = !self.forbids(token_id);
        if is_allowed {
            self.push(token_id);
        }
        is_allowed
    }

    fn rollback(&mut self, num_tokens: usize) {
        let kept = self.accepted.len() - num_tokens;
        self.sum -= self.accepted.drain(kept..).sum::<u32>();
    }

    /// What must come, then a guess that is wrong two times out of three.
    fn forced(&mut self, most: usize) -> Vec<TokenId> {
        let mut state = self.clone();
        let mut forced = Vec::new();
        while let Some(single) = state.single().filter(|_| forced.len() < most) {
            state.push(single);
            forced.push(single);
        }
        if !forced.is_empty() {
            forced.extend([3, 1]);
        }
        forced.truncate(most);
        forced
    }

    fn has_cheap_masks(&self) -> bool {
        self.is_cheap
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
    fn push(&mut self, token_id: TokenId, _: Option<&TokenLogprobs>) -> Watch {
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
