//! The parent's side: starts one limited process a call and tells how it ended.

use std::fmt::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};

use super::exec::Orders;
use super::policy::{Policy, protections};
use super::pump::pump;
use super::python::{ARGUMENTS, Python};
use super::tests_program::{REPORT_BYTES_A_TEST, TEST_TIME, read_report, tests_program};
use super::{Limits, RunError, RunOutcome, SUBCOMMAND, Status, TestReport};

/// Starting a process is what every other protection leans on.
const TRIAL: &str = "import os\ntry: os.fork()\nexcept PermissionError: print('held')";

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
        let trial = sandbox.run_keeping(TRIAL, 1024, &|| true)?;
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
        self.run_keeping(program, self.limits.output_bytes, &|| true)
    }

    /// Runs `code`, then each of `tests` in its namespace: what it takes is in [`tests_program`]. All of it shares
    /// the limits of one call; what did not get its turn has failed.
    pub fn run_tests(&self, code: &str, tests: &[String]) -> Result<TestReport, RunError> {
        self.run_tests_while(&|| true, code, tests)
    }

    /// The same, but the program is killed soon after `is_wanted` says no; then the report says nothing.
    pub fn run_tests_while(
        &self,
        is_wanted: &dyn Fn() -> bool,
        code: &str,
        tests: &[String],
    ) -> Result<TestReport, RunError> {
        let tokens = (0..=tests.len())
            .map(|_| random_token())
            .collect::<Result<Vec<_>, _>>()?;
        let program = tests_program(code, tests, &tokens, TEST_TIME);
        let report_bytes = REPORT_BYTES_A_TEST * tokens.len();
        let output_bytes = self.limits.output_bytes.max(report_bytes);
        let outcome = self.run_keeping(&program, output_bytes, is_wanted)?;
        Ok(read_report(&outcome, tests, &tokens))
    }

    fn run_keeping(
        &self,
        program: &str,
        output_bytes: usize,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<RunOutcome, RunError> {
        // Always empty, since the child cannot write; removed when dropped.
        let folder = tempfile::Builder::new()
            .prefix("ponder-sandbox-")
            .tempdir()
            .map_err(spawn_error)?;
        let orders = self.orders(random_token()?);
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
        let left = || match is_wanted() {
            true => self.limits.wall.saturating_sub(started.elapsed()),
            false => Duration::ZERO,
        };
        let ended = pump(child, program.as_bytes(), output_bytes, &left).map_err(spawn_error)?;
        let stderr = String::from_utf8_lossy(&ended.stderr).into_owned();
        if let Some(message) = stderr.strip_prefix(&orders.token) {
            return Err(RunError::Spawn(message.trim().to_owned()));
        }
        Ok(RunOutcome {
            status: ended.status.map_or(Status::TimedOut, status_of),
            stdout: String::from_utf8_lossy(&ended.stdout).into_owned(),
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
            policy: Policy {
                cpu_seconds: self.limits.cpu_seconds,
                memory_bytes: self.limits.memory_bytes,
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

/// 128 bits that no program can guess.
fn random_token() -> Result<String, RunError> {
    let mut bytes = [0u8; 16];
    let filled = getrandom(&mut bytes, GetRandomFlags::empty()).map_err(spawn_error)?;
    if filled != bytes.len() {
        return Err(RunError::Spawn("no random bytes".to_owned()));
    }
    Ok(bytes.iter().fold(String::new(), |mut token, byte| {
        let _ = write!(token, "{byte:02x}");
        token
    }))
}
