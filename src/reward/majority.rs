//! How many of the answers agree.

use std::collections::HashMap;
use std::time::Instant;

use futures::future::{BoxFuture, FutureExt};

use super::{Candidate, Scorer, ScorerError, answer_key};

/// The share of the samples that give the same final answer.
#[derive(Debug, Clone, Copy)]
pub struct Majority;

impl Scorer for Majority {
    fn kind(&self) -> &'static str {
        "majority"
    }

    fn scores_steps(&self) -> bool {
        false
    }

    fn is_relative(&self) -> bool {
        true
    }

    fn score<'a>(
        &'a self,
        candidates: &'a [Candidate],
        _: Option<Instant>,
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        let keys: Vec<String> = candidates
            .iter()
            .map(|candidate| answer_key(&candidate.text))
            .collect();
        let mut counts: HashMap<&str, usize> = HashMap::new();
        let mut total = 0;
        for (key, candidate) in keys.iter().zip(candidates) {
            let num_samples = 1 + candidate.num_duplicates;
            *counts.entry(key).or_default() += num_samples;
            total += num_samples;
        }
        let share = |key: &String| counts[key.as_str()] as f64 / total as f64;
        let scores = keys.iter().map(share).collect();
        async { Ok(scores) }.boxed()
    }
}
