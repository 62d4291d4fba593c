//! A clock for masks: a mask that takes too long is cancelled.
//!
//! Fuel bounds the work of a lexer, and items bound a parser's, but a very ambiguous grammar spends
//! seconds on items that it has already. One thread looks at the masks that are being made. It
//! sleeps while there are none, and ends when there have been none for a while.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use llguidance::CancellationHandle;

/// The thread ends when there has been nothing to watch for so long.
const IDLE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct State {
    running: HashMap<u64, (Instant, CancellationHandle)>,
    num_begun: u64,
    has_thread: bool,
    /// The thread waits for work, not for a deadline.
    is_idle: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Watch {
    shared: Arc<Shared>,
    most: Duration,
}

/// Work that is watched until this is dropped.
pub(super) struct Watched {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.shared.lock().running.remove(&self.id);
    }
}

impl Watch {
    /// Each piece of work may take `most`.
    pub(super) fn new(most: Duration) -> Self {
        Self {
            shared: Arc::default(),
            most,
        }
    }

    /// Begins to watch. Without a thread, work is not watched.
    pub(super) fn begin(&self, handle: CancellationHandle) -> Watched {
        let mut state = self.shared.lock();
        state.num_begun += 1;
        let id = state.num_begun;
        state
            .running
            .insert(id, (Instant::now() + self.most, handle));
        if !state.has_thread {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("ponder-masks".to_owned());
            state.has_thread = thread.spawn(move || watch(&shared)).is_ok();
        }
        if state.is_idle {
            self.shared.wake.notify_one();
        }
        drop(state);
        Watched {
            shared: Arc::clone(&self.shared),
            id,
        }
    }
}

fn watch(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        state.running.retain(|_, (deadline, handle)| {
            if *deadline <= now {
                handle.cancel();
                return false;
            }
            next = Some(next.map_or(*deadline, |next| next.min(*deadline)));
            true
        });
        let wait = next.map_or(IDLE, |next| next.duration_since(now));
        state.is_idle = next.is_none();
        let waited = shared.wake.wait_timeout(state, wait);
        let (back, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        state = back;
        let was_idle = std::mem::take(&mut state.is_idle);
        if was_idle && timeout.timed_out() && state.running.is_empty() {
            state.has_thread = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_cancelled() {
        let watch = Watch::new(Duration::from_millis(5));
        let quick = CancellationHandle::default();
        for _ in 0..100 {
            drop(watch.begin(quick.clone()));
        }
        let slow = CancellationHandle::default();
        let watched = watch.begin(slow.clone());
        let start = Instant::now();
        while !slow.is_cancelled() {
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
        drop(watched);
        assert!(!quick.is_cancelled());
        assert!(watch.shared.lock().running.is_empty());
    }
}
