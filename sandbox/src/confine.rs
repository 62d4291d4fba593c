//! A trusted computation on untrusted input, in a child of its own: the caller's binary again, with
//! less of everything. What the input makes of it ends there.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::exec::ExecError;
use super::orders::{Orders, random_token};
use super::policy::{Policy, protections};
use super::prepare::{die_with_parent, leave_parent};
use super::pump::{Ended, Ending, Until, pump};
use super::{Cancel, ConfinedError, ConfinedInput, Limits};

/// All that a child keeps of the environment: how its own binary finds its libraries.
const KEPT_VARIABLES: [&str; 1] = ["LD_LIBRARY_PATH"];
/// Shown of what a child that failed says.
const MESSAGE_CHARS: usize = 2000;
/// What Rust's runtime says before it aborts.
const NO_MEMORY: &str = "memory allocation of";
const NO_STACK: &str = "has overflowed its stack";

/// Runs subcommands of a binary, each in a limited process; any number at once, and each call
/// blocks its thread.
///
/// The child is the caller's own code: the limits hold what an input does to it, not a program that
/// somebody wrote. It opens no files, has no network and starts no processes, but it starts with
/// what the binary maps.
#[derive(Debug, Clone)]
pub struct Confined {
    exe: PathBuf,
    limits: Limits,
}

impl Confined {
    /// `exe` is a binary that hands what follows its subcommands to [`confine_from_args`]:
    /// `/proc/self/exe` for the caller's own, also after its file was replaced.
    /// `limits.memory_bytes` includes what the binary itself maps; `limits.output_bytes` is the
    /// longest result; with `max_threads` of 1 there is one, else their number is not counted.
    pub fn new(exe: PathBuf, limits: Limits) -> Result<Self, ConfinedError> {
        if !protections().seccomp {
            return Err(ConfinedError::Unsupported);
        }
        let exe = std::path::absolute(exe).map_err(spawn_error)?;
        Ok(Self { exe, limits })
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Starts the binary with `command` (a subcommand and its arguments), feeds it `input` and
    /// returns what it wrote to stdout, if it exits with 0. It is dead on return: after `wall` or
    /// the limits' wall, whichever is less, or at once when `cancel` is used.
    pub fn run(
        &self,
        command: &[&str],
        input: &[u8],
        wall: Duration,
        cancel: &Cancel,
    ) -> Result<Vec<u8>, ConfinedError> {
        let wall = wall.min(self.limits.wall);
        let deadline = Instant::now() + wall;
        let (subcommand, args) = command
            .split_first()
            .ok_or_else(|| ConfinedError::Spawn("no subcommand".to_owned()))?;
        let orders = self.orders(args).map_err(spawn_error)?;
        let kept = KEPT_VARIABLES.iter().filter_map(|name| {
            let value = std::env::var_os(name)?;
            Some((OsStr::new(name), value))
        });
        let child = Command::new(&self.exe)
            .arg(subcommand)
            .args(orders.to_args())
            .env_clear()
            .envs(kept)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| spawn_error(format!("{}: {error}", self.exe.display())))?;
        let until = Until { deadline, cancel };
        let ended = pump(child, input, self.limits.output_bytes, until).map_err(spawn_error)?;
        self.result(ended, wall, &orders.token)
    }

    fn orders(&self, args: &[&str]) -> Result<Orders, String> {
        Ok(Orders {
            token: random_token()?,
            parent: std::process::id(),
            nice: self.limits.nice,
            isolation: None,
            has_sink: false,
            policy: Policy {
                cpu_seconds: self.limits.cpu_seconds,
                memory_bytes: self.limits.memory_bytes,
                max_threads: self.limits.max_threads,
                readable: Vec::new(),
                executable: Vec::new(),
            },
            command: args.iter().map(OsString::from).collect(),
        })
    }

    fn result(&self, ended: Ended, wall: Duration, token: &str) -> Result<Vec<u8>, ConfinedError> {
        let status = match ended.ending {
            Ending::Exited(status) => status,
            Ending::TimedOut => return Err(ConfinedError::TimedOut { wall }),
            Ending::Cancelled => return Err(ConfinedError::Cancelled),
        };
        let message = String::from_utf8_lossy(&ended.stderr.bytes);
        match message.strip_prefix(token) {
            Some(refusal) if refusal.starts_with(NO_MEMORY) => return Err(self.out_of_memory()),
            Some(refusal) => return Err(spawn_error(refusal.trim())),
            None => {}
        }
        if ended.stdout.is_cut {
            let bytes = self.limits.output_bytes;
            return Err(ConfinedError::OutputTooLarge { bytes });
        }
        match status.success() {
            true => Ok(ended.stdout.bytes),
            false => Err(self.failure(status, message.trim())),
        }
    }

    fn out_of_memory(&self) -> ConfinedError {
        ConfinedError::OutOfMemory {
            bytes: self.limits.memory_bytes,
        }
    }

    fn failure(&self, status: ExitStatus, message: &str) -> ConfinedError {
        let Some(signal) = status.signal() else {
            return ConfinedError::Failed {
                exit_code: status.code().unwrap_or_default(),
                message: message.chars().take(MESSAGE_CHARS).collect(),
            };
        };
        match signal {
            libc::SIGXCPU => ConfinedError::CpuTime {
                seconds: self.limits.cpu_seconds,
            },
            libc::SIGABRT if message.contains(NO_MEMORY) => self.out_of_memory(),
            libc::SIGABRT if message.contains(NO_STACK) => ConfinedError::StackOverflow,
            _ => ConfinedError::Killed { signal },
        }
    }
}

/// The beginning of a subcommand that a [`Confined`] starts; `args` is what follows it. Limits the
/// process for good and returns what to compute on; the result goes to stdout and the exit code
/// says whether there is one. To be called first in `main`, while the process has one thread. On
/// failure print the error to stderr and exit: the caller knows the message by how it begins.
pub fn confine_from_args(
    args: impl IntoIterator<Item = OsString>,
) -> Result<ConfinedInput, ExecError> {
    let orders = Orders::from_args(args).map_err(|message| ExecError {
        token: String::new(),
        message,
    })?;
    match confine(&orders) {
        Ok(bytes) => Ok(ConfinedInput {
            args: orders.command,
            bytes,
        }),
        Err(message) => Err(ExecError {
            token: orders.token,
            message,
        }),
    }
}

fn confine(orders: &Orders) -> Result<Vec<u8>, String> {
    leave_parent(orders.nice)?;
    die_with_parent(orders.parent)?;
    orders
        .policy
        .enforce_computation()
        .map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    io::stdin()
        .read_to_end(&mut bytes)
        .map_err(|error| match error.kind() {
            ErrorKind::OutOfMemory => format!("{NO_MEMORY} the input failed"),
            _ => format!("stdin: {error}"),
        })?;
    Ok(bytes)
}

fn spawn_error(error: impl std::fmt::Display) -> ConfinedError {
    ConfinedError::Spawn(error.to_string())
}
