//! Who asks: what a request's key lets it see and share.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The tenant of a request: salts the prefix cache, so that nobody can probe another's prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(pub u64);

/// The known key that a request came with, by its hash; `None` without one. What is counted by key
/// is counted by this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyHolder(pub Option<u64>);

/// Whose traces a request may see and change; `None` for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceScope(pub Option<u64>);

impl Tenant {
    /// Everybody, where nobody needs a key.
    pub const EVERYBODY: Self = Self(0);

    /// Of a key that the server knows. The hash is no secret and needs to be none: keys are chosen
    /// by the operator, and one that is not known has no tenant, so nobody can look for a key whose
    /// hash is another's.
    pub fn of_key(key: &str) -> Self {
        Self(xxh3_64(key.as_bytes()))
    }

    /// The prefix cache's salt: the key's own, and the client's on top.
    pub fn cache_salt(self, extra: Option<&str>) -> u64 {
        xxh3_64_with_seed(extra.unwrap_or_default().as_bytes(), self.0)
    }
}
