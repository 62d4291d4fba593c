//! Value models: the policy's own weights under a LoRA adapter, and a head on the final hidden
//! state that says how likely an answer is to come out right.
//!
//! A value model reads token ids, those of the prompt and of the answer as the policy sampled them,
//! and each value at one token. Its KV lies beside the policy's under the adapter's id, so that a
//! search pays for the tokens of its new steps alone.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::future::{BoxFuture, FutureExt};

use super::head::Head;
use super::reading::ReadError;
use super::step_reader::{StepReader, Written};
use super::tokens::ReadingKind;
use super::{Aggregate, Candidate, RewardContext, Scorer, ScorerError};
use crate::engine::{AdapterId, Engine};
use crate::text::{Detokenizer, StepProgress, StepRule, Tokenizer};
use crate::work::Budget;

/// Between the steps of an answer.
const DELIMITER: &str = "\n\n";

/// What a value model is made of.
pub struct ValueModelParts {
    /// As requests name it.
    pub name: String,
    /// The policy's.
    pub engine: Engine,
    pub tokenizer: Tokenizer,
    /// Loaded for as long as the engine runs.
    pub adapter: AdapterId,
    pub head: Head,
}

/// A served value model.
pub struct ValueModel {
    name: String,
    tokenizer: Tokenizer,
    reader: StepReader,
}

impl ValueModel {
    pub fn new(parts: ValueModelParts) -> Self {
        Self {
            name: parts.name,
            tokenizer: parts.tokenizer,
            reader: StepReader {
                engine: parts.engine,
                adapter: Some(parts.adapter),
                kind: ReadingKind::ValueModel,
                head: Some(parts.head),
                score_token_ids: Vec::new(),
                known: Mutex::default(),
            },
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value of each answer to the context's prompt, given as token ids: what `aggregate` makes
    /// of the values at the ends of its steps.
    pub async fn values(
        &self,
        answers: Vec<Arc<[u32]>>,
        aggregate: Aggregate,
        context: &RewardContext,
        deadline: Option<Instant>,
    ) -> Result<Vec<f64>, ReadError> {
        let num_tokens = |ids: &Arc<[u32]>| context.prompt_token_ids.len() + ids.len();
        let num_bytes = size_of::<u32>() * answers.iter().map(num_tokens).sum::<usize>();
        let (prompt, tokenizer) = (
            Arc::clone(&context.prompt_token_ids),
            self.tokenizer.clone(),
        );
        let write = move |_: &Budget| -> Result<Vec<Written>, ReadError> {
            let written = answers.iter().map(|answer| {
                let ends = match aggregate {
                    // The others are not asked for.
                    Aggregate::Last => vec![answer.len()],
                    _ => step_ends(&tokenizer, answer),
                };
                let ends = ends.into_iter().map(|end| prompt.len() + end);
                Written {
                    token_ids: [prompt.as_ref(), answer.as_ref()].concat(),
                    // Of a prompt that is empty like its answer nothing can be read.
                    positions: ends.filter_map(|end| end.checked_sub(1)).collect(),
                }
            });
            Ok(written.collect())
        };
        let (pool, what) = (&context.pool, "finding the steps of the answers");
        let written = pool.run_sized(num_bytes, what, context.tenant, deadline, write);
        let values = self.reader.score(written.await?, context, deadline).await?;
        let values = values.iter().map(|values| aggregate.of(values));
        Ok(values.collect())
    }
}

/// Where the steps of an answer end, in tokens from its start. The last one ends with the answer:
/// what follows a step and has no text of its own, such as the token that ends the answer, is part
/// of it.
fn step_ends(tokenizer: &Tokenizer, answer: &[u32]) -> Vec<usize> {
    let rule = StepRule::delimiter(DELIMITER, usize::MAX);
    let mut detokenizer = Detokenizer::new(tokenizer, true);
    let mut progress = StepProgress::default();
    let mut ends = Vec::new();
    for (at, token_id) in answer.iter().enumerate() {
        if progress.push(&rule, &detokenizer.push(*token_id)) {
            ends.push(at + 1);
            progress = StepProgress::default();
        }
    }
    if !progress.has_begun() {
        ends.pop();
    }
    ends.push(answer.len());
    ends
}

/// The reward `value_model`.
pub struct ValueModelScorer {
    model: Arc<ValueModel>,
    context: RewardContext,
    aggregate: Aggregate,
}

impl ValueModelScorer {
    /// `aggregate` is `last` by default: the value of the whole answer so far.
    pub fn new(
        model: Arc<ValueModel>,
        context: RewardContext,
        aggregate: Option<Aggregate>,
    ) -> Self {
        Self {
            model,
            context,
            aggregate: aggregate.unwrap_or(Aggregate::Last),
        }
    }
}

impl Scorer for ValueModelScorer {
    fn kind(&self) -> &'static str {
        ReadingKind::ValueModel.name()
    }

    fn scores_steps(&self) -> bool {
        true
    }

    fn score<'a>(
        &'a self,
        candidates: &'a [Candidate],
        deadline: Option<Instant>,
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        async move {
            let answers = candidates.iter().map(|c| Arc::clone(&c.token_ids));
            let (context, answers) = (&self.context, answers.collect());
            let values = self
                .model
                .values(answers, self.aggregate, context, deadline);
            values.await.map_err(|error| error.of(self.kind()))
        }
        .boxed()
    }
}
