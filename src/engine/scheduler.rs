//! Which rows run next. Pure bookkeeping: no tensors, clocks, channels or random state.

use std::cmp::Ordering;
use std::collections::VecDeque;

use super::batch::{ScheduledBatch, ScheduledRows};
use super::block_manager::BlockManager;
use super::prefix_cache::chain;
use super::request::{EngineConfig, EngineStats, RequestId};
use super::sequence::{Group, Sequence};
use crate::model::BlockId;

/// Rows a step computes of a prompt whose logprobs or pooled positions are wanted: each needs a row of logits.
const PROMPT_LOGPROB_ROWS: usize = 64;

/// The waiting and running sequences and the blocks they hold.
pub(super) struct Scheduler {
    config: EngineConfig,
    pub blocks: BlockManager,
    waiting: VecDeque<Sequence>,
    /// In order of admission.
    pub running: Vec<Sequence>,
    pub stats: EngineStats,
}

impl Scheduler {
    pub(super) fn new(config: EngineConfig) -> Self {
        Self {
            blocks: BlockManager::new(config.num_blocks, config.block_size),
            waiting: VecDeque::new(),
            running: Vec::new(),
            stats: EngineStats {
                num_blocks: config.num_blocks,
                ..EngineStats::default()
            },
            config,
        }
    }

    pub(super) fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// Adds a sequence that shares the blocks of a running one, or queues it when no place is left.
    pub(super) fn add_fork(&mut self, sequence: Sequence) {
        if self.num_running() + sequence.width() > self.config.max_num_seqs {
            self.waiting.push_back(sequence.without_kv());
            return;
        }
        for block in &sequence.block_table {
            self.blocks.share(*block);
        }
        self.running.push(sequence);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Running sequences, the siblings they will fork included.
    fn num_running(&self) -> usize {
        self.running.iter().map(Sequence::width).sum()
    }

    /// Sequences that wait, siblings included.
    pub(super) fn num_waiting(&self) -> usize {
        self.waiting.iter().map(Sequence::width).sum()
    }

    pub(super) fn sequences(&self) -> impl Iterator<Item = &Sequence> + Clone {
        self.running.iter().chain(&self.waiting)
    }

    /// Removes the sequences for which `is_done` holds, frees their blocks and returns them.
    pub(super) fn remove(&mut self, is_done: impl Fn(&Sequence) -> bool) -> Vec<Sequence> {
        let mut removed = Vec::new();
        for sequence in self.running.extract_if(.., |sequence| is_done(sequence)) {
            removed.push(sequence);
        }
        let waiting = std::mem::take(&mut self.waiting);
        for sequence in waiting {
            if is_done(&sequence) {
                removed.push(sequence);
            } else {
                self.waiting.push_back(sequence);
            }
        }
        for sequence in &mut removed {
            self.register_tail(sequence);
            self.blocks.release_all(&mut sequence.block_table);
        }
        removed
    }

    /// Makes the partly filled last block of a sequence that ends findable, for what continues it.
    fn register_tail(&mut self, sequence: &Sequence) {
        let num_full = sequence.block_hashes.len();
        let start = num_full * self.blocks.block_size();
        let token_ids = &sequence.token_ids[start..sequence.num_computed_tokens.max(start)];
        let block = sequence.block_table.get(num_full);
        if let Some(block) = block
            && self.config.enable_prefix_caching
            && sequence.has_shareable_kv()
            && !token_ids.is_empty()
        {
            let parent = sequence.parent_hash();
            let hash = chain(parent, token_ids);
            self.blocks.register(*block, hash, parent, token_ids);
        }
    }

    pub(super) fn find_running(&self, request: RequestId, index: usize) -> Option<&Sequence> {
        self.running
            .iter()
            .find(|sequence| sequence.request == request && sequence.index == index)
    }

    /// Chooses the next step: decode rows first, then prefill chunks, then new sequences.
    pub(super) fn schedule(&mut self, batch: &mut ScheduledBatch) {
        batch.rows.clear();
        batch.block_copies.clear();
        let mut budget = self.config.max_num_batched_tokens;
        let num_preemptions = self.stats.num_preemptions;
        for decoding in [true, false] {
            let mut index = 0;
            while index < self.running.len() {
                index = if self.running[index].is_decoding() == decoding {
                    self.schedule_running(index, batch, &mut budget)
                } else {
                    index + 1
                };
            }
        }
        // After a preemption blocks are scarce: admitting now would only preempt again.
        if self.stats.num_preemptions == num_preemptions {
            while self.admit(batch, &mut budget) {}
        }
        batch.rows.sort_unstable_by_key(|rows| rows.running_index);
    }

    /// Rows that the sequence may run now; 0 when the budget is too small for it.
    fn wanted_rows(&self, sequence: &Sequence, budget: usize, batch_is_empty: bool) -> usize {
        if sequence.is_adapting() {
            return 0;
        }
        let mut wanted = sequence.num_uncomputed_tokens() + sequence.draft.num_rows();
        if sequence.wants_prompt_logprobs() {
            wanted = wanted.min(PROMPT_LOGPROB_ROWS);
        }
        let unsteered = sequence
            .steering_from
            .saturating_sub(sequence.num_computed_tokens);
        if unsteered > 0 {
            wanted = wanted.min(unsteered);
        }
        let positions = sequence.pending_positions();
        if let Some(position) = positions.get(PROMPT_LOGPROB_ROWS) {
            wanted = wanted.min(position - sequence.num_computed_tokens);
        }
        if wanted <= budget || self.config.enable_chunked_prefill {
            return wanted.min(budget);
        }
        // Without chunking a prompt longer than the budget runs in a step of its own.
        if batch_is_empty { wanted } else { 0 }
    }

    /// Schedules the sequence at `index` if it can run; returns which to visit next.
    fn schedule_running(
        &mut self,
        mut index: usize,
        batch: &mut ScheduledBatch,
        budget: &mut usize,
    ) -> usize {
        let is_empty = batch.rows.is_empty();
        let mut num_rows = self.wanted_rows(&self.running[index], *budget, is_empty);
        if num_rows == 0 {
            return index + 1;
        }
        if self.running[index].draft.num_rows() > 0 && !self.can_reserve(index, num_rows) {
            // A draft is a guess: nobody is preempted for it.
            self.running[index].draft.clear();
            num_rows = self.running[index].num_uncomputed_tokens();
        }
        while !self.reserve(index, num_rows, batch) {
            let victim = self.victim();
            self.preempt(victim, batch, budget);
            match victim.cmp(&index) {
                Ordering::Equal => return index,
                Ordering::Less => index -= 1,
                Ordering::Greater => {}
            }
        }
        *budget = budget.saturating_sub(num_rows);
        batch.rows.push(ScheduledRows {
            running_index: index,
            num_rows,
        });
        index + 1
    }

    /// The running sequence of the lowest priority, the newest of equals.
    fn victim(&self) -> usize {
        let newest_first = (0..self.running.len()).rev();
        let lowest = newest_first.min_by(|a, b| {
            let priority = |index: usize| self.running[index].priority;
            priority(*a).total_cmp(&priority(*b))
        });
        lowest.expect("a sequence runs; this is a bug")
    }

    /// Gives a sequence's blocks back; it is computed again later.
    fn preempt(&mut self, victim: usize, batch: &mut ScheduledBatch, budget: &mut usize) {
        if let Some(at) = batch
            .rows
            .iter()
            .position(|rows| rows.running_index == victim)
        {
            *budget += batch.rows.swap_remove(at).num_rows;
        }
        let mut sequence = self.running.remove(victim);
        for rows in &mut batch.rows {
            rows.running_index -= usize::from(rows.running_index > victim);
        }
        // Its copy-on-write targets go with it: copying into a block that is free again does no harm
        // only as long as nobody else gets it in this step.
        let num_copies = batch.block_copies.len();
        batch
            .block_copies
            .retain(|(_, target)| !sequence.block_table.contains(target));
        if batch.block_copies.len() == num_copies {
            self.register_tail(&sequence);
        }
        self.blocks.release_all(&mut sequence.block_table);
        self.stats.num_preemptions += 1;
        // A phase that ran begins again once the tokens are computed.
        self.waiting.push_front(sequence.without_kv());
    }

    /// The index of the block that the next `num_rows` tokens begin in, whether it must be copied before it is written to,
    /// and how many blocks they need beside those that are there.
    fn needed_blocks(&self, index: usize, num_rows: usize) -> (usize, bool, usize) {
        let block_size = self.blocks.block_size();
        let sequence = &self.running[index];
        let first_block = sequence.num_computed_tokens / block_size;
        let num_blocks = (sequence.num_computed_tokens + num_rows).div_ceil(block_size);
        let is_copied = sequence
            .block_table
            .get(first_block)
            .is_some_and(|block| self.blocks.is_shared(*block));
        let num_new = num_blocks.saturating_sub(sequence.block_table.len());
        (first_block, is_copied, num_new)
    }

    fn can_reserve(&self, index: usize, num_rows: usize) -> bool {
        let (_, is_copied, num_new) = self.needed_blocks(index, num_rows);
        self.blocks.num_available() >= num_new + usize::from(is_copied)
    }

    /// Makes the blocks of the next `num_rows` tokens exist and belong to this sequence alone.
    fn reserve(&mut self, index: usize, num_rows: usize, batch: &mut ScheduledBatch) -> bool {
        if !self.can_reserve(index, num_rows) {
            return false;
        }
        let (first_block, is_copied, num_new) = self.needed_blocks(index, num_rows);
        let sequence = &mut self.running[index];
        if is_copied {
            let source = sequence.block_table[first_block];
            let target = self
                .blocks
                .allocate()
                .expect("checked above; this is a bug");
            self.blocks.release(source);
            sequence.block_table[first_block] = target;
            batch.block_copies.push((source, target));
        }
        for _ in 0..num_new {
            let block = self
                .blocks
                .allocate()
                .expect("checked above; this is a bug");
            sequence.block_table.push(block);
        }
        true
    }

    /// Whose turn it is to be admitted: the first in the queue whose group has the fewest running sequences, so
    /// that a search with many branches takes no more than its share.
    fn next_waiting(&self) -> Option<usize> {
        let mut counts: Vec<(Group, usize)> = Vec::new();
        for sequence in &self.running {
            match counts
                .iter_mut()
                .find(|(group, _)| *group == sequence.group)
            {
                Some((_, count)) => *count += sequence.width(),
                None => counts.push((sequence.group, sequence.width())),
            }
        }
        let mut best: Option<(usize, usize)> = None;
        for (index, sequence) in self.waiting.iter().enumerate() {
            let count = counts.iter().find(|(group, _)| *group == sequence.group);
            let count = count.map_or(0, |(_, count)| *count);
            if best.is_none_or(|(_, fewest)| count < fewest) {
                best = Some((index, count));
            }
            if count == 0 {
                break;
            }
        }
        best.map(|(index, _)| index)
    }

    /// Admits the waiting sequence whose turn it is if it fits; false when it must wait.
    fn admit(&mut self, batch: &mut ScheduledBatch, budget: &mut usize) -> bool {
        let is_full = || self.num_running() >= self.config.max_num_seqs;
        if *budget == 0 || self.waiting.is_empty() || is_full() {
            return false;
        }
        let Some(turn) = self.next_waiting() else {
            return false;
        };
        if self.num_running() + self.waiting[turn].width() > self.config.max_num_seqs {
            return false;
        }
        let mut sequence = self
            .waiting
            .remove(turn)
            .expect("found above; this is a bug");
        let num_queries = sequence.token_ids.len() as u64;
        self.attach_cached_blocks(&mut sequence);
        // The salt sees to it that a draft model has followed the cached blocks.
        sequence.draft.num_computed_tokens = sequence.num_computed_tokens;
        let num_rows = self.wanted_rows(&sequence, *budget, batch.rows.is_empty());
        let num_hits = sequence.num_computed_tokens;
        self.running.push(sequence);
        let index = self.running.len() - 1;
        if num_rows == 0 || !self.reserve(index, num_rows, batch) {
            let mut sequence = self.running.pop().expect("pushed above; this is a bug");
            self.blocks.release_all(&mut sequence.block_table);
            sequence.block_hashes.clear();
            sequence.num_computed_tokens = 0;
            self.waiting.insert(turn, sequence);
            return false;
        }
        let sequence = &mut self.running[index];
        if sequence.num_cached_tokens.is_none() {
            sequence.num_cached_tokens = Some(num_hits);
            self.stats.prefix_cache_queries += num_queries;
            self.stats.prefix_cache_hits += num_hits as u64;
        }
        *budget = budget.saturating_sub(num_rows);
        batch.rows.push(ScheduledRows {
            running_index: index,
            num_rows,
        });
        true
    }

    /// Starts a sequence at its longest known prefix; at least its last token is always computed.
    fn attach_cached_blocks(&mut self, sequence: &mut Sequence) {
        let is_usable = self.config.enable_prefix_caching && sequence.has_shareable_kv();
        if !is_usable || sequence.wants_prompt_logprobs() {
            return;
        }
        let block_size = self.blocks.block_size();
        let first_wanted = sequence.pending_positions().first().copied();
        let usable = first_wanted.unwrap_or(sequence.token_ids.len() - 1);
        for token_ids in sequence.token_ids[..usable].chunks_exact(block_size) {
            let parent = sequence
                .block_hashes
                .last()
                .copied()
                .unwrap_or(sequence.cache_salt);
            let Some(block) = self.blocks.lookup(parent, token_ids) else {
                break;
            };
            self.blocks.share(block);
            sequence.block_table.push(block);
            sequence.block_hashes.push(chain(parent, token_ids));
            sequence.num_computed_tokens += block_size;
        }
        let rest = &sequence.token_ids[sequence.num_computed_tokens..usable];
        let rest = &rest[..rest.len().min(block_size)];
        if let Some((block, len)) = self.blocks.longest_match(sequence.parent_hash(), rest) {
            // Copied before the first write: a known block is never written to.
            self.blocks.share(block);
            sequence.block_table.push(block);
            sequence.num_computed_tokens += len;
        }
    }

    /// Records that a sequence's scheduled rows were computed and makes its full blocks findable.
    pub(super) fn commit_rows(&mut self, rows: ScheduledRows) {
        let block_size = self.blocks.block_size();
        let sequence = &mut self.running[rows.running_index];
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
    pub(super) fn own_blocks(
        &mut self,
        index: usize,
        first_token: usize,
    ) -> Option<Vec<(BlockId, BlockId)>> {
        let first = first_token / self.blocks.block_size();
        let sequence = &mut self.running[index];
        let blocks = &mut sequence.block_table[first..];
        let is_shared = |block: &&mut BlockId| self.blocks.is_shared(**block);
        if blocks.iter_mut().filter(is_shared).count() > self.blocks.num_available() {
            return None;
        }
        let mut copies = Vec::new();
        for block in blocks {
            if self.blocks.is_shared(*block) {
                let source = *block;
                *block = self.blocks.allocate().expect("counted; this is a bug");
                self.blocks.release(source);
                copies.push((source, *block));
            }
        }
        Some(copies)
    }

    /// Gives back the blocks that a sequence's computed tokens do not reach: they hold nothing but rejected draft tokens.
    pub(super) fn release_unused_blocks(&mut self, index: usize) {
        let sequence = &mut self.running[index];
        let num_used = sequence
            .num_computed_tokens
            .div_ceil(self.blocks.block_size());
        for block in sequence.block_table.drain(num_used..) {
            self.blocks.release(block);
        }
    }

    /// Gauges of this moment beside the counters.
    pub(super) fn snapshot(&mut self) -> EngineStats {
        self.stats.num_requests_running = self.num_running();
        self.stats.num_requests_waiting = self.num_waiting();
        let branches = self.running.iter();
        let branches = branches.filter(|sequence| matches!(sequence.group, Group::Search(_)));
        self.stats.num_branches_running = branches.map(Sequence::width).sum();
        self.stats.num_used_blocks = self.blocks.num_used();
        self.stats
    }

    #[cfg(test)]
    pub(super) fn check_invariants(&self) {
        let tables = self
            .sequences()
            .map(|sequence| sequence.block_table.as_slice());
        self.blocks.check_invariants(tables);
        assert!(self.num_running() <= self.config.max_num_seqs);
        for sequence in &self.waiting {
            assert!(
                sequence.block_table.is_empty(),
                "a waiting sequence holds no blocks"
            );
        }
        for sequence in &self.running {
            let room = sequence.block_table.len() * self.config.block_size;
            assert!(
                sequence.num_computed_tokens <= room,
                "computed tokens lie in blocks"
            );
            assert!(sequence.num_computed_tokens < sequence.token_ids.len());
        }
    }
}

#[cfg(test)]
mod tests;
