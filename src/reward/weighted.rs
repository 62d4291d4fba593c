//! Several scorers as one.

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt, try_join_all};

use super::{Candidate, Scorer, ScorerError, Taps};

/// A score, and what it is the weighted mean of.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    pub score: f64,
    /// Kinds and scores of the parts; empty when there is one.
    pub parts: Vec<(&'static str, f64)>,
}

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
    /// One score a candidate, with those of the parts.
    pub async fn score_parts(&self, candidates: &[Candidate]) -> Result<Vec<Scored>, ScorerError> {
        let calls = self.parts.iter().map(|(weight, part)| async move {
            let fits = |candidate: &Candidate| candidate.is_complete || part.scores_steps();
            let indices: Vec<usize> = (0..candidates.len())
                .filter(|index| fits(&candidates[*index]))
                .collect();
            let scores = if indices.is_empty() {
                Vec::new()
            } else if indices.len() == candidates.len() {
                part.score(candidates).await?
            } else {
                let chosen: Vec<Candidate> =
                    indices.iter().map(|i| candidates[*i].clone()).collect();
                part.score(&chosen).await?
            };
            Ok((part.kind(), *weight, indices, scores))
        });
        let mut sums = vec![(0.0, 0.0); candidates.len()];
        let mut parts = vec![Vec::new(); candidates.len()];
        for (kind, weight, indices, scores) in try_join_all(calls).await? {
            for (index, score) in indices.into_iter().zip(scores) {
                sums[index].0 += weight * score;
                sums[index].1 += weight;
                if self.parts.len() > 1 {
                    parts[index].push((kind, score));
                }
            }
        }
        let scored = sums.into_iter().zip(parts);
        Ok(scored
            .map(|((sum, weight), parts)| Scored {
                score: if weight > 0.0 { sum / weight } else { 0.0 },
                parts,
            })
            .collect())
    }

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
        let scored = self.score_parts(candidates);
        async move {
            Ok(scored
                .await?
                .into_iter()
                .map(|scored| scored.score)
                .collect())
        }
        .boxed()
    }
}
