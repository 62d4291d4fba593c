//! Who asks: what a request's key lets it see and share.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The tenant of a request: salts the prefix cache, so that nobody can probe another's prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tenant(pub u64);

/// Whose traces a request may see and change; `None` for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceScope(pub Option<u64>);

impl Tenant {
    /// The prefix cache's salt: the key's own, and the client's on top.
    pub fn cache_salt(self, extra: Option<&str>) -> u64 {
        xxh3_64_with_seed(extra.unwrap_or_default().as_bytes(), self.0)
    }
}
