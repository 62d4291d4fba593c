//! Where the engine reads the time, so that a simulation can say what time it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The system's clock, or one that is moved by hand.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<Manual>>);

#[derive(Debug)]
struct Manual {
    start: Instant,
    elapsed_ns: AtomicU64,
}

impl Clock {
    /// A clock that stands still until [`Self::advance`].
    pub fn manual() -> Self {
        Self(Some(Arc::new(Manual {
            start: Instant::now(),
            elapsed_ns: AtomicU64::new(0),
        })))
    }

    pub fn now(&self) -> Instant {
        match &self.0 {
            None => Instant::now(),
            Some(manual) => {
                let elapsed = manual.elapsed_ns.load(Ordering::Acquire);
                manual.start + Duration::from_nanos(elapsed)
            }
        }
    }

    /// Moves a manual clock; the system's goes its own way.
    pub fn advance(&self, by: Duration) {
        if let Some(manual) = &self.0 {
            let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX >> 1);
            manual.elapsed_ns.fetch_add(by, Ordering::AcqRel);
        }
    }
}
