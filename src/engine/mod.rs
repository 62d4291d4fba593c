//! The engine: continuous batching over a paged KV cache. It speaks token ids and knows nothing of
//! text, HTTP, search or traces.

mod adaptation;
mod adapters;
mod admission;
mod backend;
mod batch;
mod block_manager;
mod block_tables;
mod clock;
pub mod config;
mod constrained;
pub mod executor;
#[doc(hidden)]
pub mod fake_model;
mod handle;
mod kv_sizes;
mod local_pool;
mod logprobs;
#[cfg(feature = "mistralrs")]
mod mistralrs;
mod prefix_cache;
pub mod request;
mod rng;
mod runner;
mod sampler;
mod scheduler;
mod sequence;
mod sequences;
mod speculative;
mod stats;
#[doc(hidden)]
pub mod stepped;
mod stream;
mod thread;
mod watchdog;

pub use backend::{Backend, Capability, Engine};
pub use block_tables::BlockCopies;
pub use clock::Clock;
pub use config::{ConfigError, EngineOptions};
pub use constrained::constraint_after;
pub use executor::{CudaExecutor, Executor, ExecutorError, ModelExecutor};
pub use handle::{EngineHandle, ForkParams};
pub use kv_sizes::LocalBlocks;
#[cfg(feature = "mistralrs")]
pub use mistralrs::{MistralrsEngine, MistralrsError, MistralrsOptions};
pub use request::*;
pub use speculative::skip_search;
pub use speculative::{
    DEFAULT_NUM_SPECULATIVE_TOKENS, DEFAULT_PROMPT_LOOKUP_MIN, DraftCounts, Drafter,
    MAX_NUM_SPECULATIVE_TOKENS, SharedDrafts, Speculative, SpeculativeConfig,
};
pub use stream::RequestStream;
