//! Which adapters are loaded. One that is given up stays until its last sequence has ended.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::prefix_cache::PrefixHash;
use crate::model::AdapterId;

#[derive(Debug, Default)]
pub(super) struct AdapterTable {
    loaded: Vec<AdapterId>,
    leaving: Vec<AdapterId>,
}

impl AdapterTable {
    pub fn add(&mut self, id: AdapterId) {
        self.loaded.push(id);
    }

    pub fn remove(&mut self, id: AdapterId) {
        let Some(at) = self.loaded.iter().position(|loaded| *loaded == id) else {
            return;
        };
        self.leaving.push(self.loaded.swap_remove(at));
    }

    pub fn takes_requests(&self, id: AdapterId) -> bool {
        self.loaded.contains(&id)
    }

    /// Adapters in memory.
    pub fn num_known(&self) -> usize {
        self.loaded.len() + self.leaving.len()
    }

    pub fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Those that were given up and are not used.
    pub fn take_unused(&mut self, is_used: impl Fn(AdapterId) -> bool) -> Vec<AdapterId> {
        let (used, unused) = self.leaving.drain(..).partition(|id| is_used(*id));
        self.leaving = used;
        unused
    }
}

/// The salt of a sequence's prefix-cache keys. Two sequences share a prefix only if they use the same
/// adapter and the same steering. If a draft model follows one of them, it must follow both:
/// otherwise its part of the shared blocks is empty.
pub(super) fn salted(
    salt: u64,
    adapter: Option<AdapterId>,
    steering: Option<u64>,
    is_followed: bool,
) -> PrefixHash {
    let salt = match adapter {
        None => salt,
        Some(id) => xxh3_64_with_seed(&id.0.to_le_bytes(), salt),
    };
    let salt = match steering {
        None => salt,
        Some(fingerprint) => xxh3_64_with_seed(&fingerprint.to_le_bytes(), salt),
    };
    if is_followed {
        xxh3_64_with_seed(b"draft model", salt)
    } else {
        salt
    }
}
