//! Process reward models: a second model on an engine of its own that scores each step of an answer.
//!
//! Scoring is incremental: what was read of a prefix is remembered, and its KV is still in that engine's prefix
//! cache, so a new step costs the forward pass of its own tokens.

mod format;
mod head;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::future::{BoxFuture, FutureExt};
use xxhash_rust::xxh3::Xxh3;

pub use format::PrmFormat;
use format::{Writer, Written};
pub use head::Head;

use super::judge::share;
use super::reading::{Bound, Prompt, ReadError, Reading, read};
use super::{Aggregate, Candidate, RewardContext, Scorer, ScorerError};
use crate::engine::{Engine, PoolingParams};
use crate::text::{ChatTemplate, Tokenizer};
use crate::work::Budget;

/// Step scores that are remembered; past this number all are forgotten.
const MAX_REMEMBERED: usize = 1 << 16;

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
    engine: Engine,
    writer: Arc<Writer>,
    head: Option<Head>,
    score_token_ids: Vec<u32>,
    /// Scores by the hash of the tokens up to their position.
    known: Mutex<HashMap<u128, f64>>,
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
            score_token_ids: writer.score_token_ids()?,
            engine: parts.engine,
            head: parts.head,
            writer: Arc::new(writer),
            known: Mutex::default(),
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
        let max_tokens = self.engine.config().max_model_len;
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
        let readings = read(self.engine.as_ref(), prompts, context, deadline).await?;
        for ((index, unknown), readings) in of.into_iter().zip(readings) {
            for (at, reading) in unknown.into_iter().zip(&readings) {
                let score = self.score_of(reading);
                scores[index][at] = Some(score);
                self.remember(keys[index][at], score);
            }
        }
        let whole = |(scores, num_tokens): (Vec<Option<f64>>, usize)| Scored {
            steps: scores
                .into_iter()
                .map(|score| score.unwrap_or(0.0))
                .collect(),
            num_tokens,
        };
        Ok(scores.into_iter().zip(num_tokens).map(whole).collect())
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

/// One key a step: the tenant's salt and all tokens up to the step's position.
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
        "prm"
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
            let scores = scores.await.map_err(|error| error.of("prm"))?;
            Ok(scores
                .iter()
                .map(|scored| self.aggregate.of(&scored.steps))
                .collect())
        }
        .boxed()
    }
}
