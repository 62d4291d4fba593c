//! Notices an engine that has work and makes no progress. It reads what the engine publishes, and
//! takes no part in it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::handle::Shared;

/// The engine's state is looked at so many times within the time that counts as a stall.
const LOOKS: u32 = 8;

/// What the engine's thread and the watchdog share.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Grows with every step that ran something, and when there is nothing to run.
    count: AtomicU64,
    is_stalled: AtomicBool,
    /// How long nothing has moved, in milliseconds.
    still_ms: AtomicU64,
}

impl Progress {
    pub fn note(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    /// How long the engine has stood still with work to do, once that is longer than it should be.
    pub fn stalled_for(&self) -> Option<Duration> {
        let is_stalled = self.is_stalled.load(Ordering::Acquire);
        is_stalled.then(|| Duration::from_millis(self.still_ms.load(Ordering::Acquire)))
    }

    fn tell(&self, still: Duration, limit: Duration) {
        let still_ms = u64::try_from(still.as_millis()).unwrap_or(u64::MAX);
        self.still_ms.store(still_ms, Ordering::Release);
        self.is_stalled.store(still >= limit, Ordering::Release);
    }
}

/// Watches until the engine ends. A step that takes longer than `limit` counts as a stall.
pub(super) fn watch(shared: &Arc<Shared>, limit: Duration) -> std::io::Result<()> {
    let shared = Arc::downgrade(shared);
    let thread = std::thread::Builder::new().name("ponder-watchdog".to_owned());
    thread.spawn(move || run(&shared, limit)).map(|_| ())
}

fn run(shared: &Weak<Shared>, limit: Duration) {
    let pause = (limit / LOOKS).max(Duration::from_millis(1));
    let (mut count, mut since, mut is_logged) = (0, Instant::now(), false);
    loop {
        std::thread::sleep(pause);
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if shared.is_finished.load(Ordering::Acquire) {
            return;
        }
        let stats = shared.stats.load();
        let num_waiting = shared.num_waiting.load(Ordering::Acquire);
        let has_work = num_waiting > 0 || stats.num_requests_running > 0;
        let newest = shared.progress.count.load(Ordering::Acquire);
        if newest != count || !has_work {
            if is_logged {
                tracing::warn!("the engine goes on after {:.1?}", since.elapsed());
            }
            (count, since, is_logged) = (newest, Instant::now(), false);
        }
        let still = since.elapsed();
        shared.progress.tell(still, limit);
        if still >= limit && !is_logged {
            is_logged = true;
            tracing::error!(
                running = stats.num_requests_running,
                waiting = num_waiting,
                used_blocks = stats.num_used_blocks,
                blocks = stats.num_blocks,
                steps = stats.num_steps,
                "the engine has made no progress for {still:.1?} though it has work"
            );
        }
    }
}
