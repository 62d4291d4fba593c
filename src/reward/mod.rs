//! Scores of answers and of their steps, all in 0..=1. A scorer knows nothing of trees: whoever searches
//! hands it candidates and gets numbers back.

mod aggregate;
mod answer;
mod judge;
mod likelihood;
mod majority;
pub mod prm;
mod reading;
mod remote;
mod spec;
mod value_head;
pub mod verifier;
mod weighted;

use std::sync::Arc;

use futures::future::BoxFuture;

pub use aggregate::Aggregate;
pub use answer::answer_key;
pub use judge::{Judge, JudgeScorer};
pub use likelihood::Likelihood;
pub use majority::Majority;
pub use prm::{Prm, PrmFormat, PrmParts, PrmScorer};
pub use remote::{RemoteScorer, RewardServer};
pub use spec::{RewardContext, RewardResources, RewardSpec, RewardSpecError, build};
pub use value_head::{ValueHead, ValueHeadError, tensors as head_tensors};
pub use verifier::python::PythonRunner;
pub use weighted::{Scored, Weighted};

/// What is scored: an answer, or the part of one that a search has so far.
#[derive(Debug, Clone, Default)]
pub struct Candidate {
    /// Text after the prompt.
    pub text: String,
    /// Tokens after the prompt.
    pub num_tokens: usize,
    /// Sum of the natural logs of the tokens' probabilities under the model's unmodified logits.
    pub logprob: f64,
    /// The policy's final hidden state that the newest token was sampled from.
    pub hidden_state: Option<Arc<[f32]>>,
    /// Whether the answer has ended by itself.
    pub is_complete: bool,
}

/// What a scorer reads of the policy's own forward pass; asking for it costs time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taps {
    pub logprobs: bool,
    pub hidden_state: bool,
}

/// Why no score came.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the reward {kind} failed: {message}")]
pub struct ScorerError {
    pub kind: &'static str,
    pub message: String,
}

/// A source of scores. Calls are batched: one with many candidates is cheaper than many with one.
pub trait Scorer: Send + Sync {
    /// The name in the API.
    fn kind(&self) -> &'static str;

    /// Whether an answer that has not ended can be scored.
    fn scores_steps(&self) -> bool;

    /// Whether a score depends on the other candidates of the call.
    fn is_relative(&self) -> bool {
        false
    }

    /// Whether 1.0 means that no better answer exists (a verifier's word), so that a search may stop.
    fn is_decisive(&self) -> bool {
        false
    }

    fn taps(&self) -> Taps {
        Taps::default()
    }

    /// One score a candidate.
    fn score<'a>(
        &'a self,
        candidates: &'a [Candidate],
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>>;
}
