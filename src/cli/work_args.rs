//! Flags of what requests cause besides tokens.

use clap::{Args, value_parser};

use super::values::{MAX_MILLISECONDS, parse_bytes};
use crate::api::config as limits;
use crate::{reward, work};

/// Limits of work whose size clients choose.
#[derive(Debug, Clone, Args)]
pub struct WorkArgs {
    /// Threads of low priority that tokenise long prompts, match patterns, and do other work of any
    /// size
    #[arg(long, env = "PONDER_WORK_THREADS", default_value_t = work::default_threads(), value_parser = at_least_one, help_heading = "Limits")]
    pub work_threads: usize,
    /// Most pieces of such work that may wait; further requests get 429
    #[arg(long, env = "PONDER_MAX_QUEUED_WORK", default_value_t = work::DEFAULT_MAX_QUEUED, value_parser = at_least_one, help_heading = "Limits")]
    pub max_queued_work: usize,
    /// Processor time of one piece of such work, in milliseconds
    #[arg(long, env = "PONDER_MAX_WORK_MS", default_value_t = limits::DEFAULT_MAX_WORK_TIME.as_millis() as u64, value_parser = value_parser!(u64).range(1..=MAX_MILLISECONDS), help_heading = "Limits")]
    pub max_work_ms: u64,
    /// Most sandboxed programs and schema checks at once
    #[arg(long, env = "PONDER_MAX_RUNNING_PROGRAMS", default_value_t = reward::default_parallel(), value_parser = at_least_one, help_heading = "Limits")]
    pub max_running_programs: usize,
    /// Memory of all branch sessions together, such as 256M
    #[arg(long, env = "PONDER_MAX_BRANCH_BYTES", default_value_t = limits::DEFAULT_MAX_BRANCH_BYTES, value_parser = parse_bytes, help_heading = "Limits")]
    pub max_branch_bytes: usize,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}
