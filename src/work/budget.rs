//! How long a piece of work may go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Why work ended before it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The request's deadline passed.
    Deadline,
    /// The work took more processor time than one piece may take.
    Spent,
    /// Nobody waits for the result any more.
    Abandoned,
}

/// What a piece of work may use. Work looks at it every millisecond or so and ends when it is over.
#[derive(Debug, Clone, Default)]
pub struct Budget {
    deadline: Option<Instant>,
    /// Processor time of the thread that works, and what the thread's clock said at the start.
    cpu: Option<(Duration, Duration)>,
    is_abandoned: Arc<AtomicBool>,
}

impl Budget {
    /// No limit but the deadline: for work on the thread of whoever waits for it.
    pub fn until(deadline: Option<Instant>) -> Self {
        Self {
            deadline,
            ..Self::default()
        }
    }

    /// `is_abandoned` is set by whoever stops waiting.
    pub(super) fn new(deadline: Option<Instant>, is_abandoned: Arc<AtomicBool>) -> Self {
        Self {
            deadline,
            cpu: None,
            is_abandoned,
        }
    }

    /// Begins to count the processor time of the calling thread.
    pub(super) fn begin(&mut self, max_cpu: Duration) {
        self.cpu = Some((max_cpu, thread_time()));
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::Acquire)
    }

    /// Whether the work may go on. Costs a system call.
    pub fn check(&self) -> Result<(), Stop> {
        if self.is_abandoned() {
            return Err(Stop::Abandoned);
        }
        if self.deadline.is_some_and(|at| Instant::now() >= at) {
            return Err(Stop::Deadline);
        }
        match self.cpu {
            Some((max_cpu, start)) if thread_time().saturating_sub(start) > max_cpu => {
                Err(Stop::Spent)
            }
            _ => Ok(()),
        }
    }

    pub fn may_go_on(&self) -> bool {
        self.check().is_ok()
    }
}

/// Processor time that the calling thread has used: unlike the time that passes, it does not depend on what else
/// the machine does.
#[cfg(unix)]
pub fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// Where there is no such clock, the time that has passed.
#[cfg(not(unix))]
pub fn thread_time() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_ends_in_three_ways() {
        let mut budget = Budget::default();
        assert_eq!(budget.check(), Ok(()));
        budget.begin(Duration::ZERO);
        while budget.may_go_on() {}
        assert_eq!(budget.check(), Err(Stop::Spent));
        assert_eq!(
            Budget::until(Some(Instant::now())).check(),
            Err(Stop::Deadline)
        );
        let flag = Arc::new(AtomicBool::new(false));
        let budget = Budget::new(None, Arc::clone(&flag));
        assert!(budget.may_go_on());
        flag.store(true, Ordering::Release);
        assert_eq!(budget.check(), Err(Stop::Abandoned));
    }
}
