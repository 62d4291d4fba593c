//! Ownership of KV blocks: reference counts, the free lists and the prefix cache.
//!
//! A block is in exactly one state:
//! 1. *free*: nobody refers to it and its contents are worthless;
//! 2. *cached*: nobody refers to it but a known prefix lives in it (evicted oldest first);
//! 3. *used*: `ref_count` block tables refer to it.
//!
//! Where the layers with a sliding window have a pool of their own, each block that is allocated
//! gets a place there, too, which may be given back before the block is (`local_pool.rs`).

use std::collections::BTreeMap;

use super::block_tables::BlockTables;
use super::local_pool::LocalPool;
use super::prefix_cache::{PrefixCache, PrefixHash};
use super::request::TokenId;
use crate::model::{BlockId, NO_BLOCK};

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
    local: Option<LocalPool>,
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
            local: None,
            num_referenced: 0,
            clock: 0,
        }
    }

    /// The same with a pool of so many places for the layers with a sliding window.
    pub(super) fn with_local_pool(self, num_places: usize) -> Self {
        let local = Some(LocalPool::new(self.blocks.len(), num_places));
        Self { local, ..self }
    }

    pub(super) fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks that an allocation can get.
    pub(super) fn num_available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    /// Whether so many allocations in a row succeed.
    pub(super) fn can_allocate(&self, num_blocks: usize) -> bool {
        let mut pools = self.local.iter().map(LocalPool::num_available);
        self.num_available() >= num_blocks && pools.all(|available| available >= num_blocks)
    }

    pub(super) fn num_used(&self) -> usize {
        self.blocks.len() - self.num_available()
    }

    /// Places of the layers with a window that sequences need.
    pub(super) fn num_used_locally(&self) -> usize {
        self.local.as_ref().map_or(0, LocalPool::num_used)
    }

    /// A block of unknown contents with one reference; evicts the oldest cached block when none is free.
    /// It has a place in the local pool, if there is one, with one reference, too.
    pub(super) fn allocate(&mut self) -> Option<BlockId> {
        if !self.can_allocate(1) {
            return None;
        }
        let block = match self.free.pop() {
            Some(block) => block,
            None => {
                let (_, block) = self.cached.pop_first()?;
                let hash = self.blocks[block as usize].hash.take();
                self.prefix_cache
                    .remove(hash.expect("a cached block has a hash; this is a bug"));
                self.forget_place(block);
                block
            }
        };
        self.blocks[block as usize].ref_count = 1;
        self.num_referenced += 1;
        if let Some(local) = &mut self.local {
            local.allocate(block)?;
        }
        Some(block)
    }

    /// A block's place in the local pool.
    pub(super) fn place(&self, block: BlockId) -> Option<BlockId> {
        self.local.as_ref()?.get(block)
    }

    /// Adds a reference to a block's place in the local pool, and tells where it is.
    pub(super) fn share_place(&mut self, block: BlockId) -> Option<BlockId> {
        self.local.as_mut()?.share(block)
    }

    /// Drops a reference to a block's place in the local pool.
    pub(super) fn release_place(&mut self, block: BlockId) {
        let is_known = self.blocks[block as usize].hash.is_some();
        if let Some(local) = &mut self.local {
            local.release(block, is_known);
        }
    }

    fn forget_place(&mut self, block: BlockId) {
        if let Some(local) = &mut self.local {
            local.forget(block);
        }
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
    pub(super) fn release_all(&mut self, tables: &mut BlockTables) {
        while let Some(block) = tables.pop() {
            self.release_entry(block);
        }
    }

    /// Drops the references of an entry of a table: to a block, and to its place in the local pool.
    pub(super) fn release_entry(&mut self, (block, place): (BlockId, BlockId)) {
        if place != NO_BLOCK {
            self.release_place(block);
        }
        self.release(block);
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

    /// The block behind prefix `parent` that begins with most of `token_ids`, and with how many. It
    /// has its place in the local pool, if there is one.
    pub(super) fn longest_match(
        &self,
        parent: PrefixHash,
        token_ids: &[TokenId],
    ) -> Option<(BlockId, usize)> {
        let local = self.local.as_ref();
        let has_place = |block| local.is_none_or(|local| local.get(block).is_some());
        self.prefix_cache
            .longest_match(parent, token_ids, has_place)
    }

    /// Makes a block with `token_ids` findable; nobody writes to it any more. A prefix that is
    /// known already keeps its first block, unless that has lost its place in the local pool:
    /// nothing can start behind it any more.
    pub(super) fn register(
        &mut self,
        block: BlockId,
        hash: PrefixHash,
        parent: PrefixHash,
        token_ids: &[TokenId],
    ) {
        if self.blocks[block as usize].hash.is_some() {
            return;
        }
        if self.place(block).is_some()
            && let Some(known) = self.prefix_cache.get(parent, token_ids)
            && self.place(known).is_none()
        {
            self.unregister(known);
        }
        if self.prefix_cache.insert(hash, parent, token_ids, block) {
            self.blocks[block as usize].hash = Some(hash);
        }
    }

    /// Makes a block that has no place in the local pool be known for nothing.
    fn unregister(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block as usize];
        if let Some(hash) = entry.hash.take() {
            self.prefix_cache.remove(hash);
        }
        if entry.ref_count == 0 && self.cached.remove(&entry.released_at).is_some() {
            self.free.push(block);
        }
    }

    /// What the counts of blocks say that cannot be, if anything: they are free, cached or used.
    pub(super) fn miscounted(&self) -> Option<String> {
        let (free, cached) = (self.free.len(), self.cached.len());
        let (used, all) = (self.num_referenced, self.blocks.len());
        let is_right = free + cached + used == all;
        let blocks = || format!("{free} free, {cached} cached, {used} used of {all}");
        let places = self.local.as_ref().and_then(LocalPool::miscounted);
        (!is_right).then(blocks).or(places)
    }

    /// Where the states of blocks do not agree with the `tables` that refer to them, if anywhere.
    pub(super) fn inconsistency<'a>(
        &self,
        tables: impl Iterator<Item = &'a BlockTables> + Clone,
    ) -> Option<String> {
        if let Some(local) = &self.local {
            let needed = tables.clone().flat_map(BlockTables::needed_places);
            let is_known = |block: BlockId| self.blocks[block as usize].hash.is_some();
            let inconsistency = local.inconsistency(needed, is_known);
            if inconsistency.is_some() {
                return inconsistency;
            }
        }
        let mut references = vec![0; self.blocks.len()];
        for block in tables.flat_map(|tables| &tables.blocks) {
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
