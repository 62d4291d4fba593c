//! Limits of the server; each has a flag.

use std::time::Duration;

use crate::work;

/// Longest request body.
pub const DEFAULT_MAX_BODY_BYTES: usize = 16 << 20;
/// A request may not take longer, whatever its header says.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long requests may finish after SIGTERM.
pub const DEFAULT_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// Most alternatives a `top_logprobs` may ask for (OpenAI's limit).
pub const MAX_LOGPROBS: usize = 20;
pub const MAX_STOP_STRINGS: usize = 16;
pub const MAX_STOP_STRING_BYTES: usize = 1024;
pub const MAX_LOGIT_BIAS: usize = 1024;
pub const MAX_STOP_TOKEN_IDS: usize = 1024;
/// Ids that `/tokenize` answers with and `/detokenize` takes.
pub const MAX_TOKENIZED: usize = 1 << 20;
/// Processor time of one piece of work of a request.
pub const DEFAULT_MAX_WORK_TIME: Duration = Duration::from_secs(1);
/// What all branch sessions may hold.
pub const DEFAULT_MAX_BRANCH_BYTES: usize = 256 << 20;
/// Prompts of one completions request.
pub const MAX_PROMPTS: usize = 256;

#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The names that requests may use; the first is the one answers carry.
    pub served_model_names: Vec<String>,
    /// Empty means no authentication.
    pub api_keys: Vec<String>,
    pub metrics_need_key: bool,
    pub max_body_bytes: usize,
    pub request_timeout: Duration,
    pub shutdown_timeout: Duration,
    /// `*` allows every origin; empty turns CORS off.
    pub cors_allow_origins: Vec<String>,
    /// Keep plain answers too, not only searches.
    pub trace_all: bool,
    /// Let requests load and unload adapters from folders on this machine.
    pub enable_lora: bool,
    /// Keys that read the traces of all keys, and nothing else.
    pub trace_keys: Vec<String>,
    /// Threads for what requests cause besides tokens.
    pub work_threads: usize,
    /// Pieces of such work that may wait.
    pub max_queued_work: usize,
    /// Processor time of one piece.
    pub max_work_time: Duration,
    /// Bytes of all branch sessions together.
    pub max_branch_bytes: usize,
}

impl ServerConfig {
    /// Whether several keys share the server, so that none may take all of it.
    pub fn is_shared(&self) -> bool {
        self.api_keys.len() > 1
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            served_model_names: Vec::new(),
            api_keys: Vec::new(),
            metrics_need_key: true,
            max_body_bytes: DEFAULT_MAX_BODY_BYTES,
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
            shutdown_timeout: DEFAULT_SHUTDOWN_TIMEOUT,
            cors_allow_origins: Vec::new(),
            trace_all: false,
            enable_lora: false,
            trace_keys: Vec::new(),
            work_threads: work::default_threads(),
            max_queued_work: work::DEFAULT_MAX_QUEUED,
            max_work_time: DEFAULT_MAX_WORK_TIME,
            max_branch_bytes: DEFAULT_MAX_BRANCH_BYTES,
        }
    }
}
