//! Counters that the engine's thread publishes after each step, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use super::request::EngineStats;

const NUM_FIELDS: usize = 11;

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
        let [a, b, c, d, e, f, g, h, i, j, k] = &self.0;
        let [a, b, c, d, e, f, g, h, i, j, k] =
            [a, b, c, d, e, f, g, h, i, j, k].map(|field| field.load(Ordering::Acquire));
        EngineStats {
            num_requests_running: a as usize,
            num_requests_waiting: b as usize,
            num_blocks: c as usize,
            num_used_blocks: d as usize,
            prefix_cache_queries: e,
            prefix_cache_hits: f,
            num_preemptions: g,
            prompt_tokens: h,
            generation_tokens: i,
            num_steps: j,
            num_branches_running: k as usize,
        }
    }
}

fn fields(stats: &EngineStats) -> [u64; NUM_FIELDS] {
    let EngineStats {
        num_requests_running,
        num_requests_waiting,
        num_branches_running,
        num_blocks,
        num_used_blocks,
        prefix_cache_queries,
        prefix_cache_hits,
        num_preemptions,
        prompt_tokens,
        generation_tokens,
        num_steps,
    } = *stats;
    [
        num_requests_running as u64,
        num_requests_waiting as u64,
        num_blocks as u64,
        num_used_blocks as u64,
        prefix_cache_queries,
        prefix_cache_hits,
        num_preemptions,
        prompt_tokens,
        generation_tokens,
        num_steps,
        num_branches_running as u64,
    ]
}
