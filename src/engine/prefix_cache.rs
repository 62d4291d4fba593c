//! Which block holds the KV of which token prefix.
//!
//! A block is known by a hash chained over all blocks before it and the tenant's salt; the token
//! ids are compared on a hit, so a hash collision can't serve a wrong block. Blocks that a sequence
//! left partly filled are known too, and a sequence can start inside a known block: what a branch
//! of a search continues is rarely a whole number of blocks.

use std::collections::HashMap;

use xxhash_rust::xxh3::Xxh3;

use super::request::TokenId;
use crate::model::BlockId;

/// Blocks behind one parent that a search for the longest match looks at, newest first.
const MAX_CHILDREN_VISITED: usize = 32;

/// Hash of a prefix that ends with a known block.
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
    /// The hashes behind each parent, oldest first.
    children: HashMap<PrefixHash, Vec<PrefixHash>>,
}

impl PrefixCache {
    pub(super) fn get(&self, parent: PrefixHash, token_ids: &[TokenId]) -> Option<BlockId> {
        let entry = self.entries.get(&chain(parent, token_ids))?;
        (entry.parent == parent && *entry.token_ids == *token_ids).then_some(entry.block)
    }

    /// The known block behind `parent`, of those that are usable, that begins with most of
    /// `token_ids`, and with how many.
    pub(super) fn longest_match(
        &self,
        parent: PrefixHash,
        token_ids: &[TokenId],
        is_usable: impl Fn(BlockId) -> bool,
    ) -> Option<(BlockId, usize)> {
        let children = self.children.get(&parent)?.iter().rev();
        let matches = children.take(MAX_CHILDREN_VISITED).filter_map(|hash| {
            let entry = self.entries.get(hash)?;
            let pairs = entry.token_ids.iter().zip(token_ids);
            let len = pairs.take_while(|(known, wanted)| known == wanted).count();
            (len > 0 && is_usable(entry.block)).then_some((entry.block, len))
        });
        matches.max_by_key(|(_, len)| *len)
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
        self.children.entry(parent).or_default().push(hash);
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
        let Some(entry) = self.entries.remove(&hash) else {
            return;
        };
        if let Some(children) = self.children.get_mut(&entry.parent) {
            children.retain(|child| *child != hash);
            if children.is_empty() {
                self.children.remove(&entry.parent);
            }
        }
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = (PrefixHash, BlockId)> + '_ {
        self.entries
            .iter()
            .map(|(hash, entry)| (*hash, entry.block))
    }
}
