//! Compiled grammars, kept by what they were compiled from.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The hash of a grammar.
pub(super) type Key = [u8; 32];

struct Entry<T> {
    value: Arc<T>,
    num_bytes: usize,
    /// When it was last used, in uses.
    used_at: u64,
}

struct State<T> {
    entries: HashMap<Key, Entry<T>>,
    num_bytes: usize,
    num_uses: u64,
}

/// The most recently used values, bounded in number and in bytes.
pub(super) struct Cache<T> {
    state: Mutex<State<T>>,
    max_entries: usize,
    max_bytes: usize,
}

impl<T> Cache<T> {
    pub(super) fn new(max_entries: usize, max_bytes: usize) -> Self {
        let state = State {
            entries: HashMap::new(),
            num_bytes: 0,
            num_uses: 0,
        };
        Self {
            state: Mutex::new(state),
            max_entries,
            max_bytes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<T>> {
        let mut state = self.lock();
        state.num_uses += 1;
        let used_at = state.num_uses;
        let entry = state.entries.get_mut(key)?;
        entry.used_at = used_at;
        Some(Arc::clone(&entry.value))
    }

    /// Keeps a value, unless it is larger than the whole cache may be.
    pub(super) fn insert(&self, key: Key, value: Arc<T>, num_bytes: usize) {
        if num_bytes > self.max_bytes {
            return;
        }
        let mut state = self.lock();
        state.num_uses += 1;
        let entry = Entry {
            value,
            num_bytes,
            used_at: state.num_uses,
        };
        state.num_bytes += num_bytes;
        if let Some(old) = state.entries.insert(key, entry) {
            state.num_bytes -= old.num_bytes;
        }
        // The cache is small: looking at all entries costs less than compiling one.
        while state.entries.len() > self.max_entries || state.num_bytes > self.max_bytes {
            let oldest = state.entries.iter().min_by_key(|(_, entry)| entry.used_at);
            let Some(key) = oldest.map(|(key, _)| *key) else {
                return;
            };
            if let Some(entry) = state.entries.remove(&key) {
                state.num_bytes -= entry.num_bytes;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: u8) -> Key {
        [name; 32]
    }

    #[test]
    fn the_least_recently_used_go_first() {
        let cache = Cache::new(2, 100);
        cache.insert(key(1), 'a'.into(), 10);
        cache.insert(key(2), 'b'.into(), 10);
        assert_eq!(cache.get(&key(1)).as_deref(), Some(&'a'));
        cache.insert(key(3), 'c'.into(), 10);
        assert!(cache.get(&key(2)).is_none() && cache.get(&key(1)).is_some());
        // A large one takes the place of all others, and one that is too large takes none.
        cache.insert(key(4), 'd'.into(), 95);
        assert!(cache.get(&key(1)).is_none() && cache.get(&key(4)).is_some());
        cache.insert(key(5), 'e'.into(), 101);
        assert!(cache.get(&key(5)).is_none() && cache.get(&key(4)).is_some());
        // The same key twice counts once.
        for _ in 0..5 {
            cache.insert(key(4), 'f'.into(), 60);
        }
        cache.insert(key(6), 'g'.into(), 40);
        assert_eq!(cache.get(&key(4)).as_deref(), Some(&'f'));
        assert_eq!(cache.len(), 2);
    }
}
