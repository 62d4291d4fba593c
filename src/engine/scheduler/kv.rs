//! The blocks of a sequence: made before its rows run, registered once they have.

use super::Scheduler;
use crate::engine::batch::{ScheduledBatch, ScheduledRows};
use crate::engine::block_manager::BlockManager;
use crate::engine::block_tables::{BlockCopies, BlockTables};
use crate::engine::prefix_cache::chain;
use crate::engine::sequence::{SeqId, Sequence};
use crate::model::NO_BLOCK;

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
        let block = sequence.tables.blocks.get(first_block);
        Needs {
            first_block,
            is_copied: block.is_some_and(|block| self.blocks.is_shared(*block)),
            num_new: num_blocks.saturating_sub(sequence.tables.len()),
        }
    }

    pub(super) fn can_reserve(&self, id: SeqId, num_rows: usize) -> bool {
        let needs = self.needs(id, num_rows);
        let num_blocks = needs.num_new + usize::from(needs.is_copied);
        self.blocks.can_allocate(num_blocks)
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
        let tables = &mut self.sequences[id].tables;
        if needs.is_copied
            && own_block(
                &mut self.blocks,
                tables,
                needs.first_block,
                &mut batch.block_copies,
            )
            .is_none()
        {
            return false;
        }
        for _ in 0..needs.num_new {
            let Some(block) = self.blocks.allocate() else {
                return false;
            };
            tables.push(block, self.blocks.place(block));
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
                let block = sequence.tables.blocks[index];
                self.blocks.register(block, hash, parent, token_ids);
            }
            sequence.block_hashes.push(hash);
        }
        self.release_passed_places(rows.seq);
    }

    /// Gives back the places of blocks that lie behind all that a sequence will compute or read. A
    /// phase of adaptation still reads what it began with.
    pub(in crate::engine) fn release_passed_places(&mut self, id: SeqId) {
        if self.config.local.is_none() {
            return;
        }
        let sequence = &mut self.sequences[id];
        if sequence.is_adapting() {
            return;
        }
        let num_more = sequence.num_more_kept_tokens();
        let computed = sequence.num_computed_tokens;
        let num_passed = self.config.num_passed_blocks(computed, num_more);
        let num_passed = num_passed.min(sequence.tables.len());
        // Those before have been given back already.
        let mut first = num_passed;
        while first > 0 && sequence.tables.has_place(first - 1) {
            first -= 1;
        }
        for index in first..num_passed {
            self.blocks.release_place(sequence.tables.blocks[index]);
            sequence.tables.local[index] = NO_BLOCK;
        }
    }

    /// Makes the blocks from `first_token`'s on belong to the sequence alone, known to nobody; returns the copies to make before
    /// they are written to, or `None` when there are too few free blocks, or what the token sees
    /// has been given back.
    pub(in crate::engine) fn own_blocks(
        &mut self,
        id: SeqId,
        first_token: usize,
    ) -> Option<BlockCopies> {
        let block_size = self.blocks.block_size();
        let tables = &mut self.sequences[id].tables;
        if let Some(local) = &self.config.local {
            let first_seen = (first_token + 1).saturating_sub(local.window) / block_size;
            if !(first_seen..tables.len()).all(|index| tables.has_place(index)) {
                return None;
            }
        }
        let own = first_token / block_size..tables.len();
        let is_shared = |index: &usize| self.blocks.is_shared(tables.blocks[*index]);
        let shared: Vec<usize> = own.filter(is_shared).collect();
        if !self.blocks.can_allocate(shared.len()) {
            return None;
        }
        let mut copies = BlockCopies::default();
        for index in shared {
            own_block(&mut self.blocks, tables, index, &mut copies)?;
        }
        Some(copies)
    }

    /// Gives back the blocks that a sequence's computed tokens do not reach: they hold nothing but rejected draft tokens.
    pub(in crate::engine) fn release_unused_blocks(&mut self, id: SeqId) {
        let sequence = &mut self.sequences[id];
        let num_used = sequence
            .num_computed_tokens
            .div_ceil(self.blocks.block_size());
        while sequence.tables.len() > num_used
            && let Some(entry) = sequence.tables.pop()
        {
            self.blocks.release_entry(entry);
        }
    }
}

/// Puts a copy in the place of a block that others rely on, and notes what is to be copied.
fn own_block(
    blocks: &mut BlockManager,
    tables: &mut BlockTables,
    index: usize,
    copies: &mut BlockCopies,
) -> Option<()> {
    let source = tables.blocks[index];
    let target = blocks.allocate()?;
    copies.blocks.push((source, target));
    let mut place = NO_BLOCK;
    if let Some(target_place) = blocks.place(target) {
        place = std::mem::replace(&mut tables.local[index], target_place);
        copies.local.push((place, target_place));
    }
    blocks.release_entry((source, place));
    tables.blocks[index] = target;
    Some(())
}

/// Makes the partly filled last block of a sequence that ends findable, for what continues it.
pub(super) fn register_tail(blocks: &mut BlockManager, sequence: &Sequence) {
    let num_full = sequence.block_hashes.len();
    let start = num_full * blocks.block_size();
    let token_ids = &sequence.token_ids[start..sequence.num_computed_tokens.max(start)];
    let block = sequence.tables.blocks.get(num_full);
    if let Some(block) = block
        && sequence.has_shareable_kv()
        && !token_ids.is_empty()
    {
        let parent = sequence.parent_hash();
        let hash = chain(parent, token_ids);
        blocks.register(*block, hash, parent, token_ids);
    }
}
