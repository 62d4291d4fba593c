//! A model's own word on whether an answer is right.

use std::sync::Arc;
use std::time::Instant;

use futures::future::{BoxFuture, FutureExt};
use serde_json::json;

use super::reading::{Bound, Model, Prompt, ReadError, Reading};
use super::tokens::ReadingKind;
use super::{Candidate, RewardContext, Scorer, ScorerError};
use crate::engine::{Engine, PoolingParams};
use crate::text::{ChatTemplate, Tokenizer};
use crate::work::Budget;

/// The instruction when a request gives none.
const INSTRUCTION: &str = "Is the proposed answer correct? Reply with Yes or No.";

/// Reads a question and a proposed answer and says how likely "yes" is against "no".
pub struct Judge {
    engine: Engine,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    /// Every spelling of yes, then every spelling of no.
    token_ids: Vec<u32>,
    num_yes: usize,
}

/// What a judge says of messages.
pub struct Judged {
    /// The probability of yes, one a message.
    pub values: Vec<f64>,
    /// Of the prompts that were read.
    pub num_tokens: usize,
}

impl Judge {
    pub fn new(engine: Engine, tokenizer: Tokenizer, chat_template: ChatTemplate) -> Self {
        let spellings = |word: &str| -> Vec<u32> {
            let is_word = |id: &u32| {
                let bytes = tokenizer.token_bytes(*id).trim_ascii();
                bytes.eq_ignore_ascii_case(word.as_bytes())
            };
            (0..tokenizer.vocab_size() as u32).filter(is_word).collect()
        };
        let yes = spellings("yes");
        let num_yes = yes.len();
        Self {
            token_ids: [yes, spellings("no")].concat(),
            num_yes,
            engine,
            tokenizer,
            chat_template,
        }
    }

    /// P(yes) of P(yes) and P(no) after each of `messages`, which end with a yes-or-no question.
    ///
    /// # Errors
    /// When a message is too long, or the deadline passes.
    pub async fn judge(
        self: &Arc<Self>,
        messages: Vec<String>,
        context: &RewardContext,
        deadline: Option<Instant>,
    ) -> Result<Judged, ReadError> {
        let own = Arc::clone(self);
        let num_bytes = messages.iter().map(String::len).sum();
        let write = move |budget: &Budget| {
            let bound = Bound {
                max_tokens: own.engine.config().max_model_len,
                budget,
            };
            let prompts = messages.iter().map(|message| own.prompt(message, bound));
            prompts.collect::<Result<Vec<Prompt>, ReadError>>()
        };
        let what = "writing the judge's prompts";
        let prompts = context
            .pool
            .run_sized(num_bytes, what, context.tenant, deadline, write)
            .await?;
        let num_tokens = prompts.iter().map(|prompt| prompt.token_ids.len()).sum();
        let model = Model {
            engine: self.engine.as_ref(),
            adapter: None,
            kind: ReadingKind::Judge,
        };
        let readings = model.read(prompts, context, deadline).await?;
        let value = |readings: &Vec<Reading>| readings.first().map_or(0.5, |r| self.value(r));
        Ok(Judged {
            values: readings.iter().map(value).collect(),
            num_tokens,
        })
    }

    fn prompt(&self, message: &str, bound: Bound<'_>) -> Result<Prompt, ReadError> {
        let messages = [json!({"role": "user", "content": message})];
        // The word is wanted at once, not after a thought.
        let variables = serde_json::Map::from_iter([("enable_thinking".to_owned(), json!(false))]);
        let text = self
            .chat_template
            .render(&messages, None, true, &variables)?;
        let may_go_on = || bound.budget.may_go_on();
        let token_ids =
            self.tokenizer
                .encode_within(&text, false, true, bound.max_tokens, &may_go_on)?;
        Ok(Prompt {
            pooling: PoolingParams {
                positions: vec![token_ids.len().saturating_sub(1)],
                token_ids: self.token_ids.clone(),
                hidden_state: false,
                mean: false,
            },
            token_ids,
        })
    }

    fn value(&self, reading: &Reading) -> f64 {
        let (yes, no) = reading
            .logits
            .split_at(self.num_yes.min(reading.logits.len()));
        share(yes, no)
    }
}

/// The probability of `these` logits' tokens against `those`; one half of none.
pub(super) fn share(these: &[f32], those: &[f32]) -> f64 {
    let all = these.iter().chain(those).copied();
    let max = f64::from(all.fold(f32::NEG_INFINITY, f32::max));
    let sum = |logits: &[f32]| -> f64 {
        let weights = logits.iter().map(|logit| (f64::from(*logit) - max).exp());
        weights.sum()
    };
    let (these, those) = (sum(these), sum(those));
    if these + those > 0.0 {
        these / (these + those)
    } else {
        0.5
    }
}

/// P(yes) to "is this answer correct?" (as in generative verifiers, arXiv 2408.15240, without a rationale).
#[derive(Clone)]
pub struct JudgeScorer {
    judge: Arc<Judge>,
    context: RewardContext,
    instruction: String,
}

impl JudgeScorer {
    /// `instruction` ends with a yes-or-no question.
    pub fn new(judge: Arc<Judge>, context: RewardContext, instruction: Option<&str>) -> Self {
        Self {
            judge,
            context,
            instruction: instruction.unwrap_or(INSTRUCTION).to_owned(),
        }
    }

    fn message(&self, answer: &str) -> String {
        format!(
            "Question:\n{}\n\nProposed answer:\n{}\n\n{}",
            self.context.question, answer, self.instruction
        )
    }
}

impl Scorer for JudgeScorer {
    fn kind(&self) -> &'static str {
        ReadingKind::Judge.name()
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
            let messages = candidates.iter().map(|c| self.message(&c.text)).collect();
            let context = &self.context;
            let judged = self.judge.judge(messages, context, deadline).await;
            let judged = judged.map_err(|error| error.of(self.kind()))?;
            Ok(judged.values)
        }
        .boxed()
    }
}
