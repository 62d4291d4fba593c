//! Scores at positions of prompts, remembered by the tokens before them: what process reward models
//! and value models share.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use xxhash_rust::xxh3::Xxh3;

use super::RewardContext;
use super::head::Head;
use super::judge::share;
use super::reading::{Model, Prompt, ReadError, Reading};
use super::tokens::ReadingKind;
use crate::engine::{AdapterId, Engine, PoolingParams};

/// Scores that are remembered; past this number all are forgotten.
const MAX_REMEMBERED: usize = 1 << 16;

/// An answer after its question, as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    pub token_ids: Vec<u32>,
    /// Where each step's score is read, ascending.
    pub positions: Vec<usize>,
}

/// A model that scores what it reads. Scoring is incremental: what was read of a prefix is
/// remembered, and its KV is still in the engine's prefix cache, so that a new step costs the
/// forward pass of its own tokens.
pub(super) struct StepReader {
    pub engine: Engine,
    pub adapter: Option<AdapterId>,
    pub kind: ReadingKind,
    /// What scores a state; without one the first of `score_token_ids` stands against the second.
    pub head: Option<Head>,
    pub score_token_ids: Vec<u32>,
    /// Scores by the hash of the tokens up to their position.
    pub known: Mutex<HashMap<u128, f64>>,
}

impl StepReader {
    /// The scores of each prompt's positions, in their order.
    pub async fn score(
        &self,
        written: Vec<Written>,
        context: &RewardContext,
        deadline: Option<Instant>,
    ) -> Result<Vec<Vec<f64>>, ReadError> {
        let keys: Vec<Vec<u128>> = written
            .iter()
            .map(|w| keys(w, context.cache_salt))
            .collect();
        let mut scores: Vec<Vec<Option<f64>>> = keys.iter().map(|keys| self.recall(keys)).collect();
        let (mut prompts, mut of) = (Vec::new(), Vec::new());
        for (index, (written, scores)) in written.into_iter().zip(&scores).enumerate() {
            let unknown = |at: &usize| scores[*at].is_none();
            let unknown: Vec<usize> = (0..scores.len()).filter(unknown).collect();
            if let Some(last) = unknown.last() {
                let positions: Vec<usize> =
                    unknown.iter().map(|at| written.positions[*at]).collect();
                let mut token_ids = written.token_ids;
                token_ids.truncate(written.positions[*last] + 1);
                prompts.push(Prompt {
                    token_ids,
                    pooling: PoolingParams {
                        positions,
                        token_ids: self.score_token_ids.clone(),
                        hidden_state: self.head.is_some(),
                        mean: false,
                    },
                });
                of.push((index, unknown));
            }
        }
        let model = Model {
            engine: self.engine.as_ref(),
            adapter: self.adapter,
            kind: self.kind,
        };
        let readings = model.read(prompts, context, deadline).await?;
        for ((index, unknown), readings) in of.into_iter().zip(readings) {
            for (at, reading) in unknown.into_iter().zip(&readings) {
                let score = self.score_of(reading);
                scores[index][at] = Some(score);
                self.remember(keys[index][at], score);
            }
        }
        let known = |scores: Vec<Option<f64>>| {
            let scores = scores.into_iter();
            scores.map(|score| score.unwrap_or(0.0)).collect()
        };
        Ok(scores.into_iter().map(known).collect())
    }

    fn score_of(&self, reading: &Reading) -> f64 {
        match (&self.head, reading.logits.as_slice()) {
            (Some(head), _) => head.value(&reading.hidden_state),
            (None, [good, bad]) => share(&[*good], &[*bad]),
            (None, _) => 0.0,
        }
    }

    fn recall(&self, keys: &[u128]) -> Vec<Option<f64>> {
        let known = self
            .known
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        keys.iter().map(|key| known.get(key).copied()).collect()
    }

    fn remember(&self, key: u128, score: f64) {
        let mut known = self
            .known
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(key, score);
    }
}

/// One key a position: the tenant's salt and all tokens up to it.
fn keys(written: &Written, cache_salt: u64) -> Vec<u128> {
    let mut hasher = Xxh3::new();
    hasher.update(&cache_salt.to_le_bytes());
    let mut start = 0;
    let mut key = |position: &usize| {
        for token_id in &written.token_ids[start..=*position] {
            hasher.update(&token_id.to_le_bytes());
        }
        start = position + 1;
        hasher.digest128()
    };
    written.positions.iter().map(&mut key).collect()
}
