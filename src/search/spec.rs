//! The `search` object of a request, checked and completed with each strategy's defaults.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::confidence::{ConfidenceRequest, ConfidenceSpec};
use super::step::StepRule;
use super::strategy::{Strategy, StrategyName};
use crate::reward::{Aggregate, RewardSpec, Weighted};

/// Tokens of a step (ReST-MCTS*).
const DEFAULT_STEP_TOKENS: usize = 256;

/// Longest step.
pub(crate) const MAX_STEP_TOKENS: usize = 8192;
const MAX_DEPTH: usize = 256;
const MAX_ITERATIONS: usize = 1024;
pub(crate) const MAX_DELIMITER_BYTES: usize = 64;
pub(crate) const MAX_TAGS: usize = 16;
const MAX_TAG_BYTES: usize = 128;

/// Hard limits over the whole search.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BudgetSpec {
    /// Generated tokens, discarded ones included.
    pub tokens: Option<u64>,
    pub ms: Option<u64>,
    /// Candidates that may be scored.
    pub scorer_calls: Option<u64>,
}

/// How text is cut into steps.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StepSpec {
    /// A step ends with this text; a blank line by default, a line end in `vm_mcts`.
    pub delimiter: Option<String>,
    /// A step ends where this matches.
    pub regex: Option<String>,
    pub max_tokens: Option<usize>,
}

impl StepSpec {
    /// Checks the fields; `delimiter` is for a spec that names no boundary.
    pub fn rule(self, delimiter: &str) -> Result<StepRule, SpecError> {
        let max_tokens = within(
            "max_tokens",
            self.max_tokens,
            DEFAULT_STEP_TOKENS,
            1,
            MAX_STEP_TOKENS,
        )?;
        match (self.delimiter, self.regex) {
            (Some(_), Some(_)) => {
                invalid("regex", "regex and delimiter exclude each other".to_owned())
            }
            (Some(text), None) if text.is_empty() || text.len() > MAX_DELIMITER_BYTES => invalid(
                "delimiter",
                format!("delimiter has 1 to {MAX_DELIMITER_BYTES} bytes"),
            ),
            (Some(text), None) => Ok(StepRule::delimiter(&text, max_tokens)),
            (None, Some(pattern)) => {
                StepRule::regex(&pattern, max_tokens).map_err(|message| SpecError {
                    param: "regex".to_owned(),
                    message: format!("regex: {message}"),
                })
            }
            (None, None) => Ok(StepRule::delimiter(delimiter, max_tokens)),
        }
    }
}

/// One value or several.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    Many(Vec<T>),
    One(T),
}

impl<T> OneOrMany<T> {
    pub fn into_vec(self) -> Vec<T> {
        match self {
            Self::Many(values) => values,
            Self::One(value) => vec![value],
        }
    }
}

/// The `search` object as clients send it.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchRequest {
    #[schema(value_type = StrategyName)]
    pub strategy: &'static dyn Strategy,
    /// Samples (`best_of_n`, `self_consistency`), beams (`beam`, `dvts`), answers in the making
    /// (`rebase`), particles (`particle_filtering`) or completions of an expansion (`vm_mcts`).
    pub n: Option<usize>,
    /// Children of a node (`beam`, `dvts`, `mcts`), or children that are selectable at first
    /// (`vm_mcts`).
    pub branch: Option<usize>,
    /// Steps of an answer at most.
    pub max_depth: Option<usize>,
    /// Rounds of a tree search, or passes of `particle_filtering`: more than one are particle Gibbs.
    pub iterations: Option<usize>,
    /// The constant of the upper confidence bound.
    pub exploration: Option<f64>,
    /// Value (or confidence, in `self_consistency`) at which the search ends.
    pub threshold: Option<f64>,
    /// What one more answer may cost, in value (`best_of_n`) or in the probability of being right
    /// (`auto`): sampling stops once that is expected to rise by less.
    pub cost: Option<f64>,
    pub confidence: Option<ConfidenceRequest>,
    pub budget: Option<BudgetSpec>,
    pub step: Option<StepSpec>,
    #[schema(value_type = Option<Object>)]
    pub reward: Option<OneOrMany<RewardSpec>>,
    pub aggregate: Option<Aggregate>,
    /// Keep the tree as a trace, when the server keeps traces (default true).
    pub trace: Option<bool>,
    /// Return the tree in the response.
    pub return_tree: Option<bool>,
    /// Labels of the trace.
    pub tags: Option<Vec<String>>,
    /// The id of a trace, or the `search.tree`, of an earlier answer to the same request: go on where it ended.
    #[schema(value_type = Option<Object>)]
    pub resume: Option<serde_json::Value>,
    /// Send progress objects in chunks with empty `choices`.
    pub stream_events: Option<bool>,
}

/// A complete, checked search.
#[derive(Debug, Clone)]
pub struct SearchSpec {
    pub strategy: &'static dyn Strategy,
    pub n: usize,
    pub branch: usize,
    pub max_depth: usize,
    pub iterations: usize,
    pub exploration: f64,
    pub threshold: Option<f64>,
    pub cost: Option<f64>,
    pub confidence: Option<ConfidenceSpec>,
    pub budget: BudgetSpec,
    pub step: StepRule,
    pub rewards: Vec<RewardSpec>,
    pub aggregate: Aggregate,
    pub trace: bool,
    pub return_tree: bool,
    pub tags: Vec<String>,
    pub stream_events: bool,
}

/// What must change; `param` is relative to the search object, as `budget.tokens`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SpecError {
    pub param: String,
    pub message: String,
}

pub(super) fn invalid<T>(param: &str, message: String) -> Result<T, SpecError> {
    Err(SpecError {
        param: param.to_owned(),
        message,
    })
}

/// A count of at least `low` and at most `high`.
pub(super) fn within(
    param: &str,
    value: Option<usize>,
    default: usize,
    low: usize,
    high: usize,
) -> Result<usize, SpecError> {
    let value = value.unwrap_or(default.min(high));
    if (low..=high).contains(&value) {
        return Ok(value);
    }
    invalid(
        param,
        format!("{param} must be {low} to {high}, not {value}"),
    )
}

impl SearchRequest {
    /// A strategy with its defaults.
    pub fn of(strategy: &'static dyn Strategy) -> Self {
        Self {
            strategy,
            n: None,
            branch: None,
            max_depth: None,
            iterations: None,
            exploration: None,
            threshold: None,
            cost: None,
            confidence: None,
            budget: None,
            step: None,
            reward: None,
            aggregate: None,
            trace: None,
            return_tree: None,
            tags: None,
            resume: None,
            stream_events: None,
        }
    }

    /// Checks every field. `max_num_seqs` bounds what one expansion may sample at once; `default_reward` is the
    /// kind for requests that name none.
    pub fn resolve(
        &self,
        max_num_seqs: usize,
        default_reward: &str,
    ) -> Result<SearchSpec, SpecError> {
        let strategy = self.strategy;
        let defaults = strategy.defaults();
        let n = within("n", self.n, defaults.n, 1, max_num_seqs)?;
        let branch_limit = match defaults.is_branch_within_n {
            true => n,
            false => max_num_seqs,
        };
        let branch = within("branch", self.branch, defaults.branch, 1, branch_limit)?;
        let exploration = self.exploration.unwrap_or(defaults.exploration);
        if !(0.0..=100.0).contains(&exploration) {
            return invalid("exploration", "exploration must be 0 to 100".to_owned());
        }
        if self
            .threshold
            .is_some_and(|value| !(0.0..=1.0).contains(&value))
        {
            return invalid("threshold", "threshold must be 0 to 1".to_owned());
        }
        Ok(SearchSpec {
            strategy,
            n,
            branch,
            max_depth: within(
                "max_depth",
                self.max_depth,
                defaults.max_depth,
                1,
                MAX_DEPTH,
            )?,
            iterations: within(
                "iterations",
                self.iterations,
                defaults.iterations,
                1,
                MAX_ITERATIONS,
            )?,
            exploration,
            threshold: self.threshold.or(defaults.threshold),
            cost: self.cost()?,
            confidence: self.confidence(n)?,
            budget: self.budget()?,
            step: self.step_rule()?,
            rewards: self.rewards(default_reward),
            aggregate: self.aggregate.unwrap_or(Aggregate::Last),
            trace: self.trace.unwrap_or(true),
            return_tree: self.return_tree.unwrap_or(false),
            tags: self.tags()?,
            stream_events: self.stream_events.unwrap_or(false),
        })
    }

    fn cost(&self) -> Result<Option<f64>, SpecError> {
        let defaults = self.strategy.defaults();
        let Some(cost) = self.cost else {
            return Ok(defaults.cost);
        };
        if !defaults.takes_cost {
            let name = self.strategy.name();
            return invalid("cost", format!("{name} takes no cost: leave it out"));
        }
        if cost > 0.0 && cost <= 1.0 {
            return Ok(Some(cost));
        }
        invalid(
            "cost",
            format!("cost must be above 0 and at most 1, not {cost}"),
        )
    }

    fn confidence(&self, n: usize) -> Result<Option<ConfidenceSpec>, SpecError> {
        match (self.confidence, self.strategy.defaults().confidence) {
            (asked, Some(_)) => asked.unwrap_or_default().resolve(n).map(Some),
            (Some(_), None) => {
                let name = self.strategy.name();
                let message = format!("{name} takes no confidence: leave it out");
                invalid("confidence", message)
            }
            (None, None) => Ok(None),
        }
    }

    fn budget(&self) -> Result<BudgetSpec, SpecError> {
        let budget = self.budget.unwrap_or_default();
        for (param, value) in [
            ("budget.tokens", budget.tokens),
            ("budget.ms", budget.ms),
            ("budget.scorer_calls", budget.scorer_calls),
        ] {
            if value == Some(0) {
                return invalid(param, format!("{param} must be at least 1"));
            }
        }
        Ok(budget)
    }

    fn step_rule(&self) -> Result<StepRule, SpecError> {
        let delimiter = self.strategy.defaults().delimiter;
        let rule = self.step.clone().unwrap_or_default().rule(delimiter);
        rule.map_err(|error| SpecError {
            param: format!("step.{}", error.param),
            message: format!("step.{}", error.message),
        })
    }

    fn rewards(&self, default: &str) -> Vec<RewardSpec> {
        let defaults = self.strategy.defaults();
        match &self.reward {
            Some(rewards) => rewards.clone().into_vec(),
            // Every vote counts the same.
            None if defaults.is_vote && !defaults.needs_reward => Vec::new(),
            None => vec![RewardSpec::of_kind(default)],
        }
    }

    fn tags(&self) -> Result<Vec<String>, SpecError> {
        let tags = self.tags.clone().unwrap_or_default();
        if tags.len() > MAX_TAGS || tags.iter().any(|tag| tag.len() > MAX_TAG_BYTES) {
            return invalid(
                "tags",
                format!("tags takes at most {MAX_TAGS} tags of {MAX_TAG_BYTES} bytes"),
            );
        }
        Ok(tags)
    }
}

impl SearchSpec {
    /// Whether the strategy can search by this scorer.
    pub fn check_scorer(&self, scorer: Option<&Weighted>) -> Result<(), SpecError> {
        self.strategy.check(self, scorer)
    }
}
