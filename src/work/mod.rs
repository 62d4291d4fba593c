//! Work whose size a client chooses, done where it delays nobody.
//!
//! A request may cause more than a bounded constant of work in many ways: a long text to tokenise,
//! a regular expression to match, a schema to check, a program to run. Such work runs in a
//! [`WorkPool`]: a few threads of low priority, fair turns by tenant, a bounded queue, and a
//! [`Budget`] of time that the work itself looks at. The work ends when its budget does or when
//! nobody waits for it any more. What cannot be interrupted runs in a process of its own
//! (`ponder_sandbox::Confined`), which is killed at the same moments.

mod budget;
mod fair;
mod pool;

pub use budget::{Budget, Stop, thread_time};
pub use pool::{
    DEFAULT_MAX_QUEUED, PoolOptions, WorkError, WorkPool, default_threads, lower_priority,
};

/// Input of at most so many bytes is worked on at once, on the thread that has it: the wait for a
/// turn would cost more than the work.
pub const INLINE_BYTES: usize = 16 << 10;
