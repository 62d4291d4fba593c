//! Limits of the server; each has a flag.

use std::time::Duration;

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
        }
    }
}
