//! Why the engine refuses or fails a request.

use super::TokenId;
use crate::engine::backend::Capability;

/// Why the engine refused or failed a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    #[error("the waiting queue is full ({waiting} of {limit} sequences wait)")]
    Overloaded { waiting: usize, limit: usize },
    #[error("the prompt has {num_tokens} tokens; this model serves at most {max_model_len}")]
    PromptTooLong {
        num_tokens: usize,
        max_model_len: usize,
    },
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("n is {n}; this server runs at most {limit} sequences per request")]
    TooManySequences { n: usize, limit: usize },
    #[error(
        "pooling positions must ascend and lie in the prompt of {num_tokens} tokens; n must be 1"
    )]
    PoolingPositions { num_tokens: usize },
    #[error("token id {token_id} is outside the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        token_id: TokenId,
        vocab_size: usize,
    },
    #[error("the KV cache holds {available} tokens in all; this request needs {needed}")]
    KvCacheTooSmall { needed: usize, available: usize },
    #[error("the engine is shutting down")]
    ShuttingDown,
    #[error("request {0} is not running")]
    UnknownRequest(u64),
    #[error("the adapter was unloaded")]
    UnknownAdapter,
    #[error("{field} {message}")]
    Adaptation {
        field: &'static str,
        message: String,
    },
    #[error(
        "the {backend} backend lacks the capability {}, which this needs: leave it out, or serve the model by a \
         backend that has it",
        capability.name()
    )]
    Unsupported {
        backend: &'static str,
        capability: Capability,
    },
    #[error("image {index} of the request: {message}")]
    Image { index: usize, message: String },
    #[error("the model failed: {0}")]
    Model(String),
    #[error("no token is allowed next: the constraint, min_tokens and stop_token_ids leave none")]
    NothingAllowed,
    #[error("the constraint on the answer cannot go on: {0}")]
    Constraint(String),
    #[error("the engine broke its own rules, and ended this request: {0}")]
    Invariant(String),
}

const NOT_FINITE: &str = "the model's logits are not finite numbers: its file may be damaged \
    (`ponder pull NAME` checks a model of the catalogue)";

impl EngineError {
    pub(in crate::engine) fn not_finite() -> Self {
        Self::Model(NOT_FINITE.to_owned())
    }

    /// Whether the model computed numbers that are none, as models with damaged weights do.
    pub fn is_not_finite(&self) -> bool {
        matches!(self, Self::Model(message) if message == NOT_FINITE)
    }
}
