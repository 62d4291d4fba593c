//! The parent's side: starts one limited process a call and tells how it ended.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use super::isolation::{Isolation, User};
use super::orders::{Orders, random_token};
use super::policy::{Policy, protections};
use super::pump::{Ending, Until, pump};
use super::python::{ARGUMENTS, Python};
use super::tests_program::{REPORT_BYTES_A_TEST, TEST_TIME, read_report, tests_program};
use super::{
    Block, BlockOutcome, Cancel, Limits, Protections, RunError, RunOutcome, SUBCOMMAND, Status,
    TestReport,
};

const TRIAL_BYTES: usize = 4096;
/// Starting a process is what every other protection leans on. Then it starts one thread more than
/// it may, and tells how many it has. They are small: memory is to be no other bound.
const TRIAL: &str = r#"
import os, _thread
try:
    os.fork()
except PermissionError:
    print("held")
_thread.stack_size(1 << 16)
lock = _thread.allocate_lock()
lock.acquire()
count = 1
try:
    while count <= LIMIT:
        _thread.start_new_thread(lock.acquire, ())
        count += 1
except RuntimeError:
    pass
print(count, flush=True)
os._exit(0)
"#;

/// What is run.
#[derive(Clone, Copy)]
struct Call<'a> {
    program: &'a str,
    limits: Limits,
    /// The program gets a descriptor for what nobody reads.
    has_sink: bool,
}

/// Runs programs, any number at once; each call blocks its thread and has one process.
#[derive(Debug, Clone)]
pub struct Sandbox {
    exe: PathBuf,
    python: Python,
    limits: Limits,
    isolation: Isolation,
}

impl Sandbox {
    /// `exe` is a binary that hands [`SUBCOMMAND`] to [`super::exec_from_args`]: `/proc/self/exe`
    /// for the caller's own, also after its file was replaced. `python` defaults to `python3` of
    /// the search path. Makes a trial, so that a sandbox that does not start or does not hold is
    /// found out here.
    pub fn new(exe: PathBuf, python: Option<PathBuf>, limits: Limits) -> Result<Self, RunError> {
        if !protections().seccomp {
            return Err(RunError::Unsupported);
        }
        let mut sandbox = Self {
            // A relative path would be looked up in the child's working folder.
            exe: std::path::absolute(exe).map_err(spawn_error)?,
            python: Python::locate(python.as_deref())?,
            limits,
            isolation: Isolation::ALL[0].1,
        };
        let mut last = Ok(());
        for (name, isolation) in Isolation::ALL {
            sandbox.isolation = isolation;
            last = sandbox.try_out().map_err(|why| format!("{name}: {why}"));
            if last.is_ok() {
                break;
            }
        }
        last.map(|()| sandbox).map_err(RunError::Spawn)
    }

    /// Whether programs start here as they are to, and are held.
    fn try_out(&self) -> Result<(), String> {
        let limit = self.limits.max_threads;
        let program = TRIAL.replace("LIMIT", &limit.to_string());
        let call = Call {
            program: &program,
            limits: Limits {
                output_bytes: TRIAL_BYTES,
                ..self.limits
            },
            has_sink: false,
        };
        let trial = self.call(call, &Cancel::new());
        let trial = trial.map_err(|error| error.to_string())?;
        let threads = trial.stdout.strip_prefix("held\n");
        let threads = threads.and_then(|count| count.trim().parse().ok());
        match threads {
            Some(1..) if threads <= Some(limit.max(1)) => Ok(()),
            _ => Err(format!(
                "a trial ended as {:?}: {:?} {}",
                trial.status,
                trial.stdout,
                trial.stderr.trim()
            )),
        }
    }

    /// The same with a weaker separation than the machine allows: for tests of the ways that others
    /// have to go. `None` where it does not work, or is not known.
    #[doc(hidden)]
    pub fn separated_as(mut self, name: &str) -> Option<Self> {
        self.isolation = Isolation::from_name(name.as_ref())?;
        self.try_out().is_ok().then_some(self)
    }

    /// What holds programs here, as tried.
    pub fn protections(&self) -> Protections {
        Protections {
            own_files: self.isolation.hides_files,
            own_user: self.isolation.user == User::Own,
            threads: self.isolation.counts_threads(),
            ..protections()
        }
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Runs `program` as a main module with nothing on stdin.
    pub fn run(&self, program: &str) -> Result<RunOutcome, RunError> {
        let call = Call {
            program,
            limits: self.limits,
            has_sink: false,
        };
        self.call(call, &Cancel::new())
    }

    /// Runs `code`, then each of `tests` in its namespace: what it takes is in [`tests_program`].
    /// All of it shares the limits of one call; what did not get its turn has failed. Ends as
    /// [`RunError::Cancelled`] at once when `cancel` is used.
    pub fn run_tests(
        &self,
        code: &str,
        tests: &[String],
        cancel: &Cancel,
    ) -> Result<TestReport, RunError> {
        let tokens = (0..=tests.len())
            .map(|_| random_token())
            .collect::<Result<Vec<_>, _>>()
            .map_err(RunError::Spawn)?;
        let program = tests_program(code, tests, &tokens, TEST_TIME);
        let report_bytes = REPORT_BYTES_A_TEST * tokens.len();
        let call = Call {
            program: &program,
            limits: Limits {
                output_bytes: self.limits.output_bytes.max(report_bytes),
                ..self.limits
            },
            has_sink: true,
        };
        let outcome = self.call(call, cancel)?;
        Ok(read_report(&outcome, tests, &tokens))
    }

    /// Runs a block of a session within the sandbox's limits and its own.
    pub fn run_block(&self, block: &Block<'_>, cancel: &Cancel) -> Result<BlockOutcome, RunError> {
        let program = block.program();
        let call = Call {
            program: &program,
            limits: Limits {
                wall: block.wall.min(self.limits.wall),
                cpu_seconds: block.cpu_seconds(),
                output_bytes: block.output_bytes,
                ..self.limits
            },
            has_sink: true,
        };
        Ok(block.read(self.call(call, cancel)?))
    }

    fn call(&self, call: Call<'_>, cancel: &Cancel) -> Result<RunOutcome, RunError> {
        let token = random_token().map_err(RunError::Spawn)?;
        let orders = self.orders(token, &call);
        let started = Instant::now();
        let child = Command::new(&self.exe)
            .arg(SUBCOMMAND)
            .args(orders.to_args())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| RunError::Spawn(format!("{}: {error}", self.exe.display())))?;
        let until = Until {
            deadline: started + call.limits.wall,
            cancel,
        };
        let (program, output_bytes) = (call.program.as_bytes(), call.limits.output_bytes);
        let ended = pump(child, program, output_bytes, until).map_err(spawn_error)?;
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

    fn orders(&self, token: String, call: &Call<'_>) -> Orders {
        let mut command = vec![self.python.exe.clone().into_os_string()];
        command.extend(ARGUMENTS.map(Into::into));
        let mut readable = self.python.readable.clone();
        if self.isolation.hides_files {
            // The empty working folder, so that listing it is no error. Else it is the root.
            readable.push(".".into());
        }
        Orders {
            token,
            parent: std::process::id(),
            nice: call.limits.nice,
            isolation: Some(self.isolation),
            has_sink: call.has_sink,
            policy: Policy {
                cpu_seconds: call.limits.cpu_seconds,
                memory_bytes: call.limits.memory_bytes,
                max_threads: match self.isolation.counts_threads() {
                    true => call.limits.max_threads,
                    false => 1,
                },
                readable,
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
