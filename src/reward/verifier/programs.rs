//! Processes that check answers, a few at a time, in fair turns of the tenants.

use std::time::Instant;

use ponder_sandbox::Cancel;

use crate::reward::ScorerError;
use crate::work::{PoolOptions, Stop, WorkError, WorkPool, default_threads};

/// What is done, for errors.
const WHAT: &str = "checking the answers";

/// How many programs run at once unless a flag says otherwise: with several keys one of them leaves a
/// place to the others.
pub fn default_parallel() -> usize {
    default_threads()
}

/// Threads that wait for child processes; shared by all requests of a server.
#[derive(Debug, Clone)]
pub struct Programs {
    pool: WorkPool,
}

impl Programs {
    /// At most `num_parallel` programs run at once. `is_shared` says whether there are several tenants.
    pub fn new(num_parallel: usize, is_shared: bool) -> Self {
        Self {
            pool: WorkPool::new(PoolOptions {
                name: "ponder-program",
                num_threads: num_parallel,
                is_shared,
                ..PoolOptions::default()
            }),
        }
    }

    /// Runs a program on a thread of its own when it is the tenant's turn. Whoever stops waiting ends it.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        kind: &'static str,
        tenant: u64,
        deadline: Option<Instant>,
        program: impl FnOnce(&Cancel) -> T + Send + 'static,
    ) -> Result<T, ScorerError> {
        let done = self.run_for(WHAT, tenant, deadline, program).await;
        done.map_err(|error: WorkError| ScorerError::work(kind, error))
    }

    /// The same, whatever it is for.
    pub(super) async fn run_for<T: Send + 'static>(
        &self,
        what: &'static str,
        tenant: u64,
        deadline: Option<Instant>,
        program: impl FnOnce(&Cancel) -> T + Send + 'static,
    ) -> Result<T, WorkError> {
        let cancel = Cancel::new();
        let _ends = cancel.on_drop();
        let run = self.pool.run(what, tenant, deadline, move |budget| {
            match budget.check() {
                // The thread itself does next to nothing.
                Ok(()) | Err(Stop::Spent) => Ok(program(&cancel)),
                Err(stop) => Err(stop),
            }
        });
        run.await
    }
}
