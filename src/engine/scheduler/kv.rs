//! The blocks of a sequence: made before its rows run, registered once they have.

use super::Scheduler;
use crate::engine::batch::{ScheduledBatch, ScheduledRows};
use crate::engine::block_manager::BlockManager;
use crate::engine::prefix_cache::chain;
use crate::engine::sequence::{SeqId, Sequence};
use crate::model::BlockId;

/// What the next rows of a sequence need.
struct Needs {
    /// The block that the first of them is written to.
    first_block: usize,
    /// Others rely on that block: it must be copied before it is written to.
    is_copied: bool,
    /// Blocks beside those that are there.
    num_new: usize,
}

impl Scheduler {
    fn needs(&self, id: SeqId, num_rows: usize) -> Needs {
        let block_size = self.blocks.block_size();
        let sequence = &self.sequences[id];
        let first_block = sequence.num_computed_tokens / block_size;
        let num_blocks = (sequence.num_computed_tokens + num_rows).div_ceil(block_size);
        let block = sequence.block_table.get(first_block);
        Needs {
            first_block,
            is_copied: block.is_some_and(|block| self.blocks.is_shared(*block)),
            num_new: num_blocks.saturating_sub(sequence.block_table.len()),
        }
    }

    pub(super) fn can_reserve(&self, id: SeqId, num_rows: usize) -> bool {
        let needs = self.needs(id, num_rows);
        self.blocks.num_available() >= needs.num_new + usize::from(needs.is_copied)
    }

    /// Makes the blocks of the next `num_rows` tokens exist and belong to this sequence alone; false, with nothing changed,
    /// where too few are free.
    pub(super) fn reserve(
        &mut self,
        id: SeqId,
        num_rows: usize,
        batch: &mut ScheduledBatch,
    ) -> bool {
        if !self.can_reserve(id, num_rows) {
            return false;
        }
        let needs = self.needs(id, num_rows);
        let sequence = &mut self.sequences[id];
        if needs.is_copied {
            let source = sequence.block_table[needs.first_block];
            let Some(target) = self.blocks.allocate() else {
                return false;
            };
            self.blocks.release(source);
            sequence.block_table[needs.first_block] = target;
            batch.block_copies.push((source, target));
        }
        for _ in 0..needs.num_new {
            let Some(block) = self.blocks.allocate() else {
                return false;
            };
            sequence.block_table.push(block);
        }
        true
    }

    /// Records that a sequence's scheduled rows were computed and makes its full blocks findable.
    pub(in crate::engine) fn commit_rows(&mut self, rows: ScheduledRows) {
        let block_size = self.blocks.block_size();
        let sequence = &mut self.sequences[rows.seq];
        sequence.num_computed_tokens += rows.num_rows;
        while (sequence.block_hashes.len() + 1) * block_size <= sequence.num_computed_tokens {
            let index = sequence.block_hashes.len();
            let token_ids = &sequence.token_ids[index * block_size..(index + 1) * block_size];
            let parent = sequence.parent_hash();
            let hash = chain(parent, token_ids);
            if self.config.enable_prefix_caching && sequence.has_shareable_kv() {
                let block = sequence.block_table[index];
                self.blocks.register(block, hash, parent, token_ids);
            }
            sequence.block_hashes.push(hash);
        }
    }

    /// Makes the blocks from `first_token`'s on belong to the sequence alone, known to nobody; returns the copies to make before
    /// they are written to, or `None` when there are too few free blocks.
    pub(in crate::engine) fn own_blocks(
        &mut self,
        id: SeqId,
        first_token: usize,
    ) -> Option<Vec<(BlockId, BlockId)>> {
        let first = first_token / self.blocks.block_size();
        let blocks = &mut self.sequences[id].block_table[first..];
        let is_shared = |block: &&mut BlockId| self.blocks.is_shared(**block);
        if blocks.iter_mut().filter(is_shared).count() > self.blocks.num_available() {
            return None;
        }
        let mut copies = Vec::new();
        for block in blocks {
            if self.blocks.is_shared(*block) {
                let source = *block;
                *block = self.blocks.allocate()?;
                self.blocks.release(source);
                copies.push((source, *block));
            }
        }
        Some(copies)
    }

    /// Gives back the blocks that a sequence's computed tokens do not reach: they hold nothing but rejected draft tokens.
    pub(in crate::engine) fn release_unused_blocks(&mut self, id: SeqId) {
        let sequence = &mut self.sequences[id];
        let num_used = sequence
            .num_computed_tokens
            .div_ceil(self.blocks.block_size());
        for block in sequence.block_table.drain(num_used..) {
            self.blocks.release(block);
        }
    }
}

/// Makes the partly filled last block of a sequence that ends findable, for what continues it.
pub(super) fn register_tail(blocks: &mut BlockManager, sequence: &Sequence) {
    let num_full = sequence.block_hashes.len();
    let start = num_full * blocks.block_size();
    let token_ids = &sequence.token_ids[start..sequence.num_computed_tokens.max(start)];
    let block = sequence.block_table.get(num_full);
    if let Some(block) = block
        && sequence.has_shareable_kv()
        && !token_ids.is_empty()
    {
        let parent = sequence.parent_hash();
        let hash = chain(parent, token_ids);
        blocks.register(*block, hash, parent, token_ids);
    }
}
