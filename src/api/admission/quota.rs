//! Something that there is a limited amount of, for all and for each key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whose limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Full {
    ForAll,
    ForKey,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    /// Keys that hold nothing are not there.
    by_key: HashMap<u64, usize>,
}

#[derive(Debug)]
pub(in crate::api) struct Quota {
    max: usize,
    max_per_key: usize,
    held: Mutex<Held>,
}

impl Quota {
    pub fn new(max: usize, max_per_key: usize) -> Self {
        Self {
            max,
            max_per_key,
            held: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an amount for a key, all of it or nothing.
    pub fn take(self: &Arc<Self>, key: u64, amount: usize) -> Result<Hold, Full> {
        self.add(key, amount)?;
        Ok(Hold {
            quota: Arc::clone(self),
            key,
            amount,
        })
    }

    fn add(&self, key: u64, amount: usize) -> Result<(), Full> {
        let mut held = self.lock();
        let of_key = held.by_key.get(&key).copied().unwrap_or(0);
        let fits = |held: usize, max: usize| held.checked_add(amount).filter(|sum| *sum <= max);
        let of_key = fits(of_key, self.max_per_key).ok_or(Full::ForKey)?;
        held.all = fits(held.all, self.max).ok_or(Full::ForAll)?;
        if of_key > 0 {
            held.by_key.insert(key, of_key);
        }
        Ok(())
    }

    fn give_back(&self, key: u64, amount: usize) {
        let mut held = self.lock();
        held.all -= amount;
        if let Some(of_key) = held.by_key.get_mut(&key) {
            *of_key -= amount;
            if *of_key == 0 {
                held.by_key.remove(&key);
            }
        }
    }

    pub fn max_per_key(&self) -> usize {
        self.max_per_key
    }

    /// What all hold together.
    pub fn held(&self) -> usize {
        self.lock().all
    }
}

/// A part of a quota, given back when dropped.
#[derive(Debug)]
pub(in crate::api) struct Hold {
    quota: Arc<Quota>,
    key: u64,
    amount: usize,
}

impl Hold {
    pub fn amount(&self) -> usize {
        self.amount
    }

    /// Takes more; what is held already stays when there is no more.
    pub fn grow(&mut self, amount: usize) -> Result<(), Full> {
        self.quota.add(self.key, amount)?;
        self.amount += amount;
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.quota.give_back(self.key, self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_more_than_there_is() {
        let quota = Arc::new(Quota::new(10, 4));
        let mut first = quota.take(1, 3).unwrap();
        assert_eq!(quota.take(1, 2).unwrap_err(), Full::ForKey);
        first.grow(1).unwrap();
        assert_eq!(first.grow(1).unwrap_err(), Full::ForKey);
        let second = quota.take(2, 4).unwrap();
        assert_eq!(quota.take(3, 3).unwrap_err(), Full::ForAll);
        assert_eq!(quota.take(3, usize::MAX).unwrap_err(), Full::ForKey);
        let third = quota.take(3, 2).unwrap();
        assert_eq!(quota.held(), 10);
        drop(first);
        assert_eq!(quota.held(), 6);
        drop((second, third));
        assert_eq!(quota.held(), 0);
        // Keys that come once are not remembered.
        for key in 0..1000 {
            drop(quota.take(key, 1).unwrap());
            drop(quota.take(key, 0).unwrap());
        }
        assert_eq!(quota.lock().by_key.len(), 0);
    }
}
