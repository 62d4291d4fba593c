//! A model's own word on whether an answer is right.

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};

use super::{Candidate, RewardContext, Scorer, ScorerError};

/// Reads a question and a proposed answer and says how likely "yes" is against "no".
pub trait Judge: Send + Sync {
    /// One probability a prompt. The prompts are whole user messages that end with a yes-or-no question.
    fn probability_of_yes<'a>(
        &'a self,
        prompts: Vec<String>,
        cache_salt: u64,
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>>;
}

/// P(yes) to "is this answer correct?" (as in generative verifiers, arXiv 2408.15240, without a rationale).
#[derive(Clone)]
pub struct JudgeScorer {
    judge: Arc<dyn Judge>,
    context: RewardContext,
    instruction: String,
}

/// The instruction when a request gives none.
const INSTRUCTION: &str = "Is the proposed answer correct? Reply with Yes or No.";

impl JudgeScorer {
    /// `instruction` ends with a yes-or-no question.
    pub fn new(judge: Arc<dyn Judge>, context: RewardContext, instruction: Option<&str>) -> Self {
        Self {
            judge,
            context,
            instruction: instruction.unwrap_or(INSTRUCTION).to_owned(),
        }
    }

    fn prompt(&self, answer: &str) -> String {
        format!(
            "Question:\n{}\n\nProposed answer:\n{}\n\n{}",
            self.context.question, answer, self.instruction
        )
    }
}

impl Scorer for JudgeScorer {
    fn kind(&self) -> &'static str {
        "judge"
    }

    fn scores_steps(&self) -> bool {
        true
    }

    fn score<'a>(
        &'a self,
        candidates: &'a [Candidate],
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        let prompts = candidates.iter().map(|c| self.prompt(&c.text)).collect();
        self.judge
            .probability_of_yes(prompts, self.context.cache_salt)
            .boxed()
    }
}
