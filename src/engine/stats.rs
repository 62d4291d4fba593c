//! Counters that the engine's thread publishes after each step, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use super::speculative::{DraftCounts, Drafter};

/// Counters and gauges of a running engine, read without stopping it. Counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EngineStats {
    pub num_requests_running: usize,
    pub num_requests_waiting: usize,
    /// Running sequences that belong to a group.
    pub num_branches_running: usize,
    pub num_blocks: usize,
    /// Blocks referenced by live sequences (cached but unreferenced blocks count as free).
    pub num_used_blocks: usize,
    /// Blocks of the layers with a sliding window, where these have a pool of their own; else 0.
    pub num_local_blocks: usize,
    /// Those that running sequences need.
    pub num_used_local_blocks: usize,
    pub prefix_cache_queries: u64,
    pub prefix_cache_hits: u64,
    pub num_preemptions: u64,
    pub prompt_tokens: u64,
    pub generation_tokens: u64,
    pub num_steps: u64,
    /// Rules of the engine that were found broken: bugs.
    pub num_invariant_violations: u64,
    /// By [`Drafter`].
    pub drafts: [DraftCounts; Drafter::ALL.len()],
}

const NUM_FIELDS: usize = 14 + 3 * Drafter::ALL.len();

/// [`EngineStats`], field by field: a reader may see some fields of one step and some of the next.
pub(super) struct SharedStats([AtomicU64; NUM_FIELDS]);

impl SharedStats {
    pub(super) fn new(stats: EngineStats) -> Self {
        Self(fields(&stats).map(AtomicU64::new))
    }

    pub(super) fn store(&self, stats: &EngineStats) {
        for (target, value) in self.0.iter().zip(fields(stats)) {
            target.store(value, Ordering::Release);
        }
    }

    pub(super) fn load(&self) -> EngineStats {
        let mut fields = self.0.iter().map(|field| field.load(Ordering::Acquire));
        // In the order of `fields`.
        let mut next = || fields.next().unwrap_or_default();
        EngineStats {
            num_requests_running: next() as usize,
            num_requests_waiting: next() as usize,
            num_branches_running: next() as usize,
            num_blocks: next() as usize,
            num_used_blocks: next() as usize,
            num_local_blocks: next() as usize,
            num_used_local_blocks: next() as usize,
            prefix_cache_queries: next(),
            prefix_cache_hits: next(),
            num_preemptions: next(),
            prompt_tokens: next(),
            generation_tokens: next(),
            num_steps: next(),
            num_invariant_violations: next(),
            drafts: std::array::from_fn(|_| DraftCounts {
                num_drafts: next(),
                num_draft_tokens: next(),
                num_accepted_tokens: next(),
            }),
        }
    }
}

/// Every field as a number, in the order in which [`SharedStats::load`] reads them.
fn fields(stats: &EngineStats) -> [u64; NUM_FIELDS] {
    let EngineStats {
        num_requests_running,
        num_requests_waiting,
        num_branches_running,
        num_blocks,
        num_used_blocks,
        num_local_blocks,
        num_used_local_blocks,
        prefix_cache_queries,
        prefix_cache_hits,
        num_preemptions,
        prompt_tokens,
        generation_tokens,
        num_steps,
        num_invariant_violations,
        drafts,
    } = *stats;
    let drafts = drafts.iter().flat_map(|counts| {
        [
            counts.num_drafts,
            counts.num_draft_tokens,
            counts.num_accepted_tokens,
        ]
    });
    let mut all = [
        num_requests_running as u64,
        num_requests_waiting as u64,
        num_branches_running as u64,
        num_blocks as u64,
        num_used_blocks as u64,
        num_local_blocks as u64,
        num_used_local_blocks as u64,
        prefix_cache_queries,
        prefix_cache_hits,
        num_preemptions,
        prompt_tokens,
        generation_tokens,
        num_steps,
        num_invariant_violations,
    ]
    .into_iter()
    .chain(drafts);
    std::array::from_fn(|_| all.next().unwrap_or_default())
}
