//! How old a trace may be, and by whose clock.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::StoreOptions;
use super::query::Filter;

/// Unix seconds; tests have a clock of their own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    pub fn new(seconds: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(seconds))
    }

    pub fn seconds(&self) -> u64 {
        (self.0)()
    }
}

impl Default for Clock {
    /// The system's.
    fn default() -> Self {
        Self::new(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.map_or(0, |now| now.as_secs())
        })
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// Which traces are too old, at any moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Retention {
    clock: Clock,
    /// `None`: none is.
    max_age_seconds: Option<u64>,
}

impl Retention {
    pub fn of(options: &StoreOptions) -> Self {
        Self {
            clock: options.clock.clone(),
            max_age_seconds: Some(options.max_age.as_secs()),
        }
    }

    /// Traces that were created before this second are too old.
    pub fn oldest(&self) -> u64 {
        let age = |max_age| self.clock.seconds().saturating_sub(max_age);
        self.max_age_seconds.map_or(0, age)
    }

    /// What `filter` finds of traces that are not too old.
    pub fn narrowed(&self, filter: &Filter) -> Filter {
        Filter {
            created_from: Some(filter.created_from.unwrap_or(0).max(self.oldest())),
            ..filter.clone()
        }
    }
}
