//! Tokens that several requests share.

use std::sync::atomic::{AtomicU64, Ordering};

/// Tokens that several requests may generate together: a hard limit, taken from before each token.
#[derive(Debug)]
pub struct TokenBudget {
    limit: u64,
    spent: AtomicU64,
}

impl TokenBudget {
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            spent: AtomicU64::new(0),
        }
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    pub fn spent(&self) -> u64 {
        self.spent.load(Ordering::Acquire)
    }

    pub fn remaining(&self) -> u64 {
        self.limit - self.spent()
    }

    /// Takes tokens that were generated elsewhere, all of them or, when fewer are left, none.
    pub fn charge(&self, num_tokens: u64) -> bool {
        let charge = |spent: u64| {
            let spent = spent.checked_add(num_tokens)?;
            (spent <= self.limit).then_some(spent)
        };
        self.spent
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, charge)
            .is_ok()
    }

    /// Takes one token if one is left.
    pub fn take(&self) -> bool {
        let spend = |spent: u64| (spent < self.limit).then_some(spent + 1);
        self.spent
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, spend)
            .is_ok()
    }
}
