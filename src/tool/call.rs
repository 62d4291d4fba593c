//! What may be run for a request, and what was.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use xxhash_rust::xxh3::Xxh3;

use super::runner::{CodeRunner, Program, Ran};
use super::text::shown;

/// Limits of the code of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CodeLimits {
    /// Blocks that are run; later ones are text.
    pub max_calls: usize,
    /// Processor time of a block and those before it.
    pub timeout: Duration,
    /// Kept of what a block prints.
    pub max_output_bytes: usize,
}

impl CodeLimits {
    pub const MOST_CALLS: usize = 64;
    pub const MOST_TIMEOUT: Duration = Duration::from_millis(5000);
    pub const MOST_OUTPUT_BYTES: usize = 16 << 10;
}

impl Default for CodeLimits {
    fn default() -> Self {
        Self {
            max_calls: 4,
            timeout: Self::MOST_TIMEOUT,
            max_output_bytes: 2048,
        }
    }
}

/// How a block ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallStatus {
    Completed,
    /// It raised, or ended itself with an error.
    Failed,
    /// A limit of time ended it. It does not run again before later blocks.
    TimedOut,
    /// The server could not run it: it is no part of what later blocks see.
    NotRun,
}

impl CallStatus {
    const ALL: [Self; 4] = [Self::Completed, Self::Failed, Self::TimedOut, Self::NotRun];

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    /// The name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::NotRun => "not_run",
        }
    }
}

/// A block that was run, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeCall {
    pub code: String,
    /// What is shown of it: output and error, cut to the request's limit.
    pub output: String,
    pub status: CallStatus,
}

impl CodeCall {
    /// Whether later blocks see what it did.
    fn leaves_state(&self) -> bool {
        matches!(self.status, CallStatus::Completed | CallStatus::Failed)
    }
}

/// What came of a block, once it is known: whoever calls it meanwhile waits for it.
type Known = Arc<OnceCell<Arc<CodeCall>>>;

/// The tool of one request: all of its choices and branches call it.
#[derive(Debug)]
pub struct CodeTool {
    pub limits: CodeLimits,
    runner: Arc<dyn CodeRunner>,
    tenant: u64,
    /// What came of a block behind those before it. A search's branches write the same code often,
    /// and what is known from a trace is not run again.
    known: Mutex<HashMap<u128, Known>>,
}

impl CodeTool {
    pub fn new(limits: CodeLimits, runner: Arc<dyn CodeRunner>, tenant: u64) -> Self {
        Self {
            limits,
            runner,
            tenant,
            known: Mutex::default(),
        }
    }

    /// Runs a block behind those that an answer has called before; `None` when the deadline came
    /// first. Whoever stops waiting ends the program; one that others wait for, too, is run again.
    pub async fn call(
        &self,
        earlier: &[Arc<CodeCall>],
        code: String,
        deadline: Option<Instant>,
    ) -> Option<Arc<CodeCall>> {
        let known = self.known(key(earlier, &code));
        let run = async || match self.run(earlier, code, deadline).await {
            Some(call) if call.status != CallStatus::NotRun => Ok(call),
            // What was not run may be run for the next one.
            other => Err(other),
        };
        match known.get_or_try_init(run).await {
            Ok(call) => Some(Arc::clone(call)),
            Err(not_run) => not_run,
        }
    }

    async fn run(
        &self,
        earlier: &[Arc<CodeCall>],
        code: String,
        deadline: Option<Instant>,
    ) -> Option<Arc<CodeCall>> {
        let earlier = earlier.iter().filter(|call| call.leaves_state());
        let program = Program {
            earlier: earlier.map(|call| call.code.clone()).collect(),
            code: code.clone(),
            limits: self.limits,
            tenant: self.tenant,
            deadline,
        };
        let Ran {
            stdout,
            error,
            status,
        } = self.runner.run(program).await?;
        Some(Arc::new(CodeCall {
            code,
            output: shown(&stdout, error.as_deref(), self.limits.max_output_bytes),
            status,
        }))
    }

    /// Knows what came of a block in an earlier run.
    pub fn learn(&self, earlier: &[Arc<CodeCall>], call: &Arc<CodeCall>) {
        // The first one counts.
        let _ = self.known(key(earlier, &call.code)).set(Arc::clone(call));
    }

    fn known(&self, key: u128) -> Known {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(known.entry(key).or_default())
    }
}

/// Of the blocks that a block follows, as far as they count, and of its own code.
fn key(earlier: &[Arc<CodeCall>], code: &str) -> u128 {
    let mut hash = Xxh3::new();
    let earlier = earlier.iter().filter(|call| call.leaves_state());
    for code in earlier.map(|call| call.code.as_str()).chain([code]) {
        hash.update(&code.len().to_le_bytes());
        hash.update(code.as_bytes());
    }
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use futures::future::{BoxFuture, FutureExt};

    use super::*;

    /// Prints what it is asked to run, and counts.
    #[derive(Debug, Default)]
    struct Telling(Mutex<Vec<String>>);

    impl CodeRunner for Telling {
        fn run(&self, program: Program) -> BoxFuture<'static, Option<Ran>> {
            let said = program.earlier.join("+") + ">" + &program.code;
            self.0.lock().unwrap().push(said.clone());
            let status = match program.code.as_str() {
                "fail" => CallStatus::Failed,
                "late" => CallStatus::TimedOut,
                "none" => CallStatus::NotRun,
                "deadline" => return async { None }.boxed(),
                _ => CallStatus::Completed,
            };
            let error = (status == CallStatus::Failed).then(|| "E".to_owned());
            let ran = Ran {
                stdout: said,
                error,
                status,
            };
            async {
                // Others have their turn.
                tokio::task::yield_now().await;
                Some(ran)
            }
            .boxed()
        }
    }

    #[tokio::test]
    async fn a_call_sees_those_before_it_and_is_made_once() {
        let runner = Arc::new(Telling::default());
        let tool = CodeTool::new(CodeLimits::default(), runner.clone(), 0);
        let mut calls = Vec::new();
        for code in ["a", "fail", "late", "none", "b"] {
            calls.push(tool.call(&calls, code.to_owned(), None).await.unwrap());
        }
        let outputs: Vec<&str> = calls.iter().map(|call| call.output.as_str()).collect();
        assert_eq!(
            outputs,
            [
                ">a",
                "a>fail\nE\n",
                "a+fail>late",
                "a+fail>none",
                "a+fail>b"
            ]
        );
        let again = tool.call(&calls[..1], "fail".to_owned(), None).await;
        assert!(Arc::ptr_eq(&again.unwrap(), &calls[1]));
        assert_eq!(runner.0.lock().unwrap().len(), 5);
        // What was not run may be run now.
        tool.call(&calls[..2], "none".to_owned(), None)
            .await
            .unwrap();
        assert_eq!(runner.0.lock().unwrap().len(), 6);
        assert_eq!(tool.call(&[], "deadline".to_owned(), None).await, None);
        // Who calls the same at the same time waits for one program.
        let both = tokio::join!(
            tool.call(&[], "d".to_owned(), None),
            tool.call(&[], "d".to_owned(), None)
        );
        assert!(Arc::ptr_eq(&both.0.unwrap(), &both.1.unwrap()));
        let num_runs = |code: &str| {
            let runs = runner.0.lock().unwrap();
            runs.iter().filter(|it| it.as_str() == code).count()
        };
        assert_eq!(num_runs(">d"), 1);
        let learnt = Arc::new(CodeCall {
            code: "c".to_owned(),
            output: "learnt".to_owned(),
            status: CallStatus::Completed,
        });
        tool.learn(&calls, &learnt);
        let known = tool.call(&calls, "c".to_owned(), None).await.unwrap();
        assert!(Arc::ptr_eq(&known, &learnt));
    }
}
