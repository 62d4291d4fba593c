//! Which waiting sequence runs next, and from which token on.

use super::{Budget, Scheduler};
use crate::engine::batch::ScheduledBatch;
use crate::engine::prefix_cache::{PrefixHash, chain};
use crate::engine::sequence::{SeqId, Sequence};
use crate::model::{BlockId, NO_BLOCK};

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
            let mut tables = self.sequences[id].drop_kv();
            self.blocks.release_all(&mut tables);
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

    /// The blocks that hold the longest known prefix of a sequence.
    fn known_prefix(&self, sequence: &Sequence, reuse: Reuse) -> KnownPrefix {
        let block_size = self.blocks.block_size();
        let usable = usable_tokens(sequence);
        let (mut blocks, mut hashes) = (Vec::new(), Vec::new());
        let mut parent = sequence.cache_salt;
        for token_ids in sequence.token_ids[..usable].chunks_exact(block_size) {
            let Some(block) = self.blocks.lookup(parent, token_ids) else {
                break;
            };
            blocks.push(block);
            parent = chain(parent, token_ids);
            hashes.push(parent);
        }
        let mut num_tokens = blocks.len() * block_size;
        let rest = &sequence.token_ids[num_tokens..usable];
        let rest = &rest[..rest.len().min(block_size)];
        if reuse == Reuse::Tail
            && let Some((block, len)) = self.blocks.longest_match(parent, rest)
        {
            // Copied before the first write: a known block is never written to.
            blocks.push(block);
            num_tokens += len;
        }
        KnownPrefix {
            blocks,
            hashes,
            num_tokens,
        }
    }

    /// Shortens a prefix until the layers with a sliding window still have what a sequence needs
    /// that starts behind it.
    fn shorten_to_places(&self, sequence: &Sequence, prefix: &mut KnownPrefix) {
        let num_more = sequence.num_more_kept_tokens();
        let has_place = |block: &BlockId| self.blocks.place(*block).is_some();
        // The end of the blocks at the end that have places, and their beginning.
        let mut end = prefix.blocks.len();
        let mut begin = end;
        loop {
            begin = begin.min(end);
            while begin > 0 && has_place(&prefix.blocks[begin - 1]) {
                begin -= 1;
            }
            if begin <= self.config.num_passed_blocks(prefix.num_tokens, num_more) {
                return;
            }
            // The longest prefix of whole blocks that ends before.
            end -= 1;
            prefix.blocks.truncate(end);
            prefix.hashes.truncate(end);
            prefix.num_tokens = end * self.blocks.block_size();
        }
    }

    /// Starts a sequence at its longest known prefix; at least its last token is always computed.
    fn attach_cached_blocks(&mut self, id: SeqId, reuse: Reuse) {
        let sequence = &self.sequences[id];
        let is_usable = self.config.enable_prefix_caching && sequence.has_shareable_kv();
        if !is_usable || sequence.wants_prompt_logprobs() {
            return;
        }
        let mut prefix = self.known_prefix(sequence, reuse);
        if self.config.local.is_some() {
            self.shorten_to_places(sequence, &mut prefix);
        }
        let num_more = sequence.num_more_kept_tokens();
        let num_passed = self.config.num_passed_blocks(prefix.num_tokens, num_more);
        let sequence = &mut self.sequences[id];
        for (index, block) in prefix.blocks.into_iter().enumerate() {
            self.blocks.share(block);
            let place = match index < num_passed {
                true => self.config.local.map(|_| NO_BLOCK),
                false => self.blocks.share_place(block),
            };
            sequence.tables.push(block, place);
        }
        sequence.block_hashes = prefix.hashes;
        sequence.num_computed_tokens = prefix.num_tokens;
        // The salt sees to it that a draft model has followed the cached blocks.
        sequence.draft.num_computed_tokens = sequence.num_computed_tokens;
    }
}

/// What of a sequence's tokens is known.
struct KnownPrefix {
    blocks: Vec<BlockId>,
    /// Of whole blocks.
    hashes: Vec<PrefixHash>,
    num_tokens: usize,
}

/// Tokens of a sequence that may come from the cache.
fn usable_tokens(sequence: &Sequence) -> usize {
    let first_wanted = sequence.pending_positions().first().copied();
    first_wanted.unwrap_or(sequence.token_ids.len() - 1)
}
