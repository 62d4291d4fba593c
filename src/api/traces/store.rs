//! The server's store of traces.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::trace::TraceStore;

/// A store that fails says so this often.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The server's store.
pub(in crate::api) struct Traces {
    pub store: TraceStore,
    warned: Mutex<Option<Instant>>,
}

impl Traces {
    pub fn new(store: TraceStore) -> Self {
        Self {
            store,
            warned: Mutex::new(None),
        }
    }

    pub fn warn(&self, error: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL) {
            *warned = Some(Instant::now());
            tracing::warn!("traces are being lost: {error}");
        }
    }
}
