//! The constraint on the answers of a search, as it stands where each branch begins.

use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::{ConstraintError, TokenConstraint, TokenId, constraint_after};

/// States that are kept: a branch begins at most one step behind the state of another.
const MOST_STATES: usize = 64;

/// A constraint and the states that it reached in a search's tree. Clones share them.
#[derive(Debug, Clone)]
pub struct BranchConstraint(Arc<Mutex<States>>);

#[derive(Debug)]
struct States {
    /// The answer's beginning first.
    states: Vec<State>,
    num_asked: u64,
}

#[derive(Debug)]
struct State {
    prefix: Vec<TokenId>,
    constraint: Box<dyn TokenConstraint>,
    /// When it was asked for last.
    last_used: u64,
}

impl BranchConstraint {
    /// `constraint` stands at the beginning of an answer.
    pub fn new(constraint: Box<dyn TokenConstraint>) -> Self {
        let start = State {
            prefix: Vec::new(),
            constraint,
            last_used: 0,
        };
        Self(Arc::new(Mutex::new(States {
            states: vec![start],
            num_asked: 0,
        })))
    }

    /// The constraint on what follows `prefix`.
    ///
    /// # Errors
    /// The constraint fails, or the prefix does not keep to it.
    pub fn after(&self, prefix: &[TokenId]) -> Result<Box<dyn TokenConstraint>, ConstraintError> {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        states.after(prefix)
    }
}

impl States {
    fn after(&mut self, prefix: &[TokenId]) -> Result<Box<dyn TokenConstraint>, ConstraintError> {
        self.num_asked += 1;
        let ancestors = self.states.iter_mut();
        let ancestors = ancestors.filter(|state| prefix.starts_with(&state.prefix));
        let Some(nearest) = ancestors.max_by_key(|state| state.prefix.len()) else {
            return Err(ConstraintError("its beginning is lost".to_owned()));
        };
        nearest.last_used = self.num_asked;
        let rest = &prefix[nearest.prefix.len()..];
        let constraint = constraint_after(&*nearest.constraint, rest)?;
        if rest.is_empty() {
            return Ok(constraint);
        }
        let forked = constraint_after(&*constraint, &[])?;
        if self.states.len() >= MOST_STATES {
            let others = self.states.iter().enumerate().skip(1);
            if let Some((oldest, _)) = others.min_by_key(|(_, state)| state.last_used) {
                self.states.swap_remove(oldest);
            }
        }
        self.states.push(State {
            prefix: prefix.to_vec(),
            constraint,
            last_used: self.num_asked,
        });
        Ok(forked)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::engine::TokenMask;

    /// Allows the numbers in their order, and counts what all its forks accept.
    #[derive(Debug, Clone)]
    struct Ascending {
        last: TokenId,
        num_accepted: Arc<AtomicUsize>,
    }

    impl TokenConstraint for Ascending {
        fn mask(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
            (self.last + 1..1000).for_each(|id| mask.allow(id));
            Ok(())
        }

        fn accept(&mut self, token_id: TokenId) -> bool {
            assert_ne!(token_id, 666, "the test's constraint panics");
            self.num_accepted.fetch_add(1, Ordering::Relaxed);
            let is_allowed = token_id > self.last;
            self.last = self.last.max(token_id);
            is_allowed
        }

        fn rollback(&mut self, _: usize) {}

        fn fork(&self) -> Box<dyn TokenConstraint> {
            Box::new(self.clone())
        }
    }

    fn least(constraint: &mut dyn TokenConstraint) -> u32 {
        let mut mask = TokenMask::none(1000);
        constraint.mask(&mut mask).unwrap();
        (0..1000).find(|id| mask.is_allowed(*id)).unwrap()
    }

    #[test]
    fn a_deep_branch_accepts_one_step_and_wrong_prefixes_are_refused() {
        let num_accepted = Arc::new(AtomicUsize::new(0));
        let constraint = BranchConstraint::new(Box::new(Ascending {
            last: 0,
            num_accepted: Arc::clone(&num_accepted),
        }));
        let path: Vec<TokenId> = (1..=500).collect();
        for depth in 0..=50 {
            for _ in 0..3 {
                let mut state = constraint.after(&path[..depth * 10]).unwrap();
                assert_eq!(least(&mut *state), depth as u32 * 10 + 1);
                // What a branch accepts is not another's.
                assert!(state.accept(900));
            }
        }
        let num_own = 51 * 3;
        assert_eq!(num_accepted.load(Ordering::Relaxed), 500 + num_own);
        // Many branches: states are forgotten, and found again from the beginning.
        for first in 1..200 {
            let mut state = constraint.after(&[first]).unwrap();
            assert_eq!(least(&mut *state), first + 1);
        }
        assert_eq!(constraint.0.lock().unwrap().states.len(), MOST_STATES);
        assert_eq!(least(&mut *constraint.after(&path).unwrap()), 501);
        assert!(constraint.after(&[5, 4]).is_err());
        assert!(constraint.after(&[5, 666]).is_err());
        assert_eq!(least(&mut *constraint.after(&[5]).unwrap()), 6);
    }
}
