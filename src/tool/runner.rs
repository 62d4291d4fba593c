//! What runs code.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};

use super::call::{CallStatus, CodeLimits};
use crate::reward::{PythonBlock, PythonRunner};
use crate::work::WorkError;

/// How much longer than its processor time a block may take: cores are shared with the engine.
const WALL_FACTOR: u32 = 4;
/// What it may take on top of that: an interpreter must start first.
const START_TIME: Duration = Duration::from_secs(2);

/// A block of Python with those that it follows.
#[derive(Debug, Clone)]
pub struct Program {
    /// The oldest first. They run again, unseen.
    pub earlier: Vec<String>,
    pub code: String,
    pub limits: CodeLimits,
    /// Who asks: programs take fair turns.
    pub tenant: u64,
    pub deadline: Option<Instant>,
}

/// What a block left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// One byte more than is shown, at least, where there was more.
    pub stdout: String,
    pub error: Option<String>,
    pub status: CallStatus,
}

/// Runs code; dropping the future ends the program.
pub trait CodeRunner: Debug + Send + Sync {
    /// `None` when the deadline came first.
    fn run(&self, program: Program) -> BoxFuture<'static, Option<Ran>>;
}

impl CodeRunner for PythonRunner {
    fn run(&self, program: Program) -> BoxFuture<'static, Option<Ran>> {
        let Program {
            earlier,
            code,
            limits,
            tenant,
            deadline,
        } = program;
        let block = PythonBlock {
            earlier,
            code,
            cpu: limits.timeout,
            wall: limits.timeout * WALL_FACTOR + START_TIME,
            // What is cut is noticed by one byte too many.
            output_bytes: limits.max_output_bytes + 1,
        };
        let runner = self.clone();
        async move {
            let run = runner.run_block(block, tenant, deadline);
            let outcome = match deadline {
                None => run.await,
                Some(deadline) => tokio::time::timeout_at(deadline.into(), run).await.ok()?,
            };
            match outcome {
                Err(WorkError::Deadline(_)) => None,
                Err(error) => Some(not_run(&error)),
                Ok(Err(error)) => {
                    tracing::warn!("code of an answer was not run: {error}");
                    Some(not_run(&"the sandbox failed"))
                }
                Ok(Ok(outcome)) => {
                    let is_cut = outcome.stdout.len() > limits.max_output_bytes;
                    // A program that prints too much finds its output closed.
                    let is_own = |error: &String| !is_cut || !error.starts_with("BrokenPipeError");
                    let error = outcome.error.filter(is_own);
                    Some(Ran {
                        status: match (&error, outcome.is_out_of_time) {
                            (_, true) => CallStatus::TimedOut,
                            (Some(_), false) => CallStatus::Failed,
                            (None, false) => CallStatus::Completed,
                        },
                        stdout: outcome.stdout,
                        error,
                    })
                }
            }
        }
        .boxed()
    }
}

fn not_run(error: &dyn std::fmt::Display) -> Ran {
    Ran {
        stdout: String::new(),
        error: Some(format!("The code was not run: {error}")),
        status: CallStatus::NotRun,
    }
}
