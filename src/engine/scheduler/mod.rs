//! Which rows run next. Pure bookkeeping: no tensors, clocks, channels or random state.

mod admit;
mod audit;
mod kv;

pub(super) use audit::Violation;
use kv::register_tail;

use std::cmp::Ordering;

use super::batch::{ScheduledBatch, ScheduledRows};
use super::block_manager::BlockManager;
use super::request::{EngineConfig, EngineStats};
use super::sequence::{Group, Sequence};
use super::sequences::Sequences;

/// Rows a step computes of a prompt whose logprobs or pooled positions are wanted: each needs a row of logits.
const PROMPT_LOGPROB_ROWS: usize = 64;

/// The waiting and running sequences and the blocks they hold.
pub(super) struct Scheduler {
    config: EngineConfig,
    pub blocks: BlockManager,
    pub sequences: Sequences,
    pub stats: EngineStats,
    /// Prompts run through to their end, whatever a phase of adaptation computes again: a draft
    /// model follows their rows.
    pub runs_whole_prompts: bool,
}

impl Scheduler {
    pub(super) fn new(config: EngineConfig) -> Self {
        let blocks = BlockManager::new(config.num_blocks, config.block_size);
        Self {
            blocks: match &config.local {
                Some(local) => blocks.with_local_pool(local.num_blocks),
                None => blocks,
            },
            sequences: Sequences::default(),
            stats: EngineStats {
                num_blocks: config.num_blocks,
                num_local_blocks: config.local.map_or(0, |local| local.num_blocks),
                ..EngineStats::default()
            },
            runs_whole_prompts: false,
            config,
        }
    }

    pub(super) fn add(&mut self, sequence: Sequence) {
        self.sequences.push_waiting(sequence);
    }

    /// Adds a sequence that shares the blocks of a running one, or queues it when no place is left.
    pub(super) fn add_fork(&mut self, mut sequence: Sequence) {
        if self.num_running() + sequence.width() > self.config.max_num_seqs {
            self.sequences.push_waiting(sequence.without_kv());
            return;
        }
        // Blocks past the computed tokens are the parent's alone: it is about to write to them.
        let num_shared = (sequence.num_computed_tokens).div_ceil(self.config.block_size);
        sequence.tables.truncate(num_shared);
        for block in &sequence.tables.blocks {
            self.blocks.share(*block);
        }
        for (block, _) in sequence.tables.needed_places() {
            self.blocks.share_place(block);
        }
        self.sequences.push_running(sequence);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.sequences.num_running() == 0 && !self.sequences.has_waiting()
    }

    /// Running sequences, the siblings they will fork included.
    fn num_running(&self) -> usize {
        self.sequences.running().map(Sequence::width).sum()
    }

    /// Sequences that wait, siblings included.
    pub(super) fn num_waiting(&self) -> usize {
        self.sequences.waiting().map(Sequence::width).sum()
    }

    /// Removes the sequences for which `is_done` holds, frees their blocks and returns them.
    pub(super) fn remove(&mut self, is_done: impl Fn(&Sequence) -> bool) -> Vec<Sequence> {
        let mut removed = self.sequences.extract(is_done);
        for sequence in &mut removed {
            if self.config.enable_prefix_caching {
                register_tail(&mut self.blocks, sequence);
            }
            self.blocks.release_all(&mut sequence.tables);
        }
        removed
    }

    /// Chooses the next step: decode rows first, then prefill chunks, then new sequences.
    pub(super) fn schedule(&mut self, batch: &mut ScheduledBatch) {
        batch.rows.clear();
        batch.block_copies.clear();
        let mut budget = Budget {
            num_rows: self.config.max_num_batched_tokens,
            is_untouched: true,
        };
        let num_preemptions = self.stats.num_preemptions;
        for decoding in [true, false] {
            let mut position = 0;
            while position < self.sequences.num_running() {
                let sequence = self.sequences.running_at(position);
                position = if sequence.is_decoding() == decoding {
                    self.schedule_running(position, batch, &mut budget)
                } else {
                    position + 1
                };
            }
        }
        // After a preemption blocks are scarce: admitting now would only preempt again.
        if self.stats.num_preemptions == num_preemptions {
            while self.admit(batch, &mut budget) {}
        }
        self.sequences.for_each_running(|sequence| {
            let num_rows = std::mem::take(&mut sequence.num_scheduled_rows);
            if num_rows > 0 {
                let seq = sequence.id;
                batch.rows.push(ScheduledRows { seq, num_rows });
            }
        });
    }

    /// Rows to run before a phase that computes the others itself; `None` where no such phase is
    /// due, or where the layers with a sliding window have too few places for it.
    pub(in crate::engine) fn rows_before_phase(&self, sequence: &Sequence) -> Option<usize> {
        let has_places = |start: &usize| self.has_places_for_phase(sequence, *start);
        let start = (sequence.phase_start())
            .filter(|_| !self.runs_whole_prompts)
            .filter(has_places)?;
        Some(start.saturating_sub(sequence.num_computed_tokens))
    }

    /// Whether a phase from `start` on could have its places in an empty pool: all at once, beside
    /// those that the sequence keeps of what lies before, and one for a copy.
    fn has_places_for_phase(&self, sequence: &Sequence, start: usize) -> bool {
        let num_more = sequence.num_more_kept_tokens();
        let num_passed = self.config.num_passed_blocks(start, num_more);
        let num_blocks = sequence.token_ids.len().div_ceil(self.config.block_size);
        let num_places = (num_blocks + 1).saturating_sub(num_passed);
        let local = self.config.local.as_ref();
        local.is_none_or(|local| num_places <= local.num_blocks)
    }

    /// Of scheduled rows those that a step runs.
    fn rows_to_run(&self, sequence: &Sequence, num_scheduled: usize) -> usize {
        match self.rows_before_phase(sequence) {
            Some(0) => 0,
            _ => num_scheduled,
        }
    }

    /// Rows that the sequence may run now; 0 when the budget is too small for it.
    fn wanted_rows(&self, sequence: &Sequence, budget: Budget) -> usize {
        if sequence.is_adapting() {
            return 0;
        }
        let mut wanted = match self.rows_before_phase(sequence) {
            // They are not run: the phase needs their blocks.
            Some(0) => return sequence.num_uncomputed_tokens(),
            Some(before) => before,
            None => sequence.num_uncomputed_tokens() + sequence.draft.num_rows(),
        };
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
        if wanted <= budget.num_rows || self.config.enable_chunked_prefill {
            return wanted.min(budget.num_rows);
        }
        // Without chunking a prompt longer than the budget runs in a step of its own.
        if budget.is_untouched { wanted } else { 0 }
    }

    /// Schedules the running sequence at `position` if it can run; returns which to visit next.
    fn schedule_running(
        &mut self,
        mut position: usize,
        batch: &mut ScheduledBatch,
        budget: &mut Budget,
    ) -> usize {
        let sequence = self.sequences.running_at(position);
        let id = sequence.id;
        let mut num_rows = self.wanted_rows(sequence, *budget);
        if num_rows == 0 {
            return position + 1;
        }
        if sequence.draft.num_rows() > 0 && !self.can_reserve(id, num_rows) {
            // A draft is a guess: nobody is preempted for it.
            let sequence = &mut self.sequences[id];
            sequence.draft.clear();
            num_rows = num_rows.min(sequence.num_uncomputed_tokens());
        }
        while !self.reserve(id, num_rows, batch) {
            let victim = self.victim();
            self.preempt(victim, batch, budget);
            match victim.cmp(&position) {
                Ordering::Equal => return position,
                Ordering::Less => position -= 1,
                Ordering::Greater => {}
            }
        }
        budget.take(self.rows_to_run(&self.sequences[id], num_rows));
        self.sequences[id].num_scheduled_rows = num_rows;
        position + 1
    }

    /// The place of the running sequence of the lowest priority, the newest of equals.
    fn victim(&self) -> usize {
        let newest_first = self.sequences.running().enumerate().rev();
        let lowest = newest_first.min_by(|(_, a), (_, b)| a.priority.total_cmp(&b.priority));
        lowest.expect("a sequence runs; this is a bug").0
    }

    /// Gives a sequence's blocks back; it is computed again later.
    fn preempt(&mut self, position: usize, batch: &mut ScheduledBatch, budget: &mut Budget) {
        let id = self.sequences.running_id(position);
        let sequence = &self.sequences[id];
        budget.give_back(self.rows_to_run(sequence, sequence.num_scheduled_rows));
        let sequence = &mut self.sequences[id];
        sequence.num_scheduled_rows = 0;
        // Its copy-on-write targets go with it: copying into a block that is free again does no harm
        // only as long as nobody else gets it in this step.
        let num_copies = batch.block_copies.len();
        batch.block_copies.drop_into(&sequence.tables);
        if batch.block_copies.len() == num_copies && self.config.enable_prefix_caching {
            register_tail(&mut self.blocks, &self.sequences[id]);
        }
        // A phase that ran begins again once the tokens are computed.
        let mut tables = self.sequences[id].drop_kv();
        self.blocks.release_all(&mut tables);
        self.stats.num_preemptions += 1;
        self.sequences.stop(position);
    }

    /// What runs and waits, for a log.
    pub(super) fn describe(&self) -> String {
        let tokens = |sequence: &Sequence| {
            let (computed, all) = (sequence.num_computed_tokens, sequence.token_ids.len());
            format!("{computed}/{all} tokens, {} blocks", sequence.tables.len())
        };
        let first = self.sequences.iter().next().map(tokens);
        format!(
            "{} running, {} waiting, {} of {} blocks available, first: {}",
            self.num_running(),
            self.num_waiting(),
            self.blocks.num_available(),
            self.config.num_blocks,
            first.unwrap_or_default()
        )
    }

    /// Gauges of this moment beside the counters.
    pub(super) fn snapshot(&mut self) -> EngineStats {
        self.stats.num_requests_running = self.num_running();
        self.stats.num_requests_waiting = self.num_waiting();
        let branches = self.sequences.running();
        let branches = branches.filter(|sequence| matches!(sequence.group, Group::Search(_)));
        self.stats.num_branches_running = branches.map(Sequence::width).sum();
        self.stats.num_used_blocks = self.blocks.num_used();
        self.stats.num_used_local_blocks = self.blocks.num_used_locally();
        self.stats
    }
}

/// Rows that a step still has room for.
#[derive(Debug, Clone, Copy)]
struct Budget {
    num_rows: usize,
    /// Nothing is scheduled yet.
    is_untouched: bool,
}

impl Budget {
    fn take(&mut self, num_rows: usize) {
        self.num_rows = self.num_rows.saturating_sub(num_rows);
        self.is_untouched &= num_rows == 0;
    }

    fn give_back(&mut self, num_rows: usize) {
        self.num_rows += num_rows;
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod window_tests;
