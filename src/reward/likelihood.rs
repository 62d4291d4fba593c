//! How likely the policy itself finds an answer.

use std::time::Instant;

use futures::future::{BoxFuture, FutureExt};

use super::{Candidate, Scorer, ScorerError, Taps};

/// The geometric mean of the tokens' probabilities: normalised by length, since a sum would favour short
/// answers.
#[derive(Debug, Clone, Copy)]
pub struct Likelihood;

impl Scorer for Likelihood {
    fn kind(&self) -> &'static str {
        "likelihood"
    }

    fn scores_steps(&self) -> bool {
        true
    }

    fn taps(&self) -> Taps {
        Taps {
            logprobs: true,
            ..Taps::default()
        }
    }

    fn score<'a>(
        &'a self,
        candidates: &'a [Candidate],
        _: Option<Instant>,
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        let score =
            |candidate: &Candidate| (candidate.logprob / candidate.num_tokens.max(1) as f64).exp();
        let scores = candidates.iter().map(score).collect();
        async { Ok(scores) }.boxed()
    }
}
