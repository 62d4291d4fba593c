//! Rewards from running the answer's Python code against tests, in a sandbox.

use std::sync::Arc;
use std::time::Instant;

use futures::future::{BoxFuture, FutureExt, try_join_all};
use ponder_sandbox::Sandbox;
use tokio::sync::Semaphore;

use super::fence::first_fenced_block;
use crate::reward::{Candidate, Scorer, ScorerError, until};

const KIND: &str = "verifier";

/// Runs Python programs, a few at a time; shared by all requests of a server.
#[derive(Clone)]
pub struct PythonRunner {
    sandbox: Arc<Sandbox>,
    permits: Arc<Semaphore>,
}

impl PythonRunner {
    /// At most `num_parallel` programs run at once.
    pub fn new(sandbox: Sandbox, num_parallel: usize) -> Self {
        Self {
            sandbox: Arc::new(sandbox),
            permits: Arc::new(Semaphore::new(num_parallel)),
        }
    }

    /// The share of `tests` that hold after `code` ran.
    async fn share_passed(&self, code: String, tests: Arc<[String]>) -> Result<f64, ScorerError> {
        let failed = |message: String| ScorerError::Failed {
            kind: KIND,
            message,
        };
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|error| failed(error.to_string()))?;
        let sandbox = Arc::clone(&self.sandbox);
        let wish = Arc::new(());
        let is_wanted = Arc::downgrade(&wish);
        let run = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            sandbox.run_tests_while(&|| is_wanted.strong_count() > 0, &code, &tests)
        });
        // Who is dropped here leaves no program behind.
        let report = run.await.map_err(|error| failed(error.to_string()))?;
        drop(wish);
        let report = report.map_err(|error| failed(error.to_string()))?;
        Ok(report.passed as f64 / report.total.max(1) as f64)
    }
}

/// The share of Python tests that an answer's code passes. The code is the first fenced block of the answer,
/// or all of it.
#[derive(Clone)]
pub struct PythonTests {
    runner: PythonRunner,
    tests: Arc<[String]>,
    /// Put before the code: imports, or the prompt that the answer continues.
    prefix: Arc<str>,
}

impl PythonTests {
    pub fn new(runner: PythonRunner, tests: Vec<String>, prefix: String) -> Self {
        Self {
            runner,
            tests: tests.into(),
            prefix: prefix.into(),
        }
    }

    fn program(&self, text: &str) -> String {
        let code = first_fenced_block(text).unwrap_or(text);
        format!("{}{code}", self.prefix)
    }
}

impl Scorer for PythonTests {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn scores_steps(&self) -> bool {
        false
    }

    fn is_decisive(&self) -> bool {
        true
    }

    fn score<'a>(
        &'a self,
        candidates: &'a [Candidate],
        deadline: Option<Instant>,
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        let runs = candidates.iter().map(|candidate| {
            let code = self.program(&candidate.text);
            self.runner.share_passed(code, Arc::clone(&self.tests))
        });
        until(deadline, KIND, try_join_all(runs)).boxed()
    }
}
