//! What a client receives.

use std::sync::Arc;

use super::{AdaptationReport, EngineError, Steering, TokenId};
use crate::engine::speculative::DraftCounts;

/// A token's logprob with the most likely alternatives at its position, best first.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    pub token_id: TokenId,
    /// Natural log of the probability under the model's unmodified logits (temperature 1).
    pub logprob: f32,
    /// `(token_id, logprob)`, descending.
    pub top: Vec<(TokenId, f32)>,
}

/// Why a continuation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end-of-generation token; it is reported as a token event too.
    Eos,
    /// One of `stop_token_ids`.
    StopToken(TokenId),
    /// `max_tokens` or the context length is reached.
    Length,
    /// The client aborted or dropped its stream.
    Abort,
    /// The request's deadline passed.
    Deadline,
    /// The request's [`TokenWatcher`] ended it.
    Watcher,
    /// The request's [`TokenBudget`] is spent.
    Budget,
    /// All positions of the request's [`PoolingParams`] were reported.
    Pooled,
}

/// What a client receives, in order. `index` is the continuation, `0..n`.
#[derive(Debug, Clone)]
pub enum StreamEvent {
    /// Once per request, before its first token or what is first read of its prompt.
    PromptDone {
        num_prompt_tokens: usize,
        num_cached_tokens: usize,
        /// One entry per prompt token when asked for; the first token has none.
        prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    },
    Token {
        index: usize,
        token_id: TokenId,
        logprobs: Option<TokenLogprobs>,
        /// `[hidden_size]`, what the token was sampled from: of a continuation's last token and of those that
        /// its watcher taps, when the request asks for hidden states.
        hidden_state: Option<Vec<f32>>,
    },
    /// A phase of adaptation is over. Before `PromptDone` it is the prompt's, and counts for all continuations.
    Adapted {
        index: usize,
        report: AdaptationReport,
        steering: Arc<Steering>,
    },
    /// What a pooling request reads at `position` of its prompt, in order.
    Pooled {
        position: usize,
        /// One of each of [`PoolingParams::token_ids`].
        logits: Vec<f32>,
        /// `[hidden_size]`
        hidden_state: Option<Vec<f32>>,
    },
    Finished {
        index: usize,
        reason: FinishReason,
        /// What came of the drafts of this continuation.
        drafts: DraftCounts,
    },
    /// The request failed; no event follows.
    Error(EngineError),
}
