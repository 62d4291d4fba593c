//! How each family of process reward models wants an answer written, and where its scores are read.

use serde_json::{Map, json};

use crate::reward::Aggregate;
use crate::reward::reading::{Bound, ReadError};
use crate::reward::step_reader::Written;
use crate::text::{ChatTemplate, Tokenizer};

/// Qwen2.5-Math-PRM's system message (its model card).
const QWEN_SYSTEM: &str = "Please reason step by step, and put your final answer within \\boxed{}.";
const QWEN_TAG: &str = "<extra_0>";
/// Math-Shepherd's step tag (its model card).
const SHEPHERD_TAG: &str = "ки";
const GOOD: &str = "+";
const BAD: &str = "-";

/// A family of process reward models; see `docs/search-reference.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrmFormat {
    /// Math-Shepherd: each step ends with the token `ки`, after which `+` stands against `-`.
    MathShepherd,
    /// RLHFlow: each step is a user turn, answered with `+` or `-`.
    Rlhflow,
    /// Qwen2.5-Math-PRM: steps end with `<extra_0>`, read by a head of two classes.
    Qwen,
    /// Skywork-o1-Open-PRM: steps end with a line break, read by a head of one value.
    Skywork,
    /// Models of TRL's `PRMTrainer`: steps end with a separator, read by a head of two classes.
    Trl,
    /// A plain chat, read by a head of `ponder train value-head` where a search would tap it.
    ValueHead,
}

/// What writing needs of the model.
pub(super) struct Writer {
    pub format: PrmFormat,
    pub tokenizer: Tokenizer,
    pub chat_template: Option<ChatTemplate>,
    /// Between the steps of an answer.
    pub delimiter: String,
}

impl PrmFormat {
    /// Whether the score is a classification head's, or else that of two tokens.
    pub fn has_head(self) -> bool {
        !matches!(self, Self::MathShepherd | Self::Rlhflow)
    }

    /// What separates steps in the answers that the family was trained on.
    pub fn default_delimiter(self) -> &'static str {
        match self {
            Self::MathShepherd | Self::Skywork | Self::Trl => "\n",
            Self::Rlhflow | Self::Qwen | Self::ValueHead => "\n\n",
        }
    }

    /// What the family's authors make of several step scores.
    pub fn default_aggregate(self) -> Aggregate {
        match self {
            Self::MathShepherd => Aggregate::Min,
            Self::Qwen => Aggregate::Prod,
            Self::Rlhflow | Self::Skywork | Self::Trl | Self::ValueHead => Aggregate::Last,
        }
    }
}

impl Writer {
    /// The tokens whose logits are the score, best first; none where a head reads.
    pub(super) fn score_token_ids(&self) -> Result<Vec<u32>, String> {
        match self.format.has_head() {
            true => Ok(Vec::new()),
            false => Ok(vec![self.last_id(GOOD)?, self.last_id(BAD)?]),
        }
    }

    /// Writes `answer`, which may be the beginning of one.
    pub(super) fn write(
        &self,
        question: &str,
        answer: &str,
        is_complete: bool,
        bound: Bound<'_>,
    ) -> Result<Written, ReadError> {
        let steps = answer.split(self.delimiter.as_str()).map(str::trim);
        let steps: Vec<&str> = steps.filter(|step| !step.is_empty()).collect();
        match self.format {
            PrmFormat::MathShepherd => {
                let steps: Vec<String> = steps
                    .iter()
                    .map(|s| format!("{s} {SHEPHERD_TAG}"))
                    .collect();
                let text = format!("{question} {}", steps.join("\n"));
                let token_ids = self.encode(&text, true, false, bound)?;
                at_tag(token_ids, self.last_id(SHEPHERD_TAG)?, steps.len())
            }
            PrmFormat::Qwen => {
                let answer: String = steps.iter().flat_map(|step| [step, QWEN_TAG]).collect();
                let text = self.chat(
                    &[
                        json!({"role": "system", "content": QWEN_SYSTEM}),
                        json!({"role": "user", "content": question}),
                        json!({"role": "assistant", "content": answer}),
                    ],
                    false,
                )?;
                let token_ids = self.encode(&text, false, true, bound)?;
                at_tag(token_ids, self.special_id(QWEN_TAG)?, steps.len())
            }
            PrmFormat::Rlhflow => self.turns(question, &steps, bound),
            PrmFormat::Skywork => {
                let newline = self.last_id("\n")?;
                let mut written =
                    Written::start(self.encode(&format!("{question}\n"), true, false, bound)?);
                for step in steps {
                    let mut ids = self.encode(step, false, false, bound)?;
                    ids.push(newline);
                    written.push_step(&ids, bound)?;
                }
                Ok(written)
            }
            PrmFormat::Trl => {
                let separator = self.encode(&self.delimiter, false, false, bound)?;
                let mut written = Written::start(self.encode(question, true, false, bound)?);
                for step in steps {
                    let step = self.encode(step, false, false, bound)?;
                    written.push_step(&[step, separator.clone()].concat(), bound)?;
                }
                Ok(written)
            }
            PrmFormat::ValueHead => self.plain(question, answer, is_complete, bound),
        }
    }

    /// A text in which the tags stand already.
    pub(super) fn read_tagged(&self, text: &str, bound: Bound<'_>) -> Result<Written, ReadError> {
        let tag = match self.format {
            PrmFormat::MathShepherd => self.last_id(SHEPHERD_TAG)?,
            PrmFormat::Qwen => self.special_id(QWEN_TAG)?,
            _ => {
                let message = "this model's steps have no tag: send messages";
                return Err(ReadError::Failed(message.to_owned()));
            }
        };
        let is_plain = self.format == PrmFormat::MathShepherd;
        let token_ids = self.encode(text, is_plain, true, bound)?;
        let num_steps = token_ids.iter().filter(|id| **id == tag).count();
        match num_steps {
            0 => Err(ReadError::Failed("the text has no step tag".to_owned())),
            _ => at_tag(token_ids, tag, num_steps),
        }
    }

    /// RLHFlow's conversation: the first step follows the question in one turn.
    fn turns(
        &self,
        question: &str,
        steps: &[&str],
        bound: Bound<'_>,
    ) -> Result<Written, ReadError> {
        let mut messages = Vec::new();
        let mut positions = Vec::new();
        let mut token_ids: Vec<u32> = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let content = match index {
                0 => format!("{question} {step}"),
                _ => (*step).to_owned(),
            };
            messages.push(json!({"role": "user", "content": content}));
            let ids = self.encode(&self.chat(&messages, true)?, false, true, bound)?;
            if !ids.starts_with(&token_ids) {
                let message = "the chat template rewrites earlier turns";
                return Err(ReadError::Failed(message.to_owned()));
            }
            token_ids = ids;
            positions.push(token_ids.len() - 1);
            messages.push(json!({"role": "assistant", "content": GOOD}));
        }
        Ok(Written {
            token_ids,
            positions,
        })
    }

    /// The conversation that the policy itself continues; see [`crate::reward::Candidate::hidden_state`] for
    /// where it is read.
    fn plain(
        &self,
        question: &str,
        answer: &str,
        is_complete: bool,
        bound: Bound<'_>,
    ) -> Result<Written, ReadError> {
        let chat = self.chat(&[json!({"role": "user", "content": question})], true)?;
        let mut written = Written::start(self.encode(&chat, false, true, bound)?);
        let mut steps = answer.split_inclusive(self.delimiter.as_str()).peekable();
        while let Some(step) = steps.next() {
            let ids = self.encode(step, false, false, bound)?;
            written.push_step(&ids, bound)?;
            // A whole answer's last token is the end of text, which was sampled from its last token of text.
            let is_end = is_complete && steps.peek().is_none();
            if let Some(last) = written.positions.last_mut().filter(|_| !is_end) {
                *last -= 1;
            }
        }
        Ok(written)
    }

    fn chat(
        &self,
        messages: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String, ReadError> {
        let Some(template) = &self.chat_template else {
            let message = "the process reward model has no chat template";
            return Err(ReadError::Failed(message.to_owned()));
        };
        Ok(template.render(messages, None, add_generation_prompt, &Map::new())?)
    }

    fn encode(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
        bound: Bound<'_>,
    ) -> Result<Vec<u32>, ReadError> {
        let may_go_on = || bound.budget.may_go_on();
        let max_tokens = bound.max_tokens;
        let tokenizer = &self.tokenizer;
        Ok(tokenizer.encode_within(text, add_special, parse_special, max_tokens, &may_go_on)?)
    }

    fn last_id(&self, text: &str) -> Result<u32, String> {
        let token_ids = self.tokenizer.encode(text, false, false);
        let token_ids = token_ids.map_err(|error| error.to_string())?;
        let last = token_ids.last().copied();
        last.ok_or_else(|| format!("{text:?} is not a token"))
    }

    fn special_id(&self, token: &str) -> Result<u32, String> {
        let id = self.tokenizer.token_to_id(token);
        id.ok_or_else(|| format!("the process reward model's tokenizer has no {token}"))
    }
}

impl Written {
    fn start(token_ids: Vec<u32>) -> Self {
        Self {
            token_ids,
            positions: Vec::new(),
        }
    }

    /// Adds a step that is read at its last token.
    fn push_step(&mut self, token_ids: &[u32], bound: Bound<'_>) -> Result<(), ReadError> {
        self.token_ids.extend_from_slice(token_ids);
        if self.token_ids.len() > bound.max_tokens {
            return Err(ReadError::TooLong(format!(
                "question and answer have more than {} tokens, which is all that the process reward \
                 model reads",
                bound.max_tokens
            )));
        }
        if !token_ids.is_empty() {
            self.positions.push(self.token_ids.len() - 1);
        }
        Ok(())
    }
}

/// Reads at the last `num_steps` occurrences of a tag and drops what follows them.
fn at_tag(mut token_ids: Vec<u32>, tag: u32, num_steps: usize) -> Result<Written, ReadError> {
    let all = token_ids.iter().enumerate();
    let mut positions: Vec<usize> = all
        .filter(|(_, id)| **id == tag)
        .map(|(at, _)| at)
        .collect();
    let Some(surplus) = positions.len().checked_sub(num_steps) else {
        let message = "the process reward model's tokenizer splits its step tag";
        return Err(ReadError::Failed(message.to_owned()));
    };
    positions.drain(..surplus);
    token_ids.truncate(positions.last().map_or(0, |last| last + 1));
    Ok(Written {
        token_ids,
        positions,
    })
}
