//! Which block holds the KV of which token prefix.
//!
//! A full block is known by a hash chained over all blocks before it and the tenant's salt; the token
//! ids are compared on a hit, so a hash collision can't serve a wrong block.

use std::collections::HashMap;

use xxhash_rust::xxh3::Xxh3;

use super::request::TokenId;
use crate::model::BlockId;

/// Hash of a prefix that ends at a block boundary.
pub(super) type PrefixHash = u64;

/// The hash of the block `token_ids` behind the prefix `parent` (the salt for the first block).
pub(super) fn chain(parent: PrefixHash, token_ids: &[TokenId]) -> PrefixHash {
    let mut hasher = Xxh3::new();
    hasher.update(&parent.to_le_bytes());
    for token_id in token_ids {
        hasher.update(&token_id.to_le_bytes());
    }
    hasher.digest()
}

#[derive(Debug)]
struct Entry {
    block: BlockId,
    parent: PrefixHash,
    token_ids: Box<[TokenId]>,
}

#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    entries: HashMap<PrefixHash, Entry>,
}

impl PrefixCache {
    pub(super) fn get(&self, parent: PrefixHash, token_ids: &[TokenId]) -> Option<BlockId> {
        let entry = self.entries.get(&chain(parent, token_ids))?;
        (entry.parent == parent && *entry.token_ids == *token_ids).then_some(entry.block)
    }

    /// Records a block; returns false when the prefix is known already.
    pub(super) fn insert(
        &mut self,
        hash: PrefixHash,
        parent: PrefixHash,
        token_ids: &[TokenId],
        block: BlockId,
    ) -> bool {
        if self.entries.contains_key(&hash) {
            return false;
        }
        self.entries.insert(
            hash,
            Entry {
                block,
                parent,
                token_ids: token_ids.into(),
            },
        );
        true
    }

    pub(super) fn remove(&mut self, hash: PrefixHash) {
        self.entries.remove(&hash);
    }

    #[cfg(test)]
    pub(super) fn blocks(&self) -> impl Iterator<Item = (PrefixHash, BlockId)> + '_ {
        self.entries
            .iter()
            .map(|(hash, entry)| (*hash, entry.block))
    }
}
