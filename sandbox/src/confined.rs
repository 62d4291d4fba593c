//! What a computation in a child of its own gets, and how it fails. The same on every system.

use std::ffi::OsString;
use std::time::Duration;

/// What the child computes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfinedInput {
    /// Those of the command, after the subcommand.
    pub args: Vec<OsString>,
    /// All of stdin.
    pub bytes: Vec<u8>,
}

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfinedError {
    #[error("limited processes need Linux with seccomp on x86-64 or aarch64")]
    Unsupported,
    #[error("the process could not be started: {0}")]
    Spawn(String),
    #[error("nobody waits for it any more")]
    Cancelled,
    #[error("took more than {wall:?}")]
    TimedOut { wall: Duration },
    #[error("took more than {seconds} s of processor time")]
    CpuTime { seconds: u64 },
    #[error("needed more than {bytes} bytes of memory")]
    OutOfMemory { bytes: u64 },
    #[error("nested too deep for its stack")]
    StackOverflow,
    #[error("put out more than {bytes} bytes")]
    OutputTooLarge { bytes: usize },
    #[error("was killed by signal {signal}")]
    Killed { signal: i32 },
    /// The child's own refusal or panic; the message is the beginning of its stderr.
    #[error("ended with code {exit_code}: {message}")]
    Failed { exit_code: i32, message: String },
}
