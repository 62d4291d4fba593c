//! Several scorers as one.

use std::sync::Arc;
use std::time::Instant;

use futures::future::{BoxFuture, FutureExt, try_join_all};

use super::{Candidate, Scorer, ScorerError, Taps, until};

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

/// What is known of a candidate by itself, whatever it is compared with.
#[derive(Debug, Clone, PartialEq)]
pub enum OwnScores {
    /// One a part; `None` of a part that compares candidates, or that cannot score this one before its end.
    Parts(Vec<Option<f64>>),
    /// The mean of all parts, as an earlier run found it.
    Mean(f64),
}

impl Weighted {
    /// One score a candidate, with those of the parts.
    pub async fn score_parts(
        &self,
        candidates: &[Candidate],
        deadline: Option<Instant>,
    ) -> Result<Vec<Scored>, ScorerError> {
        let own = self.score_own(candidates, deadline).await?;
        self.compare(candidates, &own, deadline).await
    }

    /// The scores of the parts that look at one candidate alone.
    pub async fn score_own(
        &self,
        candidates: &[Candidate],
        deadline: Option<Instant>,
    ) -> Result<Vec<OwnScores>, ScorerError> {
        let scores = self.score_where(false, candidates, deadline).await?;
        Ok(scores.into_iter().map(OwnScores::Parts).collect())
    }

    /// Scores candidates of which `own` is known, those of parts that compare them included.
    pub async fn compare(
        &self,
        candidates: &[Candidate],
        own: &[OwnScores],
        deadline: Option<Instant>,
    ) -> Result<Vec<Scored>, ScorerError> {
        let compared = self.score_where(true, candidates, deadline).await?;
        let scored = own.iter().zip(&compared);
        Ok(scored.map(|(own, c)| self.combine(own, c)).collect())
    }

    /// The mean of a candidate's own scores and of those that compare it with others, in the order of the parts.
    pub fn combine(&self, own: &OwnScores, compared: &[Option<f64>]) -> Scored {
        let own = match own {
            OwnScores::Parts(own) => own,
            OwnScores::Mean(score) => {
                return Scored {
                    score: *score,
                    parts: Vec::new(),
                };
            }
        };
        let (mut sum, mut sum_weights) = (0.0, 0.0);
        let mut parts = Vec::new();
        for (index, (weight, part)) in self.parts.iter().enumerate() {
            let compared = compared.get(index).copied().flatten();
            let Some(score) = own.get(index).copied().flatten().or(compared) else {
                continue;
            };
            sum += weight * score;
            sum_weights += weight;
            if self.parts.len() > 1 {
                parts.push((part.kind(), score));
            }
        }
        Scored {
            score: if sum_weights > 0.0 {
                sum / sum_weights
            } else {
                0.0
            },
            parts,
        }
    }

    /// For each candidate the scores of the parts that compare candidates, or of those that do not.
    async fn score_where(
        &self,
        is_relative: bool,
        candidates: &[Candidate],
        deadline: Option<Instant>,
    ) -> Result<Vec<Vec<Option<f64>>>, ScorerError> {
        let parts = self.parts.iter().enumerate();
        let parts = parts.filter(|(_, (_, part))| part.is_relative() == is_relative);
        let calls = parts.map(|(at, (_, part))| async move {
            let fits = |candidate: &Candidate| candidate.is_complete || part.scores_steps();
            let indices: Vec<usize> = (0..candidates.len())
                .filter(|index| fits(&candidates[*index]))
                .collect();
            let scores = if indices.is_empty() {
                Vec::new()
            } else if indices.len() == candidates.len() {
                until(deadline, part.kind(), part.score(candidates, deadline)).await?
            } else {
                let chosen = indices.iter().map(|index| candidates[*index].clone());
                let chosen: Vec<Candidate> = chosen.collect();
                until(deadline, part.kind(), part.score(&chosen, deadline)).await?
            };
            Ok((at, indices, scores))
        });
        let mut all = vec![vec![None; self.parts.len()]; candidates.len()];
        for (at, indices, scores) in try_join_all(calls).await? {
            for (index, score) in indices.into_iter().zip(scores) {
                all[index][at] = Some(score);
            }
        }
        Ok(all)
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
        deadline: Option<Instant>,
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        let scored = self.score_parts(candidates, deadline);
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
