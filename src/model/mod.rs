//! Models: files, configuration, weights and the forward pass. Knows nothing of scheduling.

pub mod causal_lm;

pub use causal_lm::*;
