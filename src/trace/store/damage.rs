//! What is known to be damaged.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::lock;

/// Damaged traces that the log names; more are only counted.
const MAX_NAMED: usize = 20;
/// Damaged traces that are remembered, so that each counts once.
const MAX_REMEMBERED: usize = 1 << 16;

/// Each damaged trace is told once, however many read over it.
#[derive(Debug, Default)]
pub(super) struct DamageLog {
    seen: Mutex<HashSet<u64>>,
    num_rebuilt: AtomicU64,
}

impl DamageLog {
    /// A trace, by its number, that is not as it was written.
    pub fn note(&self, seq: u64, reason: &str) {
        let mut seen = lock(&self.seen);
        if seen.len() >= MAX_REMEMBERED || !seen.insert(seq) {
            return;
        }
        let num_seen = seen.len();
        drop(seen);
        if num_seen <= MAX_NAMED {
            tracing::warn!("trace number {seq} is damaged and left out: {reason}");
        }
        if num_seen == MAX_NAMED {
            tracing::warn!("further damaged traces are counted and not named");
        }
    }

    /// Damaged traces that were met since the store was opened, up to 65,536.
    pub fn num_damaged(&self) -> u64 {
        lock(&self.seen).len() as u64
    }

    pub fn rebuilt(&self, num_indexes: usize) {
        self.num_rebuilt
            .fetch_add(num_indexes as u64, Ordering::Relaxed);
    }

    pub fn num_rebuilt(&self) -> u64 {
        self.num_rebuilt.load(Ordering::Relaxed)
    }
}
