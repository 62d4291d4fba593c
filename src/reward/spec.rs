//! The `reward` of a request: what is asked for, checked, and made into a scorer.

use std::sync::Arc;

use regex::RegexBuilder;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::value_head::{ValueHead, ValueHeadScorer};
use super::verifier::TextCheck;
use super::verifier::python::{PythonRunner, PythonTests};
use super::{
    Aggregate, Judge, JudgeScorer, Likelihood, Majority, Prm, PrmScorer, RemoteScorer,
    RewardServer, Scorer, Weighted,
};

const MAX_REWARDS: usize = 8;
const MAX_TESTS: usize = 256;
const MAX_TEST_BYTES: usize = 64 << 10;
/// Compiled size of a client's pattern.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// What a server has that rewards need.
#[derive(Clone, Default)]
pub struct RewardResources {
    /// Present when the operator allows running code.
    pub python: Option<PythonRunner>,
    pub value_head: Option<Arc<ValueHead>>,
    pub judge: Option<Arc<Judge>>,
    pub prm: Option<Arc<Prm>>,
    pub reward_server: Option<Arc<RewardServer>>,
}

impl RewardResources {
    /// What a request that names no reward gets.
    pub fn default_kind(&self) -> &'static str {
        match (&self.prm, &self.value_head) {
            (Some(_), _) => "prm",
            (None, Some(_)) => "value_head",
            (None, None) => "likelihood",
        }
    }
}

/// What a request tells its rewards.
#[derive(Debug, Clone, Default)]
pub struct RewardContext {
    /// What the answers answer.
    pub question: String,
    /// Of the prefix cache, for rewards that run prompts of their own.
    pub cache_salt: u64,
}

/// One reward.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardSpec {
    /// `likelihood`, `majority`, `verifier`, `value_head`, `prm`, `judge` or `http`.
    pub kind: String,
    /// Share in the mean when there are several; 1 by default.
    pub weight: Option<f64>,
    /// Of a verifier: `math`, `exact`, `regex`, `json_schema` or `python`.
    #[serde(rename = "type")]
    pub check: Option<String>,
    /// The right answer (`math`, `exact`).
    pub answer: Option<String>,
    /// What the answer must contain (`regex`).
    pub pattern: Option<String>,
    /// What the answer's JSON must satisfy (`json_schema`).
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// Statements that raise when the answer's code is wrong (`python`).
    pub tests: Option<Vec<String>>,
    /// Put before the answer's code (`python`).
    pub prefix: Option<String>,
    /// What a `judge` is asked: ends with a yes-or-no question.
    pub instruction: Option<String>,
    /// How a `prm` makes one score of those of the steps; its family's way by default.
    pub aggregate: Option<Aggregate>,
}

/// What must change; `param` is relative to the reward, as `[0].tests`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RewardSpecError {
    pub param: String,
    pub message: String,
}

fn invalid<T>(param: &str, message: impl Into<String>) -> Result<T, RewardSpecError> {
    Err(RewardSpecError {
        param: param.to_owned(),
        message: message.into(),
    })
}

/// The scorer of a list of rewards.
pub fn build(
    specs: &[RewardSpec],
    resources: &RewardResources,
    context: &RewardContext,
) -> Result<Weighted, RewardSpecError> {
    if specs.is_empty() || specs.len() > MAX_REWARDS {
        return invalid("", format!("reward takes 1 to {MAX_REWARDS} rewards"));
    }
    let mut parts = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        let at = |error: RewardSpecError| RewardSpecError {
            param: format!("[{index}]{}", error.param),
            ..error
        };
        let weight = spec.weight.unwrap_or(1.0);
        if !(weight.is_finite() && weight > 0.0) {
            return invalid(".weight", "weight must be a number above 0").map_err(at);
        }
        parts.push((weight, spec.scorer(resources, context).map_err(at)?));
    }
    Ok(Weighted::new(parts))
}

impl RewardSpec {
    /// A reward without parameters.
    pub fn of_kind(kind: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            weight: None,
            check: None,
            answer: None,
            pattern: None,
            schema: None,
            tests: None,
            prefix: None,
            instruction: None,
            aggregate: None,
        }
    }

    fn scorer(
        &self,
        resources: &RewardResources,
        context: &RewardContext,
    ) -> Result<Arc<dyn Scorer>, RewardSpecError> {
        match self.kind.as_str() {
            "verifier" => {}
            "judge" => self.check_unused(&["instruction"])?,
            "prm" => self.check_unused(&["aggregate"])?,
            _ => self.check_unused(&[])?,
        }
        match self.kind.as_str() {
            "likelihood" => Ok(Arc::new(Likelihood)),
            "majority" => Ok(Arc::new(Majority)),
            "value_head" => match &resources.value_head {
                Some(head) => Ok(Arc::new(ValueHeadScorer(Arc::clone(head)))),
                None => invalid(
                    ".kind",
                    "this server has no value head: the operator must start it with --value-head",
                ),
            },
            "judge" => match &resources.judge {
                Some(judge) => Ok(Arc::new(JudgeScorer::new(
                    Arc::clone(judge),
                    context.clone(),
                    self.instruction.as_deref(),
                ))),
                None => invalid(".kind", "this model has no chat template to judge with"),
            },
            "prm" => match &resources.prm {
                Some(prm) => Ok(Arc::new(PrmScorer::new(
                    Arc::clone(prm),
                    context.clone(),
                    self.aggregate,
                ))),
                None => invalid(
                    ".kind",
                    "this server has no process reward model: the operator must start it with --prm",
                ),
            },
            "http" => match &resources.reward_server {
                Some(server) => Ok(Arc::new(RemoteScorer {
                    server: Arc::clone(server),
                    question: context.question.clone(),
                })),
                None => invalid(
                    ".kind",
                    "this server has no reward server: the operator must start it with --reward-url",
                ),
            },
            "verifier" => self.verifier(resources),
            other => invalid(
                ".kind",
                format!(
                    "{other:?} is not a reward: use likelihood, majority, verifier, value_head, prm, judge or http"
                ),
            ),
        }
    }

    fn verifier(&self, resources: &RewardResources) -> Result<Arc<dyn Scorer>, RewardSpecError> {
        match self.check.as_deref() {
            Some("math") => {
                self.check_unused(&["type", "answer"])?;
                Ok(Arc::new(TextCheck::Math(self.known_answer()?)))
            }
            Some("exact") => {
                self.check_unused(&["type", "answer"])?;
                Ok(Arc::new(TextCheck::Exact(self.known_answer()?)))
            }
            Some("regex") => {
                self.check_unused(&["type", "pattern"])?;
                self.regex()
            }
            Some("json_schema") => {
                self.check_unused(&["type", "schema"])?;
                self.json_schema()
            }
            Some("python") => {
                self.check_unused(&["type", "tests", "prefix"])?;
                self.python(resources)
            }
            other => invalid(
                ".type",
                format!(
                    "a verifier's type is math, exact, regex, json_schema or python, not {}",
                    other.unwrap_or("absent")
                ),
            ),
        }
    }

    fn known_answer(&self) -> Result<String, RewardSpecError> {
        match &self.answer {
            Some(answer) if !answer.trim().is_empty() => Ok(answer.clone()),
            _ => invalid(".answer", "this verifier needs the right answer"),
        }
    }

    fn regex(&self) -> Result<Arc<dyn Scorer>, RewardSpecError> {
        let Some(pattern) = &self.pattern else {
            return invalid(".pattern", "this verifier needs a pattern");
        };
        match RegexBuilder::new(pattern)
            .size_limit(MAX_REGEX_BYTES)
            .build()
        {
            Ok(regex) => Ok(Arc::new(TextCheck::Regex(regex))),
            Err(error) => invalid(".pattern", error.to_string()),
        }
    }

    fn json_schema(&self) -> Result<Arc<dyn Scorer>, RewardSpecError> {
        let Some(schema) = &self.schema else {
            return invalid(".schema", "this verifier needs a JSON schema");
        };
        match jsonschema::validator_for(schema) {
            Ok(validator) => Ok(Arc::new(TextCheck::Json(Arc::new(validator)))),
            Err(error) => invalid(".schema", error.to_string()),
        }
    }

    fn python(&self, resources: &RewardResources) -> Result<Arc<dyn Scorer>, RewardSpecError> {
        let Some(runner) = &resources.python else {
            return invalid(
                ".type",
                "this server does not run code: the operator must start it with \
                 --allow-code-execution",
            );
        };
        let tests = self.tests.clone().unwrap_or_default();
        if tests.is_empty() || tests.len() > MAX_TESTS {
            return invalid(".tests", format!("tests takes 1 to {MAX_TESTS} statements"));
        }
        if tests.iter().map(String::len).sum::<usize>() > MAX_TEST_BYTES {
            return invalid(
                ".tests",
                format!("tests takes at most {MAX_TEST_BYTES} bytes"),
            );
        }
        let prefix = self.prefix.clone().unwrap_or_default();
        Ok(Arc::new(PythonTests::new(runner.clone(), tests, prefix)))
    }

    /// A field that this reward does not read is a mistake of the client's.
    fn check_unused(&self, used: &[&str]) -> Result<(), RewardSpecError> {
        let given = [
            ("type", self.check.is_some()),
            ("answer", self.answer.is_some()),
            ("pattern", self.pattern.is_some()),
            ("schema", self.schema.is_some()),
            ("tests", self.tests.is_some()),
            ("prefix", self.prefix.is_some()),
            ("instruction", self.instruction.is_some()),
            ("aggregate", self.aggregate.is_some()),
        ];
        match given
            .iter()
            .find(|(name, is_given)| *is_given && !used.contains(name))
        {
            Some((name, _)) => invalid(
                &format!(".{name}"),
                format!("this reward takes no {name}; leave it out"),
            ),
            None => Ok(()),
        }
    }
}
