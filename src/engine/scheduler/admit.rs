//! Which waiting sequence runs next, and from which token on.

use super::{Budget, Scheduler};
use crate::engine::batch::ScheduledBatch;
use crate::engine::prefix_cache::chain;
use crate::engine::sequence::{SeqId, Sequence};

/// How much of the prefix cache a sequence starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reuse {
    /// Whole blocks, and a copy of the block that shares most of what follows.
    Tail,
    /// Whole blocks. The copy's source is held while the copy is made, so that a cache which the sequence fills to the last block
    /// has no room for both.
    Blocks,
}

/// Running sequences by something that they share. There are few of them.
#[derive(Debug)]
struct Counts<K>(Vec<(K, usize)>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: PartialEq> Counts<K> {
    fn add(&mut self, key: K, width: usize) {
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, count)) => *count += width,
            None => self.0.push((key, width)),
        }
    }

    fn of(&self, key: K) -> usize {
        let found = self.0.iter().find(|(known, _)| *known == key);
        found.map_or(0, |(_, count)| *count)
    }
}

impl Scheduler {
    /// Whose turn it is to be admitted: of the tenants with the fewest running sequences the first in the queue whose
    /// group has the fewest, so that neither a tenant with many requests nor a search with many branches takes more
    /// than its share. `None` where every tenant that waits has its share running.
    fn next_waiting(&self) -> Option<usize> {
        let (mut tenants, mut groups) = (Counts::default(), Counts::default());
        for sequence in self.sequences.running() {
            tenants.add(sequence.tenant, sequence.width());
            groups.add(sequence.group, sequence.width());
        }
        let share = self.config.max_num_seqs_of_one();
        let mut best: Option<(usize, (usize, usize))> = None;
        for (turn, sequence) in self.sequences.waiting().enumerate() {
            let of_tenant = tenants.of(sequence.tenant);
            // No request is wider than the share.
            if of_tenant > 0 && of_tenant + sequence.width() > share {
                continue;
            }
            // Where nobody shares the engine, tenants are names alone.
            let of_tenant = if self.config.is_shared { of_tenant } else { 0 };
            let counts = (of_tenant, groups.of(sequence.group));
            if best.is_none_or(|(_, fewest)| counts < fewest) {
                best = Some((turn, counts));
            }
            if counts == (0, 0) {
                break;
            }
        }
        best.map(|(turn, _)| turn)
    }

    /// Admits the waiting sequence whose turn it is if it fits; false when it must wait.
    pub(super) fn admit(&mut self, batch: &mut ScheduledBatch, budget: &mut Budget) -> bool {
        if budget.num_rows == 0 || !self.sequences.has_waiting() {
            return false;
        }
        let num_running = self.num_running();
        if num_running >= self.config.max_num_seqs {
            return false;
        }
        let Some(turn) = self.next_waiting() else {
            return false;
        };
        let id = self.sequences.waiting_id(turn);
        if num_running + self.sequences[id].width() > self.config.max_num_seqs {
            return false;
        }
        self.sequences.start(turn);
        let is_started = [Reuse::Tail, Reuse::Blocks]
            .into_iter()
            .any(|reuse| self.start(id, reuse, batch, budget));
        if !is_started {
            self.sequences.unstart(turn);
        }
        is_started
    }

    /// Schedules the first rows of a sequence that holds nothing yet; false, with nothing changed, where blocks or rows are
    /// missing.
    fn start(
        &mut self,
        id: SeqId,
        reuse: Reuse,
        batch: &mut ScheduledBatch,
        budget: &mut Budget,
    ) -> bool {
        self.attach_cached_blocks(id, reuse);
        let num_rows = self.wanted_rows(&self.sequences[id], *budget);
        if num_rows == 0 || !self.reserve(id, num_rows, batch) {
            let mut table = self.sequences[id].drop_kv();
            self.blocks.release_all(&mut table);
            return false;
        }
        let sequence = &mut self.sequences[id];
        if sequence.num_cached_tokens.is_none() {
            let num_hits = sequence.num_computed_tokens;
            sequence.num_cached_tokens = Some(num_hits);
            self.stats.prefix_cache_queries += sequence.token_ids.len() as u64;
            self.stats.prefix_cache_hits += num_hits as u64;
        }
        sequence.num_scheduled_rows = num_rows;
        budget.take(self.rows_to_run(&self.sequences[id], num_rows));
        true
    }

    /// Starts a sequence at its longest known prefix; at least its last token is always computed.
    fn attach_cached_blocks(&mut self, id: SeqId, reuse: Reuse) {
        let sequence = &mut self.sequences[id];
        let is_usable = self.config.enable_prefix_caching && sequence.has_shareable_kv();
        if !is_usable || sequence.wants_prompt_logprobs() {
            return;
        }
        let block_size = self.blocks.block_size();
        let usable = usable_tokens(sequence);
        for token_ids in sequence.token_ids[..usable].chunks_exact(block_size) {
            let parent = sequence.parent_hash();
            let Some(block) = self.blocks.lookup(parent, token_ids) else {
                break;
            };
            self.blocks.share(block);
            sequence.block_table.push(block);
            let hash = chain(parent, token_ids);
            sequence.block_hashes.push(hash);
            sequence.num_computed_tokens += block_size;
        }
        let rest = &sequence.token_ids[sequence.num_computed_tokens..usable];
        let rest = &rest[..rest.len().min(block_size)];
        if reuse == Reuse::Tail
            && let Some((block, len)) = self.blocks.longest_match(sequence.parent_hash(), rest)
        {
            // Copied before the first write: a known block is never written to.
            self.blocks.share(block);
            sequence.block_table.push(block);
            sequence.num_computed_tokens += len;
        }
        // The salt sees to it that a draft model has followed the cached blocks.
        sequence.draft.num_computed_tokens = sequence.num_computed_tokens;
    }
}

/// Tokens of a sequence that may come from the cache.
fn usable_tokens(sequence: &Sequence) -> usize {
    let first_wanted = sequence.pending_positions().first().copied();
    first_wanted.unwrap_or(sequence.token_ids.len() - 1)
}
