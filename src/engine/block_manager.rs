//! Ownership of KV blocks: reference counts, the free lists and the prefix cache.
//!
//! A block is in exactly one state:
//! 1. *free*: nobody refers to it and its contents are worthless;
//! 2. *cached*: nobody refers to it but a known prefix lives in it (evicted oldest first);
//! 3. *used*: `ref_count` block tables refer to it.

use std::collections::BTreeMap;

use super::prefix_cache::{PrefixCache, PrefixHash};
use super::request::TokenId;
use crate::model::BlockId;

#[derive(Debug, Default, Clone)]
struct Block {
    ref_count: u32,
    /// The prefix that this block is known for.
    hash: Option<PrefixHash>,
    /// When it became unreferenced; its key in `cached`.
    released_at: u64,
}

#[derive(Debug)]
pub(super) struct BlockManager {
    block_size: usize,
    blocks: Vec<Block>,
    free: Vec<BlockId>,
    cached: BTreeMap<u64, BlockId>,
    prefix_cache: PrefixCache,
    /// Blocks with a reference.
    num_referenced: usize,
    clock: u64,
}

impl BlockManager {
    pub(super) fn new(num_blocks: usize, block_size: usize) -> Self {
        Self {
            block_size,
            blocks: vec![Block::default(); num_blocks],
            free: (0..num_blocks as BlockId).rev().collect(),
            cached: BTreeMap::new(),
            prefix_cache: PrefixCache::default(),
            num_referenced: 0,
            clock: 0,
        }
    }

    pub(super) fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks that an allocation can get.
    pub(super) fn num_available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    pub(super) fn num_used(&self) -> usize {
        self.blocks.len() - self.num_available()
    }

    /// A block of unknown contents with one reference; evicts the oldest cached block when none is free.
    pub(super) fn allocate(&mut self) -> Option<BlockId> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => {
                let (_, block) = self.cached.pop_first()?;
                let hash = self.blocks[block as usize].hash.take();
                self.prefix_cache
                    .remove(hash.expect("a cached block has a hash; this is a bug"));
                block
            }
        };
        self.blocks[block as usize].ref_count = 1;
        self.num_referenced += 1;
        Some(block)
    }

    /// Adds a reference.
    pub(super) fn share(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block as usize];
        if entry.ref_count == 0 {
            self.cached
                .remove(&entry.released_at)
                .expect("an unreferenced shared block is cached; this is a bug");
            self.num_referenced += 1;
        }
        entry.ref_count += 1;
    }

    /// Drops a reference.
    pub(super) fn release(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block as usize];
        assert!(
            entry.ref_count > 0,
            "block {block} is free already; this is a bug"
        );
        entry.ref_count -= 1;
        if entry.ref_count > 0 {
            return;
        }
        self.num_referenced -= 1;
        if entry.hash.is_some() {
            self.clock += 1;
            entry.released_at = self.clock;
            self.cached.insert(self.clock, block);
        } else {
            self.free.push(block);
        }
    }

    /// Drops every reference of a table, last block first, so that eviction takes tails before heads.
    pub(super) fn release_all(&mut self, block_table: &mut Vec<BlockId>) {
        while let Some(block) = block_table.pop() {
            self.release(block);
        }
    }

    /// Whether others rely on the block's contents: other tables, or the prefix cache.
    pub(super) fn is_shared(&self, block: BlockId) -> bool {
        let block = &self.blocks[block as usize];
        block.ref_count > 1 || block.hash.is_some()
    }

    /// The block behind prefix `parent` that holds `token_ids`, if it is known.
    pub(super) fn lookup(&self, parent: PrefixHash, token_ids: &[TokenId]) -> Option<BlockId> {
        self.prefix_cache.get(parent, token_ids)
    }

    /// The block behind prefix `parent` that begins with most of `token_ids`, and with how many.
    pub(super) fn longest_match(
        &self,
        parent: PrefixHash,
        token_ids: &[TokenId],
    ) -> Option<(BlockId, usize)> {
        self.prefix_cache.longest_match(parent, token_ids)
    }

    /// Makes a block with `token_ids` findable; nobody writes to it any more. A prefix that is known already keeps its first block.
    pub(super) fn register(
        &mut self,
        block: BlockId,
        hash: PrefixHash,
        parent: PrefixHash,
        token_ids: &[TokenId],
    ) {
        let entry = &mut self.blocks[block as usize];
        if entry.hash.is_none() && self.prefix_cache.insert(hash, parent, token_ids, block) {
            entry.hash = Some(hash);
        }
    }

    /// What the counts of blocks say that cannot be, if anything: they are free, cached or used.
    pub(super) fn miscounted(&self) -> Option<String> {
        let (free, cached) = (self.free.len(), self.cached.len());
        let (used, all) = (self.num_referenced, self.blocks.len());
        let is_right = free + cached + used == all;
        (!is_right).then(|| format!("{free} free, {cached} cached, {used} used of {all}"))
    }

    /// Where the states of blocks do not agree with the `tables` that refer to them, if anywhere.
    pub(super) fn inconsistency<'a>(
        &self,
        tables: impl Iterator<Item = &'a [BlockId]>,
    ) -> Option<String> {
        let mut references = vec![0; self.blocks.len()];
        for block in tables.flatten() {
            references[*block as usize] += 1;
        }
        let mut listed = vec![0; self.blocks.len()];
        for block in &self.free {
            listed[*block as usize] += 1;
            if self.blocks[*block as usize].hash.is_some() {
                return Some(format!("the free block {block} has a prefix"));
            }
        }
        for (stamp, block) in &self.cached {
            listed[*block as usize] += 1;
            let entry = &self.blocks[*block as usize];
            if entry.released_at != *stamp || entry.hash.is_none() {
                return Some(format!("the cached block {block} has no prefix"));
            }
        }
        for (index, block) in self.blocks.iter().enumerate() {
            let (count, expected) = (block.ref_count, references[index]);
            if count != expected {
                return Some(format!(
                    "block {index} has {count} references of {expected}"
                ));
            }
            if listed[index] != u32::from(count == 0) {
                return Some(format!("block {index} is in {} lists", listed[index]));
            }
        }
        let mut num_known = 0;
        for (hash, block) in self.prefix_cache.blocks() {
            num_known += 1;
            if self.blocks[block as usize].hash != Some(hash) {
                return Some(format!("block {block} does not know its prefix"));
            }
        }
        let with_hash = self.blocks.iter().filter(|block| block.hash.is_some());
        let num_expected = with_hash.count();
        (num_known != num_expected)
            .then(|| format!("{num_known} prefixes of {num_expected} blocks"))
    }
}
