//! Scores of answers and of their steps, all in 0..=1. A scorer knows nothing of trees: whoever
//! searches hands it candidates and gets numbers back.

mod aggregate;
mod answer;
mod calibration;
mod head;
mod judge;
mod likelihood;
mod majority;
pub mod prm;
mod reading;
mod remote;
mod spec;
mod step_reader;
mod tokens;
mod value_head;
mod value_model;
pub mod verifier;
mod verifier_spec;
mod votes;
mod weighted;

use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;

use crate::work::WorkError;

pub use aggregate::Aggregate;
pub use answer::{answer_key, is_code, vote_key};
pub use calibration::{Calibration, CalibrationError, Evidence, FEATURES, Sampled};
pub use head::Head;
pub use judge::{Judge, JudgeScorer, Judged};
pub use likelihood::Likelihood;
pub use majority::Majority;
pub use prm::{Prm, PrmFormat, PrmParts, PrmScorer};
pub use reading::ReadError;
pub use remote::{RemoteScorer, RewardServer};
pub(crate) use spec::MAX_REWARDS;
pub use spec::{BuildError, RewardContext, RewardResources, RewardSpec, RewardSpecError, build};
pub use tokens::{ReadingKind, ScorerTokens};
pub use value_head::{ValueHead, ValueHeadError, tensors as head_tensors};
pub use value_model::{ValueModel, ValueModelParts, ValueModelScorer};
pub use verifier::programs::{Programs, default_parallel};
pub use verifier::python::{PythonBlock, PythonRunner};
pub use verifier::schema::{CHECK_SCHEMA, SchemaChecker, check_schema};
pub use votes::{Group, Votes, stays_ahead};
pub use weighted::{OwnScores, Scored, Weighted};

/// What is scored: an answer, or the part of one that a search has so far.
#[derive(Debug, Clone, Default)]
pub struct Candidate {
    /// Text after the prompt.
    pub text: String,
    /// Tokens after the prompt, the one that ended the answer included.
    pub token_ids: Arc<[u32]>,
    /// Tokens whose probabilities `logprob` has.
    pub num_tokens: usize,
    /// Sum of the natural logs of the tokens' probabilities under the model's unmodified logits.
    pub logprob: f64,
    /// The policy's final hidden state that the newest token was sampled from.
    pub hidden_state: Option<Arc<[f32]>>,
    /// Whether the answer has ended by itself.
    pub is_complete: bool,
    /// Further samples that gave the same text.
    pub num_duplicates: usize,
}

/// What a scorer reads of the policy's own forward pass; asking for it costs time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taps {
    pub logprobs: bool,
    pub hidden_state: bool,
}

/// Why no score came.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ScorerError {
    #[error("the reward {kind} failed: {message}")]
    Failed { kind: &'static str, message: String },
    #[error("the deadline passed before the reward {kind} had scored")]
    Deadline { kind: &'static str },
    /// The answers, or what they are checked against, are more work than one request may cause.
    #[error("the reward {kind} is too much work: {message}")]
    TooMuchWork { kind: &'static str, message: String },
    #[error("too many rewards are computed at once: {0}")]
    Overloaded(String),
}

impl ScorerError {
    /// Of a scorer of this kind, whose work was not done.
    fn work(kind: &'static str, error: WorkError) -> Self {
        let message = error.to_string();
        match error {
            WorkError::Deadline(_) => Self::Deadline { kind },
            WorkError::Spent { .. } => Self::TooMuchWork { kind, message },
            WorkError::Full { .. } => Self::Overloaded(message),
            WorkError::Panicked(_) | WorkError::Closed => Self::Failed { kind, message },
        }
    }
}

/// A scorer's work, given up at the deadline.
async fn until<T>(
    deadline: Option<Instant>,
    kind: &'static str,
    work: impl Future<Output = Result<T, ScorerError>>,
) -> Result<T, ScorerError> {
    match deadline {
        None => work.await,
        Some(deadline) => tokio::time::timeout_at(deadline.into(), work)
            .await
            .unwrap_or(Err(ScorerError::Deadline { kind })),
    }
}

/// A source of scores. Calls are batched: one with many candidates is cheaper than many with one.
pub trait Scorer: Send + Sync {
    /// The name in the API.
    fn kind(&self) -> &'static str;

    /// Whether an answer that has not ended can be scored.
    fn scores_steps(&self) -> bool;

    /// Whether a score depends on the other candidates of the call. Whoever searches then scores all of its answers
    /// together once it has them.
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

    /// One score a candidate. No wait is longer than to the deadline, and what runs for it elsewhere ends there too.
    fn score<'a>(
        &'a self,
        candidates: &'a [Candidate],
        deadline: Option<Instant>,
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>>;
}
