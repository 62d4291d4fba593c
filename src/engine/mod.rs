//! The engine: continuous batching over a paged KV cache. It speaks token ids and knows nothing of
//! text, HTTP, search or traces.

pub mod request;

pub use request::*;
