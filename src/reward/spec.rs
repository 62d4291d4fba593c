//! The `reward` of a request: what is asked for, checked, and made into a scorer.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::value_head::{ValueHead, ValueHeadScorer};
use super::verifier::python::PythonRunner;
use super::{
    Aggregate, Calibration, Judge, JudgeScorer, Likelihood, Majority, Prm, PrmScorer, RemoteScorer,
    RewardServer, SchemaChecker, Scorer, ScorerError, ScorerTokens, ValueModel, ValueModelScorer,
    Weighted,
};
use crate::work::WorkPool;

pub(crate) const MAX_REWARDS: usize = 8;
/// Of the texts that a reward brings: a known answer, an instruction, a prefix.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// What a server has that rewards need.
#[derive(Clone, Default)]
pub struct RewardResources {
    /// Present when the operator allows running code.
    pub python: Option<PythonRunner>,
    /// Absent where processes cannot be limited.
    pub schemas: Option<SchemaChecker>,
    pub value_head: Option<Arc<ValueHead>>,
    /// The first is the one that a reward means which names none.
    pub value_models: Vec<Arc<ValueModel>>,
    pub judge: Option<Arc<Judge>>,
    pub prm: Option<Arc<Prm>>,
    pub reward_server: Option<Arc<RewardServer>>,
    /// How likely a leading answer is right, by its value.
    pub calibration: Option<Arc<Calibration>>,
}

impl RewardResources {
    /// What a request that names no reward gets.
    pub fn default_kind(&self) -> &'static str {
        match (&self.prm, self.value_models.as_slice(), &self.value_head) {
            (Some(_), ..) => "prm",
            (None, [_, ..], _) => "value_model",
            (None, [], Some(_)) => "value_head",
            (None, [], None) => "likelihood",
        }
    }
}

/// What a request tells its rewards.
#[derive(Debug, Clone, Default)]
pub struct RewardContext {
    /// What the answers answer.
    pub question: String,
    /// What the policy reads before the answers.
    pub prompt_token_ids: Arc<[u32]>,
    /// Of the prefix cache, for rewards that run prompts of their own.
    pub cache_salt: u64,
    /// Whose turn it takes to do work.
    pub tenant: u64,
    pub pool: WorkPool,
    /// What the rewards of this request have computed.
    pub tokens: Arc<ScorerTokens>,
}

/// One reward.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardSpec {
    /// `likelihood`, `majority`, `verifier`, `value_head`, `value_model`, `prm`, `judge` or
    /// `http`.
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
    /// Which `value_model`, by its name; the server's first by default.
    // Absent where it was: a trace's reward is compared with a request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How one score is made of those of the steps: by default its family's way (`prm`), or `last`
    /// (`value_model`).
    pub aggregate: Option<Aggregate>,
}

/// What must change; `param` is relative to the reward, as `[0].tests`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RewardSpecError {
    pub param: String,
    pub message: String,
}

pub(super) fn invalid<T>(param: &str, message: impl Into<String>) -> Result<T, RewardSpecError> {
    Err(RewardSpecError {
        param: param.to_owned(),
        message: message.into(),
    })
}

/// Why there is no scorer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Spec(#[from] RewardSpecError),
    /// The work of checking the specification was not done.
    #[error(transparent)]
    Scorer(#[from] ScorerError),
}

impl BuildError {
    /// Of the reward at this place.
    fn at(self, index: usize) -> Self {
        match self {
            Self::Spec(error) => Self::Spec(RewardSpecError {
                param: format!("[{index}]{}", error.param),
                ..error
            }),
            other => other,
        }
    }
}

/// The scorer of a list of rewards.
pub async fn build(
    specs: &[RewardSpec],
    resources: &RewardResources,
    context: &RewardContext,
    deadline: Option<Instant>,
) -> Result<Weighted, BuildError> {
    if specs.is_empty() || specs.len() > MAX_REWARDS {
        let message = format!("reward takes 1 to {MAX_REWARDS} rewards");
        return Ok(invalid("", message)?);
    }
    let mut parts = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        let weight = spec.weight.unwrap_or(1.0);
        if !(weight.is_finite() && weight > 0.0) {
            let error = invalid(".weight", "weight must be a number above 0");
            return error.map_err(|error| BuildError::Spec(error).at(index));
        }
        let scorer = spec.scorer(resources, context, deadline).await;
        parts.push((weight, scorer.map_err(|error| error.at(index))?));
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
            model: None,
            aggregate: None,
        }
    }

    async fn scorer(
        &self,
        resources: &RewardResources,
        context: &RewardContext,
        deadline: Option<Instant>,
    ) -> Result<Arc<dyn Scorer>, BuildError> {
        self.check_texts()?;
        match self.kind.as_str() {
            "verifier" => return self.verifier(resources, context, deadline).await,
            "judge" => self.check_unused(&["instruction"])?,
            "prm" => self.check_unused(&["aggregate"])?,
            "value_model" => self.check_unused(&["model", "aggregate"])?,
            _ => self.check_unused(&[])?,
        }
        Ok(self.of_a_model(resources, context)?)
    }

    /// The rewards that are no verifiers.
    fn of_a_model(
        &self,
        resources: &RewardResources,
        context: &RewardContext,
    ) -> Result<Arc<dyn Scorer>, RewardSpecError> {
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
            "value_model" => Ok(Arc::new(ValueModelScorer::new(
                self.value_model(resources)?,
                context.clone(),
                self.aggregate,
            ))),
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
            other => invalid(
                ".kind",
                format!(
                    "{other:?} is not a reward: use likelihood, majority, verifier, value_head, \
                     value_model, prm, judge or http"
                ),
            ),
        }
    }

    fn value_model(&self, resources: &RewardResources) -> Result<Arc<ValueModel>, RewardSpecError> {
        let models = &resources.value_models;
        let Some(first) = models.first() else {
            return invalid(
                ".kind",
                "this server has no value model: the operator must start it with --value-adapter",
            );
        };
        let Some(name) = &self.model else {
            return Ok(Arc::clone(first));
        };
        match models.iter().find(|model| model.name() == name) {
            Some(model) => Ok(Arc::clone(model)),
            None => {
                let names: Vec<&str> = models.iter().map(|model| model.name()).collect();
                let names = names.join(", ");
                invalid(
                    ".model",
                    format!("{name:?} is not a value model of this server: use {names}"),
                )
            }
        }
    }

    /// Whether the reward reads the answer's tokens, after those of the prompt.
    pub fn reads_tokens(&self) -> bool {
        matches!(
            self.kind.as_str(),
            "likelihood" | "value_head" | "value_model"
        )
    }

    /// Texts that come with the reward, and are read with each answer.
    fn check_texts(&self) -> Result<(), RewardSpecError> {
        let texts = [
            ("answer", &self.answer),
            ("instruction", &self.instruction),
            ("prefix", &self.prefix),
            ("model", &self.model),
        ];
        let is_long = |text: &&Option<String>| {
            let text = text.as_ref();
            text.is_some_and(|text| text.len() > MAX_TEXT_BYTES)
        };
        match texts.iter().find(|(_, text)| is_long(text)) {
            Some((name, _)) => invalid(
                &format!(".{name}"),
                format!("{name} takes at most {MAX_TEXT_BYTES} bytes"),
            ),
            None => Ok(()),
        }
    }

    /// A field that this reward does not read is a mistake of the client's.
    pub(super) fn check_unused(&self, used: &[&str]) -> Result<(), RewardSpecError> {
        let given = [
            ("type", self.check.is_some()),
            ("answer", self.answer.is_some()),
            ("pattern", self.pattern.is_some()),
            ("schema", self.schema.is_some()),
            ("tests", self.tests.is_some()),
            ("prefix", self.prefix.is_some()),
            ("instruction", self.instruction.is_some()),
            ("model", self.model.is_some()),
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
