//! Rewards that check an answer: right or not, or which share of the tests it passes.

mod answer;
mod expr;
pub mod extract;
mod fence;
pub mod math;
mod num;
pub mod python;

use std::time::Instant;

use futures::future::{BoxFuture, FutureExt};
use regex::Regex;

use super::{Candidate, Scorer, ScorerError};

/// A check of an answer's text against something known.
#[derive(Debug, Clone)]
pub enum TextCheck {
    /// The final answer equals this one mathematically.
    Math(String),
    /// The final answer, or the whole text, equals this one but for white space around it.
    Exact(String),
    /// The pattern is found in the text.
    Regex(Regex),
    /// The text, or its first fenced block, is JSON that the schema accepts.
    Json(std::sync::Arc<jsonschema::Validator>),
}

impl TextCheck {
    fn accepts(&self, text: &str) -> bool {
        match self {
            Self::Math(answer) => math::equivalent_text(text, answer),
            Self::Exact(answer) => {
                let answer = answer.trim();
                text.trim() == answer
                    || extract::final_answer(text).is_some_and(|given| given == answer)
            }
            Self::Regex(pattern) => pattern.is_match(text),
            Self::Json(schema) => {
                let block = fence::first_fenced_block(text).unwrap_or(text);
                serde_json::from_str(block.trim()).is_ok_and(|value| schema.is_valid(&value))
            }
        }
    }
}

impl Scorer for TextCheck {
    fn kind(&self) -> &'static str {
        "verifier"
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
        _: Option<Instant>,
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        let score = |candidate: &Candidate| f64::from(u8::from(self.accepts(&candidate.text)));
        let scores = candidates.iter().map(score).collect();
        async { Ok(scores) }.boxed()
    }
}
