//! JSON Schema, checked in a child process: a schema of two kilobytes can ask for more work than
//! any budget, inside of a library that cannot be stopped.

use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};
use ponder_sandbox::{Confined, ConfinedError, ConfinedInput, Limits};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fence::first_fenced_block;
use super::programs::Programs;
use crate::reward::{Candidate, Scorer, ScorerError};

/// `argv[1]` of the process that checks; what follows goes to `ponder_sandbox::confine_from_args`.
pub const CHECK_SCHEMA: &str = "check-schema";
/// Longest schema, as JSON.
const MAX_SCHEMA_BYTES: usize = 64 << 10;
const KIND: &str = "verifier";

/// A schema and the texts that are held against it.
#[derive(Debug, Serialize)]
struct Question<'q> {
    schema: &'q Value,
    texts: Vec<&'q str>,
}

/// The same as the child reads it.
#[derive(Debug, Deserialize)]
struct OwnedQuestion {
    schema: Value,
    texts: Vec<String>,
}

/// What the child found: an error of the schema, or a verdict for each text.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Refused(String),
    Accepted(Vec<bool>),
}

/// The child's part: reads a question, and returns the answer that goes to stdout.
pub fn check_schema(input: &ConfinedInput) -> Result<Vec<u8>, serde_json::Error> {
    let question: OwnedQuestion = serde_json::from_slice(&input.bytes)?;
    let answer = match jsonschema::validator_for(&question.schema) {
        Err(error) => Answer::Refused(error.to_string()),
        Ok(validator) => {
            let accepts = |text: &String| {
                let block = first_fenced_block(text).unwrap_or(text);
                serde_json::from_str(block.trim()).is_ok_and(|value| validator.is_valid(&value))
            };
            Answer::Accepted(question.texts.iter().map(accepts).collect())
        }
    };
    serde_json::to_vec(&answer)
}

/// Starts the children.
#[derive(Debug, Clone)]
pub struct SchemaChecker {
    confined: Confined,
    programs: Programs,
}

/// Why a schema cannot be used.
pub(in crate::reward) enum SchemaError {
    Invalid(String),
    Scorer(ScorerError),
}

impl SchemaChecker {
    /// What one check may use.
    pub const LIMITS: Limits = Limits {
        // Most checks take a few milliseconds.
        wall: Duration::from_secs(1),
        cpu_seconds: 1,
        memory_bytes: 1 << 30,
        output_bytes: 64 << 10,
        max_threads: 1,
        nice: 5,
    };

    /// `confined` starts a binary that hands what follows [`CHECK_SCHEMA`] to [`check_schema`].
    pub fn new(confined: Confined, programs: Programs) -> Self {
        Self { confined, programs }
    }

    /// A scorer, if the schema is one.
    pub(in crate::reward) async fn scorer(
        &self,
        schema: Value,
        tenant: u64,
        deadline: Option<Instant>,
    ) -> Result<SchemaScorer, SchemaError> {
        let scorer = SchemaScorer {
            checker: self.clone(),
            schema,
            tenant,
        };
        if scorer.schema.to_string().len() > MAX_SCHEMA_BYTES {
            let message = format!("schema has at most {MAX_SCHEMA_BYTES} bytes as JSON");
            return Err(SchemaError::Invalid(message));
        }
        match scorer.check(&[], deadline).await {
            Ok(Answer::Accepted(_)) => Ok(scorer),
            Ok(Answer::Refused(message)) => Err(SchemaError::Invalid(message)),
            Err(error) => Err(SchemaError::Scorer(error)),
        }
    }
}

/// Accepts answers that are JSON, as a whole or in their first fenced block, which the schema accepts.
#[derive(Debug, Clone)]
pub(in crate::reward) struct SchemaScorer {
    checker: SchemaChecker,
    schema: Value,
    tenant: u64,
}

impl SchemaScorer {
    async fn check(
        &self,
        candidates: &[Candidate],
        deadline: Option<Instant>,
    ) -> Result<Answer, ScorerError> {
        let failed = |message: String| ScorerError::Failed {
            kind: KIND,
            message,
        };
        let question = Question {
            schema: &self.schema,
            texts: candidates.iter().map(|it| it.text.as_str()).collect(),
        };
        let input = serde_json::to_vec(&question).map_err(|error| failed(error.to_string()))?;
        let confined = self.checker.confined.clone();
        let programs = &self.checker.programs;
        let run = programs.run(KIND, self.tenant, deadline, move |cancel| {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let wall = left.unwrap_or(Duration::MAX);
            confined.run(&[CHECK_SCHEMA], &input, wall, cancel)
        });
        let output = run.await?.map_err(|error| explain(error, deadline))?;
        serde_json::from_slice(&output).map_err(|error| failed(error.to_string()))
    }
}

/// Limits that the schema and the answers ran into are theirs; the rest is the server's.
fn explain(error: ConfinedError, deadline: Option<Instant>) -> ScorerError {
    let message = format!("checking the JSON schema {error}");
    let kind = KIND;
    match error {
        ConfinedError::TimedOut { .. } if deadline.is_some_and(|at| at <= Instant::now()) => {
            ScorerError::Deadline { kind }
        }
        ConfinedError::TimedOut { .. }
        | ConfinedError::CpuTime { .. }
        | ConfinedError::OutOfMemory { .. }
        | ConfinedError::StackOverflow => ScorerError::TooMuchWork { kind, message },
        ConfinedError::Unsupported
        | ConfinedError::Spawn(_)
        | ConfinedError::Cancelled
        | ConfinedError::OutputTooLarge { .. }
        | ConfinedError::Killed { .. }
        | ConfinedError::Failed { .. } => ScorerError::Failed { kind, message },
    }
}

impl Scorer for SchemaScorer {
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
        async move {
            match self.check(candidates, deadline).await? {
                Answer::Accepted(accepted) if accepted.len() == candidates.len() => {
                    let scores = accepted.into_iter();
                    Ok(scores
                        .map(|is_right| f64::from(u8::from(is_right)))
                        .collect())
                }
                Answer::Accepted(_) | Answer::Refused(_) => Err(ScorerError::Failed {
                    kind: KIND,
                    message: "the schema was not checked".to_owned(),
                }),
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(schema: Value, texts: &[&str]) -> Answer {
        let question = Question {
            schema: &schema,
            texts: texts.to_vec(),
        };
        let input = ConfinedInput {
            bytes: serde_json::to_vec(&question).unwrap(),
            ..ConfinedInput::default()
        };
        serde_json::from_slice(&check_schema(&input).unwrap()).unwrap()
    }

    #[test]
    fn texts_or_their_first_blocks_are_checked() {
        let schema = json!({"type": "object", "required": ["a"]});
        let texts = [
            "{\"a\": 1}",
            "So:\n```json\n{\"a\": 1}\n```",
            "{\"b\": 1}",
            "no",
            "",
        ];
        assert_eq!(
            answer(schema, &texts),
            Answer::Accepted(vec![true, true, false, false, false])
        );
        let refused = answer(json!({"type": "nothing"}), &[]);
        assert!(matches!(refused, Answer::Refused(_)), "{refused:?}");
    }
}
