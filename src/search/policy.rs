//! What a strategy asks of the model.

use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;

use super::confidence::ConfidenceRule;
use super::inserted::{Inserted, num_inserted};
use super::outcome::SearchError;
use super::step::StepRule;
use crate::engine::{TokenId, TokenLogprobs};

/// Samples that continue one prefix.
#[derive(Debug, Clone)]
pub struct Expansion {
    /// The answer so far.
    pub prefix: Vec<TokenId>,
    pub prefix_text: String,
    /// What of it the policy did not write.
    pub inserted: Vec<Inserted>,
    /// Key of the randomness; sample `i` draws with `[..branch_path, i]`.
    pub branch_path: Vec<u32>,
    pub n: usize,
    /// The prefix's value: under memory pressure the lowest gives way.
    pub priority: f32,
    /// Where a sample ends; `None` samples to the end of the answer.
    pub step: Option<StepRule>,
    /// Note where the steps of each sample end, see [`Continuation::step_ends`].
    pub noted_step: Option<StepRule>,
    /// Measure each sample's confidence, and end those that lack it.
    pub confidence: Option<ConfidenceRule>,
}

impl Expansion {
    /// Tokens of the prefix that the policy wrote.
    pub fn num_own(&self) -> usize {
        self.prefix.len() - num_inserted(&self.inserted)
    }

    /// What the policy wrote since the last insertion.
    pub(super) fn own_text(&self) -> &str {
        let last = self.inserted.last();
        let start = last.map_or(0, |it| it.text.end);
        self.prefix_text.get(start..).unwrap_or_default()
    }
}

/// Why a sample ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// A step is complete; the answer goes on.
    Step,
    /// The model or a stop string ended the answer.
    Stop,
    /// The answer has as many tokens as the request allows.
    Length,
    /// The search's tokens or time are spent, or the sample was stopped.
    Cut,
    /// Its confidence fell below the limit.
    Unsure,
}

impl End {
    /// The end of the whole answer, if it is one.
    pub fn terminal(self) -> Option<Self> {
        (self != Self::Step).then_some(self)
    }
}

/// One sample.
#[derive(Debug, Clone)]
pub struct Continuation {
    pub token_ids: Vec<TokenId>,
    /// Without stop strings.
    pub text: String,
    /// What of it the policy did not write. It costs no tokens of a budget.
    pub inserted: Vec<Inserted>,
    pub end: End,
    /// One entry a token, under the model's unmodified logits; 0 where the policy did not write it.
    pub logprobs: Vec<TokenLogprobs>,
    pub hidden_state: Option<Arc<[f32]>>,
    /// Where its first steps end, when that was asked for: at most
    /// 16, each with something behind it.
    pub step_ends: Vec<StepEnd>,
    /// Of its least confident group of tokens, when that was asked for.
    pub confidence: Option<f64>,
}

impl Continuation {
    /// Tokens that the policy wrote.
    pub fn num_own(&self) -> usize {
        self.token_ids.len() - num_inserted(&self.inserted)
    }
}

/// The end of a step in a whole answer.
#[derive(Debug, Clone)]
pub struct StepEnd {
    /// Of the answer's tokens up to here, inserted ones among them, without the expansion's prefix.
    pub num_tokens: usize,
    pub hidden_state: Option<Arc<[f32]>>,
}

/// A sample that ended, and which it is.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Index into the expansions.
    pub expansion: usize,
    /// Index of the sample within the expansion.
    pub index: usize,
    pub continuation: Continuation,
}

/// Samples in flight.
pub trait Running: Send {
    /// The next sample that ended. The order is that of the samples' lengths in tokens, then of expansion and
    /// index, whatever else the engine runs: what a search decides never depends on timing.
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Finished, SearchError>>>;

    /// Ends the rest before the engine's next step; they are not returned.
    fn stop(&mut self);
}

/// A model that continues answers.
pub trait Policy: Send + Sync {
    /// Starts all expansions in one batch.
    fn start(
        &self,
        expansions: Vec<Expansion>,
    ) -> BoxFuture<'_, Result<Box<dyn Running + '_>, SearchError>>;

    /// The text of each token.
    fn pieces(&self, token_ids: &[TokenId]) -> Vec<String>;

    /// After how many tokens of a sample its noted steps end, see [`Continuation::step_ends`].
    fn step_ends(
        &self,
        source: &Expansion,
        token_ids: &[TokenId],
        inserted: &[Inserted],
    ) -> Vec<usize>;

    /// Tokens generated so far, those of stopped samples included.
    fn num_tokens(&self) -> u64;

    /// Tokens of an answer at most.
    fn max_tokens(&self) -> usize;

    /// Counts tokens that an earlier run of the same search generated. False, and none is counted, when fewer are left.
    fn charge(&self, num_tokens: u64) -> bool;

    /// Key of all randomness of a search over it.
    fn seed(&self) -> u64;

    /// When its samples are cut, and its search waits for nothing any more.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}
