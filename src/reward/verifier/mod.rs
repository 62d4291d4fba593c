//! Rewards that check an answer: right or not, or which share of the tests it passes.

mod answer;
mod expr;
pub mod extract;
pub(super) mod fence;
pub mod math;
mod num;
pub mod programs;
pub mod python;
pub mod schema;

use std::time::Instant;

use futures::future::{BoxFuture, FutureExt};

use super::{Candidate, Scorer, ScorerError};
use crate::text::Pattern;
use crate::work::{Budget, INLINE_BYTES, Stop, WorkPool};

const KIND: &str = "verifier";

/// A check of an answer's text against something known.
#[derive(Debug, Clone)]
pub enum TextCheck {
    /// The final answer equals this one mathematically.
    Math(String),
    /// The final answer, or the whole text, equals this one but for white space around it.
    Exact(String),
    /// The pattern is found in the text.
    Regex(Pattern),
}

impl TextCheck {
    fn accepts(&self, text: &str, budget: &Budget) -> Result<bool, Stop> {
        match self {
            Self::Math(answer) => Ok(math::equivalent_text(text, answer)),
            Self::Exact(answer) => {
                let answer = answer.trim();
                let is_whole = text.trim() == answer;
                Ok(is_whole || extract::final_answer(text).is_some_and(|given| given == answer))
            }
            Self::Regex(pattern) => {
                let mut stop = Ok(());
                let found = pattern.is_in(text, || {
                    stop = budget.check();
                    stop.is_ok()
                });
                stop?;
                Ok(found.unwrap_or(false))
            }
        }
    }

    fn scores(&self, texts: &[&str], budget: &Budget) -> Result<Vec<f64>, Stop> {
        let score = |text: &&str| {
            budget.check()?;
            Ok(f64::from(u8::from(self.accepts(text, budget)?)))
        };
        texts.iter().map(score).collect()
    }

    /// Whether texts of so many bytes are checked in less time than another thread takes to begin.
    fn is_small(&self, num_bytes: usize) -> bool {
        let weight = match self {
            Self::Math(answer) | Self::Exact(answer) => answer.len().div_ceil(1024),
            Self::Regex(pattern) => pattern.num_states(),
        };
        num_bytes.saturating_mul(weight.max(1)) <= INLINE_BYTES
    }
}

/// A [`TextCheck`] as a reward.
#[derive(Debug, Clone)]
pub struct TextScorer {
    pub check: TextCheck,
    pub pool: WorkPool,
    pub tenant: u64,
}

impl TextScorer {
    async fn scores(
        &self,
        candidates: &[Candidate],
        deadline: Option<Instant>,
    ) -> Result<Vec<f64>, ScorerError> {
        let num_bytes: usize = candidates.iter().map(|it| it.text.len()).sum();
        let own = |_: Stop| ScorerError::Deadline { kind: KIND };
        if self.check.is_small(num_bytes) {
            let texts: Vec<&str> = candidates.iter().map(|it| it.text.as_str()).collect();
            return self
                .check
                .scores(&texts, &Budget::until(deadline))
                .map_err(own);
        }
        let check = self.check.clone();
        let texts: Vec<String> = candidates.iter().map(|it| it.text.clone()).collect();
        let job = move |budget: &Budget| {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            check.scores(&texts, budget)
        };
        let what = "checking the answers";
        let done = self.pool.run(what, self.tenant, deadline, job).await;
        done.map_err(|error| ScorerError::work(KIND, error))
    }
}

impl Scorer for TextScorer {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn scores_steps(&self) -> bool {
        false
    }

    fn is_decisive(&self) -> bool {
        true
    }

    fn score<'a>(
        &'a self,
        candidates: &'a [Candidate],
        deadline: Option<Instant>,
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        self.scores(candidates, deadline).boxed()
    }
}
