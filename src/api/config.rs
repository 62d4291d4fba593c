//! Limits of the server; each has a flag.

use std::path::PathBuf;
use std::time::Duration;

use crate::work;

/// Longest request body.
pub const DEFAULT_MAX_BODY_BYTES: usize = 16 << 20;
/// A request may not take longer, whatever its header says.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long requests may finish after SIGTERM.
pub const DEFAULT_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// A request's header must be there so long after its first byte, the first one of a connection so
/// long after the connection.
pub const DEFAULT_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection may wait so long for its next request.
pub const DEFAULT_KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(75);
/// A body may pause so long.
pub const DEFAULT_BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// A client may take no byte of its answer for so long.
pub const DEFAULT_WRITE_TIMEOUT: Duration = Duration::from_secs(300);
/// Connections at once, but for [`RESERVED_CONNECTIONS`].
pub const DEFAULT_MAX_CONNECTIONS: usize = 1024;
/// Connections beyond the maximum, for probes and for keys that have less than their share.
pub const RESERVED_CONNECTIONS: usize = 32;
/// Memory of all bodies that are being read or checked: their bytes, and [`BYTES_A_VALUE`] for each of
/// their JSON values.
pub const DEFAULT_MAX_INFLIGHT_BODY_BYTES: usize = 512 << 20;
/// What a JSON value takes in memory beside its text, roughly.
pub const BYTES_A_VALUE: usize = 64;
/// JSON values of one body.
pub const MAX_BODY_VALUES: usize = 1 << 20;
/// Where several keys share a server, one of them has at most this part of its connections (as
/// requests in progress) and of the bytes of bodies.
pub const KEY_SHARE: usize = 4;
/// Bytes of an adapter's weights.
pub const DEFAULT_MAX_LORA_BYTES: u64 = 1 << 30;
/// Most alternatives a `top_logprobs` may ask for (OpenAI's limit).
pub const MAX_LOGPROBS: usize = 20;
pub const MAX_STOP_STRINGS: usize = 16;
pub const MAX_STOP_STRING_BYTES: usize = 1024;
pub const MAX_LOGIT_BIAS: usize = 1024;
pub const MAX_STOP_TOKEN_IDS: usize = 1024;
/// Ids that `/tokenize` answers with.
pub const MAX_TOKENIZED: usize = 1 << 20;
/// Processor time of one piece of work of a request.
pub const DEFAULT_MAX_WORK_TIME: Duration = Duration::from_millis(500);
/// What all branch sessions may hold.
pub const DEFAULT_MAX_BRANCH_BYTES: usize = 256 << 20;
/// Background responses that are made at once. Where several keys share a server, one of them has
/// at most the part of [`KEY_SHARE`].
pub const MAX_BACKGROUND_RESPONSES: usize = 256;
/// Bytes of the events that all background responses with a stream keep for their readers.
pub const MAX_EVENT_LOG_BYTES: usize = 256 << 20;
/// Responses that one conversation may be made of.
pub const MAX_CONVERSATION_RESPONSES: usize = 1000;
/// Prompts of one completions request.
pub const MAX_PROMPTS: usize = 256;

/// What connections and their requests may hold of the server.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    pub header_timeout: Duration,
    pub keep_alive_timeout: Duration,
    pub body_timeout: Duration,
    pub write_timeout: Duration,
    pub max_connections: usize,
    /// `None`: a part of the connections when there are keys, without limit when there are none.
    pub max_requests_per_key: Option<usize>,
    pub max_inflight_body_bytes: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            header_timeout: DEFAULT_HEADER_TIMEOUT,
            keep_alive_timeout: DEFAULT_KEEP_ALIVE_TIMEOUT,
            body_timeout: DEFAULT_BODY_TIMEOUT,
            write_timeout: DEFAULT_WRITE_TIMEOUT,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            max_requests_per_key: None,
            max_inflight_body_bytes: DEFAULT_MAX_INFLIGHT_BODY_BYTES,
        }
    }
}

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
    /// Let requests load and unload adapters from folders in `lora_roots`.
    pub enable_lora: bool,
    pub lora_roots: Vec<PathBuf>,
    /// Bytes of the weights that one key's adapters have together.
    pub max_lora_bytes: u64,
    pub connections: ConnectionLimits,
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
    /// Control tokens such as `<|im_start|>` in the texts of messages are text: nobody can open a
    /// turn inside of a message. Off, they are read as tokens, as other servers do.
    pub escape_special_tokens: bool,
    /// Serve the page for browsers at `/`.
    pub ui: bool,
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
            lora_roots: Vec::new(),
            max_lora_bytes: DEFAULT_MAX_LORA_BYTES,
            connections: ConnectionLimits::default(),
            trace_keys: Vec::new(),
            work_threads: work::default_threads(),
            max_queued_work: work::DEFAULT_MAX_QUEUED,
            max_work_time: DEFAULT_MAX_WORK_TIME,
            max_branch_bytes: DEFAULT_MAX_BRANCH_BYTES,
            escape_special_tokens: false,
            ui: true,
        }
    }
}
