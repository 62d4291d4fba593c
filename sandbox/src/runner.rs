//! The parent's side: starts one limited process a call and tells how it ended.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use super::orders::{Orders, random_token};
use super::policy::{Policy, protections};
use super::pump::{Ending, Until, pump};
use super::python::{ARGUMENTS, Python};
use super::tests_program::{REPORT_BYTES_A_TEST, TEST_TIME, read_report, tests_program};
use super::{Cancel, Limits, RunError, RunOutcome, SUBCOMMAND, Status, TestReport};

/// Starting a process is what every other protection leans on.
const TRIAL: &str = "import os\ntry: os.fork()\nexcept PermissionError: print('held')";

/// Who waits for a run.
#[derive(Clone, Copy)]
struct Wish<'a> {
    cancel: &'a Cancel,
    is_wanted: Option<&'a dyn Fn() -> bool>,
}

impl<'a> Wish<'a> {
    fn of(cancel: &'a Cancel) -> Self {
        Self {
            cancel,
            is_wanted: None,
        }
    }
}

/// Runs programs, any number at once; each call blocks its thread and has one process.
#[derive(Debug, Clone)]
pub struct Sandbox {
    exe: PathBuf,
    python: Python,
    limits: Limits,
}

impl Sandbox {
    /// `exe` is a binary that hands [`SUBCOMMAND`] to [`super::exec_from_args`]: `/proc/self/exe` for the caller's
    /// own, also after its file was replaced. `python` defaults to `python3` of the search path. Makes a
    /// trial, so that a sandbox that does not start or does not hold is found out here.
    pub fn new(exe: PathBuf, python: Option<PathBuf>, limits: Limits) -> Result<Self, RunError> {
        if !protections().seccomp {
            return Err(RunError::Unsupported);
        }
        let sandbox = Self {
            // A relative path would be looked up in the child's working folder.
            exe: std::path::absolute(exe).map_err(spawn_error)?,
            python: Python::locate(python.as_deref())?,
            limits,
        };
        let trial = sandbox.run_keeping(TRIAL, 1024, Wish::of(&Cancel::new()?))?;
        if trial.stdout != "held\n" {
            return Err(RunError::Spawn(format!(
                "a trial ended as {:?}: {}",
                trial.status,
                trial.stderr.trim()
            )));
        }
        Ok(sandbox)
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Runs `program` as a main module with nothing on stdin.
    pub fn run(&self, program: &str) -> Result<RunOutcome, RunError> {
        let cancel = Cancel::new()?;
        self.run_keeping(program, self.limits.output_bytes, Wish::of(&cancel))
    }

    /// Runs `code`, then each of `tests` in its namespace: what it takes is in [`tests_program`]. All of it shares
    /// the limits of one call; what did not get its turn has failed. Ends as [`RunError::Cancelled`] at once
    /// when `cancel` is used.
    pub fn run_tests(
        &self,
        code: &str,
        tests: &[String],
        cancel: &Cancel,
    ) -> Result<TestReport, RunError> {
        self.report(code, tests, Wish::of(cancel))
    }

    /// The same, but the program is killed soon after `is_wanted` says no.
    pub fn run_tests_while(
        &self,
        is_wanted: &dyn Fn() -> bool,
        code: &str,
        tests: &[String],
    ) -> Result<TestReport, RunError> {
        let wish = Wish {
            cancel: &Cancel::new()?,
            is_wanted: Some(is_wanted),
        };
        self.report(code, tests, wish)
    }

    fn report(&self, code: &str, tests: &[String], wish: Wish<'_>) -> Result<TestReport, RunError> {
        let tokens = (0..=tests.len())
            .map(|_| random_token())
            .collect::<Result<Vec<_>, _>>()
            .map_err(RunError::Spawn)?;
        let program = tests_program(code, tests, &tokens, TEST_TIME);
        let report_bytes = REPORT_BYTES_A_TEST * tokens.len();
        let output_bytes = self.limits.output_bytes.max(report_bytes);
        let outcome = self.run_keeping(&program, output_bytes, wish)?;
        Ok(read_report(&outcome, tests, &tokens))
    }

    fn run_keeping(
        &self,
        program: &str,
        output_bytes: usize,
        wish: Wish<'_>,
    ) -> Result<RunOutcome, RunError> {
        // Always empty, since the child cannot write; removed when dropped.
        let folder = tempfile::Builder::new()
            .prefix("ponder-sandbox-")
            .tempdir()
            .map_err(spawn_error)?;
        let orders = self.orders(random_token().map_err(RunError::Spawn)?);
        let started = Instant::now();
        let child = Command::new(&self.exe)
            .arg(SUBCOMMAND)
            .args(orders.to_args())
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| RunError::Spawn(format!("{}: {error}", self.exe.display())))?;
        let until = Until {
            deadline: started + self.limits.wall,
            cancel: wish.cancel,
            is_wanted: wish.is_wanted,
        };
        let ended = pump(child, program.as_bytes(), output_bytes, until).map_err(spawn_error)?;
        let stderr = String::from_utf8_lossy(&ended.stderr.bytes).into_owned();
        if let Some(message) = stderr.strip_prefix(&orders.token) {
            return Err(RunError::Spawn(message.trim().to_owned()));
        }
        Ok(RunOutcome {
            status: match ended.ending {
                Ending::Exited(status) => status_of(status),
                Ending::TimedOut => Status::TimedOut,
                Ending::Cancelled => return Err(RunError::Cancelled),
            },
            stdout: String::from_utf8_lossy(&ended.stdout.bytes).into_owned(),
            stderr,
            wall: started.elapsed(),
        })
    }

    fn orders(&self, token: String) -> Orders {
        let mut command = vec![self.python.exe.clone().into_os_string()];
        command.extend(ARGUMENTS.map(Into::into));
        Orders {
            token,
            parent: std::process::id(),
            nice: self.limits.nice,
            policy: Policy {
                cpu_seconds: self.limits.cpu_seconds,
                memory_bytes: self.limits.memory_bytes,
                max_threads: self.limits.max_threads,
                readable: self.python.readable.clone(),
                executable: self.python.executable.clone(),
            },
            command,
        }
    }
}

fn status_of(status: ExitStatus) -> Status {
    match (status.code(), status.signal()) {
        (Some(0), _) => Status::Passed,
        (Some(exit_code), _) => Status::Failed { exit_code },
        (None, signal) => Status::Killed {
            signal: signal.unwrap_or_default(),
        },
    }
}

fn spawn_error(error: impl std::fmt::Display) -> RunError {
    RunError::Spawn(error.to_string())
}
