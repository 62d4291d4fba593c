//! How many of the answers agree.

use std::collections::HashMap;

use futures::future::{BoxFuture, FutureExt};

use super::{Candidate, Scorer, ScorerError, answer_key};

/// The share of the candidates that give the same final answer.
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
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        let keys: Vec<String> = candidates
            .iter()
            .map(|candidate| answer_key(&candidate.text))
            .collect();
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for key in &keys {
            *counts.entry(key).or_default() += 1;
        }
        let share = |key: &String| counts[key.as_str()] as f64 / keys.len() as f64;
        let scores = keys.iter().map(share).collect();
        async { Ok(scores) }.boxed()
    }
}
