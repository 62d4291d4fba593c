//! How a caller ends a run from another thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::RunError;

/// Ends the runs that it was given to, at once and for good. Clones are one and the same.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<OwnedFd>);

impl Cancel {
    /// Takes one descriptor; fails where the process has none left.
    pub fn new() -> Result<Self, RunError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let event = eventfd(0, flags)
            .map_err(|error| RunError::Spawn(format!("an event descriptor: {error}")))?;
        Ok(Self(Arc::new(event)))
    }

    /// Wakes whoever waits in a run with this handle; a run that starts later ends at its start.
    pub fn cancel(&self) {
        // Fails only if the counter is full: then it is cancelled.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub fn is_cancelled(&self) -> bool {
        // Nobody reads the counter, so it is readable for ever.
        let mut event = [PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut event, Some(&Timespec::default())).is_ok_and(|count| count > 0)
    }

    /// Cancels when it is dropped: for the future of a request that may be dropped at any await.
    pub fn on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(self.clone())
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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
