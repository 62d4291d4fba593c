//! Which rows run next. Pure bookkeeping: no tensors, clocks, channels or random state.

use std::cmp::Ordering;
use std::collections::VecDeque;

use super::batch::{ScheduledBatch, ScheduledRows};
use super::block_manager::BlockManager;
use super::prefix_cache::chain;
use super::request::{EngineConfig, EngineStats, RequestId};
use super::sequence::Sequence;

/// Rows a step computes of a prompt whose logprobs are wanted: each needs a row of logits.
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
    pub(super) fn add_fork(&mut self, mut sequence: Sequence) {
        if self.num_running() + sequence.width() > self.config.max_num_seqs {
            sequence.block_table.clear();
            sequence.block_hashes.clear();
            sequence.num_computed_tokens = 0;
            self.waiting.push_back(sequence);
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

    pub(super) fn sequences(&self) -> impl Iterator<Item = &Sequence> {
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
            self.blocks.release_all(&mut sequence.block_table);
        }
        removed
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
        let mut wanted = sequence.num_uncomputed_tokens();
        if sequence.wants_prompt_logprobs() {
            wanted = wanted.min(PROMPT_LOGPROB_ROWS);
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
        let num_rows = self.wanted_rows(&self.running[index], *budget, is_empty);
        if num_rows == 0 {
            return index + 1;
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
        batch
            .block_copies
            .retain(|(_, target)| !sequence.block_table.contains(target));
        self.blocks.release_all(&mut sequence.block_table);
        sequence.block_hashes.clear();
        sequence.num_computed_tokens = 0;
        self.stats.num_preemptions += 1;
        self.waiting.push_front(sequence);
    }

    /// Makes the blocks of the next `num_rows` tokens exist and belong to this sequence alone.
    fn reserve(&mut self, index: usize, num_rows: usize, batch: &mut ScheduledBatch) -> bool {
        let block_size = self.blocks.block_size();
        let sequence = &mut self.running[index];
        let first_block = sequence.num_computed_tokens / block_size;
        let num_blocks = (sequence.num_computed_tokens + num_rows).div_ceil(block_size);
        let is_copied = sequence
            .block_table
            .get(first_block)
            .is_some_and(|block| self.blocks.is_shared(*block));
        let num_new = num_blocks.saturating_sub(sequence.block_table.len());
        if self.blocks.num_available() < num_new + usize::from(is_copied) {
            return false;
        }
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

    /// Admits the first waiting sequence if it fits; false when it must wait.
    fn admit(&mut self, batch: &mut ScheduledBatch, budget: &mut usize) -> bool {
        let Some(sequence) = self.waiting.front() else {
            return false;
        };
        if *budget == 0 || self.num_running() + sequence.width() > self.config.max_num_seqs {
            return false;
        }
        let mut sequence = self
            .waiting
            .pop_front()
            .expect("checked above; this is a bug");
        let num_queries = sequence.token_ids.len() as u64;
        self.attach_cached_blocks(&mut sequence);
        let num_rows = self.wanted_rows(&sequence, *budget, batch.rows.is_empty());
        let num_hits = sequence.num_computed_tokens;
        self.running.push(sequence);
        let index = self.running.len() - 1;
        if num_rows == 0 || !self.reserve(index, num_rows, batch) {
            let mut sequence = self.running.pop().expect("pushed above; this is a bug");
            self.blocks.release_all(&mut sequence.block_table);
            sequence.block_hashes.clear();
            sequence.num_computed_tokens = 0;
            self.waiting.push_front(sequence);
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
        if !self.config.enable_prefix_caching || sequence.wants_prompt_logprobs() {
            return;
        }
        let block_size = self.blocks.block_size();
        let usable = (sequence.token_ids.len() - 1) / block_size * block_size;
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
            if self.config.enable_prefix_caching {
                let block = sequence.block_table[index];
                self.blocks.register(block, hash, parent, token_ids);
            }
            sequence.block_hashes.push(hash);
        }
    }

    /// Gauges of this moment beside the counters.
    pub(super) fn snapshot(&mut self) -> EngineStats {
        self.stats.num_requests_running = self.num_running();
        self.stats.num_requests_waiting = self.num_waiting();
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
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::request::SamplingParams;
    use crate::model::testing::uniform;

    fn config(num_blocks: usize, chunked: bool) -> EngineConfig {
        EngineConfig {
            max_model_len: 96,
            max_num_seqs: 6,
            max_num_batched_tokens: 24,
            block_size: 4,
            num_blocks,
            enable_prefix_caching: true,
            enable_chunked_prefill: chunked,
            max_num_waiting_seqs: 100,
        }
    }

    fn sequence(request: u64, token_ids: Vec<u32>, num_pending_forks: usize) -> Sequence {
        Sequence {
            request: RequestId(request),
            index: 0,
            params: Arc::new(SamplingParams::default()),
            branch_path: vec![0],
            num_prompt_tokens: token_ids.len(),
            token_ids,
            num_computed_tokens: 0,
            block_table: Vec::new(),
            block_hashes: Vec::new(),
            cache_salt: request % 2,
            num_pending_forks,
            prompt_logprobs: Vec::new(),
            num_cached_tokens: None,
            priority: 1.0,
            deadline: None,
            watcher: None,
            budget: None,
            ended: None,
        }
    }

    fn step(scheduler: &mut Scheduler) -> ScheduledBatch {
        let mut batch = ScheduledBatch::default();
        scheduler.schedule(&mut batch);
        batch
    }

    /// Appends `token_id` where a sequence's rows reached its end, forking as the engine does.
    fn commit(scheduler: &mut Scheduler, batch: &ScheduledBatch, token_id: u32) {
        for rows in &batch.rows {
            scheduler.commit_rows(*rows);
            let index = rows.running_index;
            if scheduler.running[index].num_uncomputed_tokens() > 0 {
                continue;
            }
            let forks = std::mem::take(&mut scheduler.running[index].num_pending_forks);
            for branch in 1..=forks {
                let mut sibling = scheduler.running[index].clone();
                sibling.index = branch;
                scheduler.add_fork(sibling);
                let last = scheduler.running.len() - 1;
                scheduler.running[last].token_ids.push(branch as u32);
            }
            scheduler.running[index].token_ids.push(token_id);
        }
    }

    /// Long random runs over a two-token vocabulary (prefix hits are frequent) and few blocks
    /// (preemption is frequent): every step keeps the invariants, and nothing leaks.
    #[test]
    fn random_runs_keep_the_invariants() {
        for seed in 0..6 {
            let mut scheduler = Scheduler::new(config(24 + 9 * seed as usize, seed % 2 == 0));
            let mut state = seed;
            let mut roll =
                |limit: usize| ((uniform(&mut state) + 1.0) / 2.0 * limit as f32) as usize % limit;
            for request in 0..3000 {
                if roll(2) == 0 && scheduler.num_waiting() < 12 {
                    let tokens = (0..1 + roll(60)).map(|_| roll(2) as u32).collect();
                    let mut sequence = sequence(request, tokens, roll(3));
                    sequence.priority = roll(3) as f32 / 2.0;
                    scheduler.add(sequence);
                }
                let batch = step(&mut scheduler);
                let num_rows: usize = batch.rows.iter().map(|rows| rows.num_rows).sum();
                assert!(num_rows <= 24 || batch.rows.len() == 1, "the budget holds");
                assert!(scheduler.is_idle() || num_rows > 0, "something always runs");
                commit(&mut scheduler, &batch, roll(2) as u32);
                scheduler.check_invariants();
                let unlucky = RequestId(roll(1 + request as usize) as u64);
                let limit = 70 + roll(20);
                scheduler.remove(|s| s.request == unlucky || s.token_ids.len() >= limit);
                scheduler.check_invariants();
            }
            assert!(
                scheduler.stats.num_preemptions > 0,
                "the run is tight enough"
            );
            assert!(scheduler.stats.prefix_cache_hits > 0, "prefixes repeat");
            scheduler.remove(|_| true);
            scheduler.check_invariants();
            assert_eq!(scheduler.blocks.num_used(), 0, "no block leaks");
        }
    }

    #[test]
    fn the_lowest_priority_gives_way_then_the_newest() {
        let mut scheduler = Scheduler::new(config(9, true));
        for (request, priority) in [(0, 0.4), (1, 0.9), (2, 0.9)] {
            scheduler.add(Sequence {
                priority,
                ..sequence(request, vec![request as u32; 11], 0)
            });
        }
        let mut left = vec![2, 1, 0];
        for _ in 0..40 {
            let batch = step(&mut scheduler);
            commit(&mut scheduler, &batch, 7);
            scheduler.check_invariants();
            let running: Vec<u64> = scheduler.running.iter().map(|s| s.request.0).collect();
            left.retain(|request| running.contains(request));
            if left.len() == 1 {
                break;
            }
            if left.len() == 2 {
                assert_eq!(left, [2, 1], "the branch of least value went first");
            }
        }
        assert_eq!(left, [1], "of equals the newest went");
    }

    #[test]
    fn a_second_prompt_starts_at_the_known_prefix() {
        let mut scheduler = Scheduler::new(config(30, true));
        scheduler.add(sequence(0, (0..20).collect(), 0));
        let batch = step(&mut scheduler);
        commit(&mut scheduler, &batch, 9);
        scheduler.add(sequence(2, (0..20).collect(), 0));
        scheduler.add(sequence(1, (0..20).collect(), 0));
        let batch = step(&mut scheduler);
        let rows: Vec<usize> = batch.rows.iter().map(|rows| rows.num_rows).collect();
        // The last block is computed again because its last token's logits are needed; request 1 has
        // another salt and sees nothing.
        assert_eq!(rows, [1, 4, 19]);
        assert_eq!(scheduler.running[1].num_cached_tokens, Some(16));
        assert_eq!(scheduler.running[2].num_cached_tokens, Some(0));
    }

    #[test]
    fn siblings_share_blocks_until_they_write() {
        let mut scheduler = Scheduler::new(config(30, true));
        scheduler.add(sequence(0, (0..10).collect(), 2));
        let batch = step(&mut scheduler);
        commit(&mut scheduler, &batch, 0);
        assert_eq!(
            scheduler.blocks.num_used(),
            3,
            "three sequences, one set of blocks"
        );
        let batch = step(&mut scheduler);
        // The partial third block is copied twice; the last owner writes in place.
        assert_eq!(batch.block_copies.len(), 2);
        assert_eq!(scheduler.blocks.num_used(), 5);
    }
}
