//! Limited processes: Python that nobody has read ([`Sandbox`]), and one's own code on input that
//! nobody has checked ([`Confined`]). One process a call.
//!
//! The server starts its own binary again with a hidden subcommand. That process limits itself
//! (`policy`) and becomes the interpreter (`exec`), or computes (`confine`); the caller's thread
//! feeds it, drains it and kills it (`pump`).

#[cfg(target_os = "linux")]
mod cancel;
#[cfg(target_os = "linux")]
mod confine;
mod confined;
#[cfg(target_os = "linux")]
mod exec;
#[cfg(target_os = "linux")]
mod filters;
#[cfg(target_os = "linux")]
mod isolation;
#[cfg(target_os = "linux")]
mod orders;
#[cfg(target_os = "linux")]
mod policy;
#[cfg(target_os = "linux")]
mod prepare;
#[cfg(target_os = "linux")]
mod pump;
#[cfg(target_os = "linux")]
mod python;
#[cfg(target_os = "linux")]
mod runner;
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "nothing runs there")
)]
mod session;
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "nothing runs there")
)]
mod tests_program;
#[cfg(not(target_os = "linux"))]
mod unsupported;

use std::time::Duration;

#[cfg(target_os = "linux")]
pub use cancel::{Cancel, CancelOnDrop};
#[cfg(target_os = "linux")]
pub use confine::{Confined, confine_from_args};
pub use confined::{ConfinedError, ConfinedInput};
#[cfg(target_os = "linux")]
pub use exec::{ExecError, exec_from_args};
#[cfg(target_os = "linux")]
pub use policy::protections;
#[cfg(target_os = "linux")]
pub use runner::Sandbox;
pub use session::{Block, BlockOutcome};
pub use tests_program::{TestReport, tests_program};
#[cfg(not(target_os = "linux"))]
pub use unsupported::{
    Cancel, CancelOnDrop, Confined, ExecError, Sandbox, confine_from_args, exec_from_args,
    protections,
};

/// `argv[1]` of the process that becomes the interpreter; what follows goes to [`exec_from_args`].
pub const SUBCOMMAND: &str = "sandbox-exec";

/// What one call may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From start to kill.
    pub wall: Duration,
    /// Of all threads together.
    pub cpu_seconds: u64,
    /// Address space, the interpreter's own (about 30 MiB) included.
    pub memory_bytes: u64,
    /// Kept of each of stdout and stderr, which is closed then: who writes more gets `EPIPE`.
    pub output_bytes: usize,
    /// At once, the first one included; starting more fails. There is one where nothing counts them
    /// ([`Protections::threads`]).
    pub max_threads: u32,
    /// From 0 (as the caller's) to 19. Against a thread that never sleeps one thread gets 25% of a
    /// core at 5, 10% at 10, 6% at 12, 1.5% at 19. The lower its share, the more does what a
    /// program gets done within its wall depend on who else computes.
    pub nice: i32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Four times what the processor time comes to: cores are shared with the engine.
            wall: Duration::from_secs(20),
            cpu_seconds: 5,
            memory_bytes: 512 << 20,
            output_bytes: 64 << 10,
            max_threads: 12,
            nice: 12,
        }
    }
}

/// Why a program was not run. What the program itself does is never an error, but a [`Status`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum RunError {
    #[error("running programs needs Linux with seccomp on x86-64 or aarch64")]
    Unsupported,
    #[error("no usable Python interpreter: {0}")]
    NoPython(String),
    #[error("the sandbox could not be started: {0}")]
    Spawn(String),
    #[error("nobody waits for the program any more")]
    Cancelled,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Exit code 0.
    Passed,
    Failed {
        exit_code: i32,
    },
    /// By itself or by the kernel: SIGXCPU or SIGKILL once the CPU time is spent.
    Killed {
        signal: i32,
    },
    /// The wall clock ran out.
    TimedOut,
}

/// What a program left.
#[derive(Debug, Clone)]
pub struct RunOutcome {
    pub status: Status,
    pub stdout: String,
    pub stderr: String,
    pub wall: Duration,
}

/// What holds programs here. Resource limits and the empty set of capabilities always do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Protections {
    /// No writes, processes, network or signals; nothing runs without it.
    pub seccomp: bool,
    /// Reads only the interpreter's and the system's libraries. Without it and without `own_files`
    /// a program reads whatever the server's user can, `/proc/<pid>/environ` of the server
    /// included.
    pub landlock: bool,
    /// Sees a tree of files that holds nothing else, in a mount namespace. Without it a program
    /// learns of any path whether it exists, how large it is and when it changed, as far as its
    /// user may look. Only a [`Sandbox`] that was made knows.
    pub own_files: bool,
    /// Runs as a user that owns nothing, where the server is root. Only a [`Sandbox`] that was made
    /// knows.
    pub own_user: bool,
    /// Programs may start [`Limits::max_threads`], which the kernel counts; else they have but one.
    /// Only a [`Sandbox`] that was made knows.
    pub threads: bool,
}
