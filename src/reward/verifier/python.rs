//! Rewards from running the answer's Python code against tests, in a sandbox.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt, try_join_all};
use ponder_sandbox::{Block, BlockOutcome, Cancel, RunError, Sandbox};

use super::fence::first_fenced_block;
use super::programs::Programs;
use crate::reward::{Candidate, Scorer, ScorerError, until};
use crate::work::WorkError;

const KIND: &str = "verifier";
/// Longest code of an answer with its prefix.
const MAX_PROGRAM_BYTES: usize = 1 << 20;

/// A block of a session, see [`Block`].
#[derive(Debug, Clone)]
pub struct PythonBlock {
    pub earlier: Vec<String>,
    pub code: String,
    pub cpu: Duration,
    pub wall: Duration,
    pub output_bytes: usize,
}

/// Runs Python programs; shared by all requests of a server.
#[derive(Debug, Clone)]
pub struct PythonRunner {
    sandbox: Arc<Sandbox>,
    programs: Programs,
}

impl PythonRunner {
    pub fn new(sandbox: Sandbox, programs: Programs) -> Self {
        Self {
            sandbox: Arc::new(sandbox),
            programs,
        }
    }

    /// Runs a block of a session when it is the tenant's turn. Whoever stops waiting ends it.
    pub async fn run_block(
        &self,
        block: PythonBlock,
        tenant: u64,
        deadline: Option<Instant>,
    ) -> Result<Result<BlockOutcome, RunError>, WorkError> {
        let sandbox = Arc::clone(&self.sandbox);
        let run = move |cancel: &Cancel| {
            let earlier: Vec<&str> = block.earlier.iter().map(String::as_str).collect();
            let block = Block {
                earlier: &earlier,
                code: &block.code,
                cpu: block.cpu,
                wall: block.wall,
                output_bytes: block.output_bytes,
            };
            sandbox.run_block(&block, cancel)
        };
        let what = "running an answer's code";
        self.programs.run_for(what, tenant, deadline, run).await
    }

    /// The share of `tests` that hold after `code` ran.
    async fn share_passed(
        &self,
        code: String,
        tests: Arc<[String]>,
        tenant: u64,
        deadline: Option<Instant>,
    ) -> Result<f64, ScorerError> {
        if code.len() > MAX_PROGRAM_BYTES {
            return Ok(0.0);
        }
        let sandbox = Arc::clone(&self.sandbox);
        let run = self.programs.run(KIND, tenant, deadline, move |cancel| {
            sandbox.run_tests(&code, &tests, cancel)
        });
        let report = run.await?.map_err(|error| ScorerError::Failed {
            kind: KIND,
            message: error.to_string(),
        })?;
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
    tenant: u64,
}

impl PythonTests {
    pub fn new(runner: PythonRunner, tests: Vec<String>, prefix: String, tenant: u64) -> Self {
        Self {
            runner,
            tenant,
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
            let tests = Arc::clone(&self.tests);
            self.runner.share_passed(code, tests, self.tenant, deadline)
        });
        until(deadline, KIND, try_join_all(runs)).boxed()
    }
}
