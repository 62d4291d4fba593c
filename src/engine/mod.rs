//! The engine: continuous batching over a paged KV cache. It speaks token ids and knows nothing of
//! text, HTTP, search or traces.

mod adaptation;
mod adapters;
mod batch;
mod block_manager;
pub mod config;
#[doc(hidden)]
pub mod fake_model;
mod handle;
mod logprobs;
mod prefix_cache;
pub mod request;
mod rng;
mod runner;
mod sampler;
mod scheduler;
mod sequence;
mod speculative;
mod stats;
mod thread;

pub use config::{ConfigError, EngineOptions};
pub use handle::{EngineHandle, ForkParams, RequestStream};
pub use request::*;
pub use speculative::skip_search;
pub use speculative::{
    DEFAULT_NUM_SPECULATIVE_TOKENS, DEFAULT_PROMPT_LOOKUP_MIN, DraftCounts, Drafter,
    MAX_NUM_SPECULATIVE_TOKENS, SharedDrafts, Speculative, SpeculativeConfig,
};
