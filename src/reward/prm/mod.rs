//! Process reward models: a second model on an engine of its own that scores each step of an
//! answer.

mod format;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::future::{BoxFuture, FutureExt};

pub use format::PrmFormat;
use format::Writer;

use super::head::Head;
use super::reading::{Bound, ReadError};
use super::step_reader::{StepReader, Written};
use super::tokens::ReadingKind;
use super::{Aggregate, Candidate, RewardContext, Scorer, ScorerError};
use crate::engine::Engine;
use crate::text::{ChatTemplate, Tokenizer};
use crate::work::Budget;

/// One answer as the model sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Of each step: the probability that it is right.
    pub steps: Vec<f64>,
    /// Tokens of question and answer.
    pub num_tokens: usize,
}

/// What a process reward model is made of.
pub struct PrmParts {
    pub engine: Engine,
    pub tokenizer: Tokenizer,
    pub chat_template: Option<ChatTemplate>,
    pub format: PrmFormat,
    /// Of the formats that have one.
    pub head: Option<Head>,
    /// Between steps; the format's own by default.
    pub delimiter: Option<String>,
}

/// A served process reward model.
pub struct Prm {
    writer: Arc<Writer>,
    reader: StepReader,
}

impl Prm {
    /// Fails when the model cannot be read as its format says.
    pub fn new(parts: PrmParts) -> Result<Self, String> {
        let delimiter = parts.delimiter;
        let writer = Writer {
            delimiter: delimiter.unwrap_or_else(|| parts.format.default_delimiter().to_owned()),
            format: parts.format,
            tokenizer: parts.tokenizer,
            chat_template: parts.chat_template,
        };
        if writer.delimiter.is_empty() {
            return Err("the delimiter of steps is empty".to_owned());
        }
        if parts.head.is_some() != writer.format.has_head() {
            return Err(match parts.head {
                None => "this format needs a classification head".to_owned(),
                Some(_) => "this format has no classification head".to_owned(),
            });
        }
        // What would fail with the first answer fails now.
        let bound = Bound {
            max_tokens: usize::MAX,
            budget: &Budget::default(),
        };
        let trial = writer.write("1 + 1?", "1 + 1 = 2", true, bound);
        trial.map_err(|error| error.to_string())?;
        Ok(Self {
            reader: StepReader {
                engine: parts.engine,
                adapter: None,
                kind: ReadingKind::Prm,
                head: parts.head,
                score_token_ids: writer.score_token_ids()?,
                known: Mutex::default(),
            },
            writer: Arc::new(writer),
        })
    }

    pub fn format(&self) -> PrmFormat {
        self.writer.format
    }

    /// Scores the steps of answers to the context's question: texts, and whether each has ended.
    pub async fn score_answers(
        &self,
        answers: &[(&str, bool)],
        context: &RewardContext,
        deadline: Option<Instant>,
    ) -> Result<Vec<Scored>, ReadError> {
        let question = context.question.clone();
        let num_bytes: usize = answers.iter().map(|(text, _)| text.len()).sum();
        let num_bytes = num_bytes + answers.len() * question.len();
        let answers = answers
            .iter()
            .map(|(text, is_complete)| ((*text).to_owned(), *is_complete));
        let answers: Vec<(String, bool)> = answers.collect();
        let write = move |writer: &Writer, bound: Bound<'_>| {
            let written = answers
                .iter()
                .map(|(text, is_complete)| writer.write(&question, text, *is_complete, bound));
            written.collect()
        };
        let written = self.write(num_bytes, context, deadline, write).await?;
        self.score(written, context, deadline).await
    }

    /// Scores texts that carry the format's step tags already.
    pub async fn score_tagged(
        &self,
        texts: Vec<String>,
        context: &RewardContext,
        deadline: Option<Instant>,
    ) -> Result<Vec<Scored>, ReadError> {
        let num_bytes = texts.iter().map(String::len).sum();
        let write = move |writer: &Writer, bound: Bound<'_>| {
            let written = texts.iter().map(|text| writer.read_tagged(text, bound));
            written.collect()
        };
        let written = self.write(num_bytes, context, deadline, write).await?;
        self.score(written, context, deadline).await
    }

    /// Writes prompts where that may take its time.
    async fn write(
        &self,
        num_bytes: usize,
        context: &RewardContext,
        deadline: Option<Instant>,
        write: impl FnOnce(&Writer, Bound<'_>) -> Result<Vec<Written>, ReadError> + Send + 'static,
    ) -> Result<Vec<Written>, ReadError> {
        let writer = Arc::clone(&self.writer);
        let max_tokens = self.reader.engine.config().max_model_len;
        let what = "writing the process reward model's prompts";
        let write = move |budget: &Budget| write(&writer, Bound { max_tokens, budget });
        let pool = &context.pool;
        pool.run_sized(num_bytes, what, context.tenant, deadline, write)
            .await
    }

    async fn score(
        &self,
        written: Vec<Written>,
        context: &RewardContext,
        deadline: Option<Instant>,
    ) -> Result<Vec<Scored>, ReadError> {
        let num_tokens: Vec<usize> = written.iter().map(|w| w.token_ids.len()).collect();
        let steps = self.reader.score(written, context, deadline).await?;
        let scored = steps.into_iter().zip(num_tokens);
        let scored = scored.map(|(steps, num_tokens)| Scored { steps, num_tokens });
        Ok(scored.collect())
    }
}

/// The reward `prm`: one number of an answer's step scores.
pub struct PrmScorer {
    prm: Arc<Prm>,
    context: RewardContext,
    aggregate: Aggregate,
}

impl PrmScorer {
    /// `aggregate` is the format's own by default.
    pub fn new(prm: Arc<Prm>, context: RewardContext, aggregate: Option<Aggregate>) -> Self {
        Self {
            aggregate: aggregate.unwrap_or_else(|| prm.format().default_aggregate()),
            prm,
            context,
        }
    }
}

impl Scorer for PrmScorer {
    fn kind(&self) -> &'static str {
        ReadingKind::Prm.name()
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
            let answers = candidates.iter().map(|c| (c.text.as_str(), c.is_complete));
            let answers: Vec<(&str, bool)> = answers.collect();
            let scores = self.prm.score_answers(&answers, &self.context, deadline);
            let scores = scores.await.map_err(|error| error.of(self.kind()))?;
            Ok(scores
                .iter()
                .map(|scored| self.aggregate.of(&scored.steps))
                .collect())
        }
        .boxed()
    }
}
