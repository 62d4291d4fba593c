//! Several scorers as one.

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt, try_join_all};

use super::{Candidate, Scorer, ScorerError, Taps};

/// The weighted mean of its parts. Answers that have not ended are scored by the parts that can.
#[derive(Clone)]
pub struct Weighted {
    parts: Vec<(f64, Arc<dyn Scorer>)>,
}

impl Weighted {
    /// Weights are positive.
    pub fn new(parts: Vec<(f64, Arc<dyn Scorer>)>) -> Self {
        Self { parts }
    }
}

impl Weighted {
    /// Whether every part scores answers that have not ended, so that these scores and those of whole answers
    /// mean the same.
    pub fn is_value_model(&self) -> bool {
        self.parts.iter().all(|(_, part)| part.scores_steps())
    }
}

impl Scorer for Weighted {
    fn kind(&self) -> &'static str {
        match self.parts.as_slice() {
            [(_, only)] => only.kind(),
            _ => "weighted",
        }
    }

    fn scores_steps(&self) -> bool {
        self.parts.iter().any(|(_, part)| part.scores_steps())
    }

    fn is_relative(&self) -> bool {
        self.parts.iter().any(|(_, part)| part.is_relative())
    }

    fn is_decisive(&self) -> bool {
        matches!(self.parts.as_slice(), [(_, only)] if only.is_decisive())
    }

    fn taps(&self) -> Taps {
        let taps = self.parts.iter().map(|(_, part)| part.taps());
        taps.fold(Taps::default(), |all, taps| Taps {
            logprobs: all.logprobs || taps.logprobs,
            hidden_state: all.hidden_state || taps.hidden_state,
        })
    }

    fn score<'a>(
        &'a self,
        candidates: &'a [Candidate],
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        async move {
            let calls = self.parts.iter().map(|(weight, part)| async move {
                let fits = |candidate: &Candidate| candidate.is_complete || part.scores_steps();
                let indices: Vec<usize> = (0..candidates.len())
                    .filter(|index| fits(&candidates[*index]))
                    .collect();
                if indices.is_empty() {
                    return Ok((*weight, indices, Vec::new()));
                }
                let scores = if indices.len() == candidates.len() {
                    part.score(candidates).await?
                } else {
                    let chosen: Vec<Candidate> =
                        indices.iter().map(|i| candidates[*i].clone()).collect();
                    part.score(&chosen).await?
                };
                Ok((*weight, indices, scores))
            });
            let mut sums = vec![(0.0, 0.0); candidates.len()];
            for (weight, indices, scores) in try_join_all(calls).await? {
                for (index, score) in indices.into_iter().zip(scores) {
                    sums[index].0 += weight * score;
                    sums[index].1 += weight;
                }
            }
            let mean = |(sum, weight): (f64, f64)| if weight > 0.0 { sum / weight } else { 0.0 };
            Ok(sums.into_iter().map(mean).collect())
        }
        .boxed()
    }
}
