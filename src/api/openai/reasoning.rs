//! What a request says of the model's thoughts: how long, and whether they are sent.

use serde_json::{Map, Value};

use crate::api::error::ApiError;
use crate::api::served::Served;
use crate::engine::TokenConstraint;
use crate::grammar::Thought;

/// What templates that let a model think or not read.
const ENABLE_THINKING: &str = "enable_thinking";
/// What templates of models with efforts read (gpt-oss), and the efforts that they have.
const REASONING_EFFORT: &str = "reasoning_effort";
const EFFORTS: [&str; 3] = ["low", "medium", "high"];

/// The fields of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct ReasoningFields {
    /// vLLM's.
    pub include_reasoning: Option<bool>,
    /// vLLM's; -1 is no limit.
    pub thinking_token_budget: Option<i64>,
    /// OpenRouter's.
    pub reasoning: Option<Value>,
    pub reasoning_effort: Option<String>,
}

/// What comes of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ReasoningPlan {
    pub is_shown: bool,
    /// Tokens of a thought, and the field that says so.
    pub budget: Option<(usize, &'static str)>,
    pub effort: Option<String>,
    /// The model should answer without a thought.
    pub is_off: bool,
}

impl ReasoningFields {
    pub fn plan(self) -> Result<ReasoningPlan, ApiError> {
        let own = match &self.reasoning {
            None | Some(Value::Null) => Own::default(),
            Some(Value::Object(fields)) => Own::read(fields)?,
            Some(_) => return Err(invalid("reasoning", "must be an object")),
        };
        let budget = match self.thinking_token_budget {
            None | Some(-1) => None,
            Some(tokens) => Some(usize::try_from(tokens).map_err(|_| {
                let message = "must be at least 0, or -1 for no limit";
                invalid("thinking_token_budget", message)
            })?),
        };
        if budget.is_some() && own.max_tokens.is_some() {
            let message = "says the same as thinking_token_budget: send one of them";
            return Err(invalid("reasoning.max_tokens", message));
        }
        if let (Some(effort), Some(other)) = (&own.effort, &self.reasoning_effort)
            && effort != other
        {
            let message = "and reasoning_effort differ: send one of them";
            return Err(invalid("reasoning.effort", message));
        }
        let own_budget = own
            .max_tokens
            .map(|tokens| (tokens, "reasoning.max_tokens"));
        let effort = own.effort.or(self.reasoning_effort);
        Ok(ReasoningPlan {
            is_shown: self.include_reasoning.unwrap_or(true) && !own.is_excluded,
            budget: budget
                .map(|tokens| (tokens, "thinking_token_budget"))
                .or(own_budget),
            is_off: own.is_off || effort.as_deref() == Some("none"),
            effort,
        })
    }
}

/// OpenRouter's `reasoning`.
#[derive(Debug, Default)]
struct Own {
    effort: Option<String>,
    max_tokens: Option<usize>,
    is_excluded: bool,
    is_off: bool,
}

impl Own {
    fn read(fields: &Map<String, Value>) -> Result<Self, ApiError> {
        let mut own = Self::default();
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            let at = format!("reasoning.{name}");
            let flag = || {
                let error = || invalid(&at, "must be true or false");
                value.as_bool().ok_or_else(error)
            };
            match name.as_str() {
                "effort" => {
                    let error = || invalid(&at, "must be a string");
                    own.effort = Some(value.as_str().ok_or_else(error)?.to_owned());
                }
                "max_tokens" => {
                    let tokens = value.as_u64().and_then(|tokens| tokens.try_into().ok());
                    let error = || invalid(&at, "must be a whole number of at least 0");
                    own.max_tokens = Some(tokens.ok_or_else(error)?);
                }
                "exclude" => own.is_excluded = flag()?,
                "enabled" => own.is_off = !flag()?,
                _ => {
                    let message =
                        "is not known: reasoning takes effort, max_tokens, exclude and enabled";
                    return Err(invalid(&at, message));
                }
            }
        }
        Ok(own)
    }
}

impl ReasoningPlan {
    /// Tells the template how the model is to think, unless the request tells it something itself.
    pub fn tell(&self, variables: &mut Map<String, Value>) {
        let mut tell = |name: &str, value: Value| {
            variables.entry(name).or_insert(value);
        };
        if self.is_off {
            tell(ENABLE_THINKING, false.into());
        }
        let effort = self.effort.as_deref();
        if let Some(effort) = effort.filter(|effort| EFFORTS.contains(effort)) {
            tell(REASONING_EFFORT, effort.into());
        }
    }

    /// What is allowed while the model thinks, and `rest` behind it.
    pub fn constraint(
        &self,
        served: &Served,
        prompt: &str,
        rest: Option<Box<dyn TokenConstraint>>,
    ) -> Result<Option<Box<dyn TokenConstraint>>, ApiError> {
        let Some(format) = &served.output.reasoning else {
            return match self.budget {
                Some((_, field)) => Err(invalid(
                    field,
                    "needs a model that thinks: this one marks no thoughts. Leave the field out, or start \
                     the server with --reasoning-parser NAME",
                )),
                None => Ok(rest),
            };
        };
        let is_open = served.output.opens_thought(prompt);
        let max_tokens = match self.is_off {
            true => Some(0),
            false => self.budget.map(|(tokens, _)| tokens),
        };
        // Templates that end a thought before the answer begins leave nothing to bound.
        let is_over = !is_open && prompt.trim_end().ends_with(&format.end);
        if is_over || (rest.is_none() && max_tokens.is_none()) {
            return Ok(rest);
        }
        let Some(grammars) = served.grammars.get() else {
            return match self.budget {
                Some((_, field)) => Err(ApiError {
                    code: Some("unsupported_capability"),
                    ..invalid(field, "needs an engine that constrains answers")
                }),
                None => Ok(rest),
            };
        };
        let encode = |mark: &str| served.tokenizer.encode(mark, false, true);
        let end = match &rest {
            Some(_) => format.end_before_answer(),
            None => format.end.clone(),
        };
        let thought = Thought {
            start: encode(&format.start)?,
            end: encode(&end)?,
            is_open,
            max_tokens,
        };
        Ok(Some(grammars.after_thought(thought, rest)))
    }
}

fn invalid(at: &str, message: &str) -> ApiError {
    ApiError::invalid(at, format!("{at} {message}"))
}
