//! How long each phase of a start takes.

use std::time::Instant;

/// Says under `--log-level debug` what a start takes its time for.
pub(super) struct Phases {
    began: Instant,
}

impl Phases {
    pub(super) fn begin() -> Self {
        let began = Instant::now();
        Self { began }
    }

    /// What was done since the last phase ended.
    pub(super) fn end(&mut self, done: &str) {
        let took = std::mem::replace(&mut self.began, Instant::now()).elapsed();
        tracing::debug!("{done} in {:.0} ms", took.as_secs_f64() * 1e3);
    }
}
