//! How a caller ends a run from another thread.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::event::{EventfdFlags, eventfd};

/// Ends the runs that it was given to, at once and for good. Clones are one and the same. It holds
/// a descriptor only while one of its runs has a process.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_cancelled: AtomicBool,
    /// Wakes the runs that wait; they own it.
    event: Mutex<Weak<OwnedFd>>,
}

impl Cancel {
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes whoever waits in a run with this handle; a run that starts later ends at its start.
    pub fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::Release);
        let event = self.0.event.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = event.upgrade() {
            // Fails only if the counter is full: then they are awake.
            let _ = rustix::io::write(&event, &1u64.to_ne_bytes());
        }
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::Acquire)
    }

    /// Cancels when it is dropped: for the future of a request that may be dropped at any await.
    pub fn on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(self.clone())
    }

    /// What becomes readable when this is used from now on, and stays so. Whether it was used
    /// before is to be asked afterwards.
    pub(super) fn watch(&self) -> rustix::io::Result<Arc<OwnedFd>> {
        let mut event = self.0.event.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = event.upgrade() {
            return Ok(event);
        }
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let new = Arc::new(eventfd(0, flags)?);
        *event = Arc::downgrade(&new);
        Ok(new)
    }
}

/// Cancels its runs when it is dropped.
#[derive(Debug)]
#[must_use = "dropped at once, it cancels at once"]
pub struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
