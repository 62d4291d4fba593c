//! What an adaptation does. Where the paper is silent, the options are named here.

use serde::{Deserialize, Serialize, Serializer};

/// Largest change of a router logit: beyond it a few experts would be all that is left.
pub(super) const MAX_DELTA: f32 = 1.0;
/// Contexts with fewer tokens say too little.
pub const MIN_CONTEXT: usize = 32;
const MAX_STEPS: usize = 64;
const MAX_PHASES: usize = 64;

/// Which vectors are adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdaptationMethod {
    /// Router logits of mixture-of-experts layers.
    Router,
    /// The final hidden state.
    Slot,
}

/// How the gradient reaches a layer's router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterGradient {
    /// Back through the layers above.
    Exact,
    /// As if the residual stream carried the final norm's gradient down unchanged: no layer is gone back through.
    Truncated,
}

/// What ranks layers (router probabilities of the context's tokens, averaged).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerScore {
    /// The paper's confidence: minus the mean log-probability of the chosen experts.
    Confidence,
    /// Minus the entropy over all experts.
    NegativeEntropy,
    /// The last chosen expert's probability minus the first unchosen one's.
    Margin,
}

/// Which end of the ranking is adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreOrder {
    High,
    Low,
}

/// Which layers' routers are adapted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouterLayers {
    /// So many of the last mixture-of-experts layers are considered; 0 for all.
    pub depth: usize,
    /// This share of them is adapted, at least one.
    #[serde(serialize_with = "shortest")]
    pub share: f32,
    pub score: LayerScore,
    pub order: ScoreOrder,
    /// Layers learn at a rate in proportion to their scores (the paper's soft weighting).
    pub weighted: bool,
}

/// What becomes of keys and values that were computed before a router changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvPolicy {
    /// Those of the window are computed again.
    Refresh,
    /// They stay: the cache then holds what several routers made.
    Stale,
}

/// One way to adapt. The defaults of steps and of the router's learning rate are the papers'; those of layers, of the
/// interval (the paper's: 128) and of SLOT's rate are what did best in `docs/benchmarks.md`, "Adaptation".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdaptationConfig {
    pub method: AdaptationMethod,
    /// Gradient steps of a phase.
    pub steps: usize,
    #[serde(serialize_with = "shortest")]
    pub learning_rate: f32,
    /// Tokens between phases; 0 adapts to the prompt alone.
    pub interval: usize,
    /// Phases of a sequence, the prompt's included.
    pub max_phases: usize,
    /// The newest tokens that are learnt from; those before are context.
    pub window: usize,
    /// Every phase starts from nothing instead of what the last one found.
    pub reset_each_phase: bool,
    pub layers: RouterLayers,
    pub gradient: RouterGradient,
    pub kv: KvPolicy,
}

/// 0.05 as 0.05: as a JSON value it would be the nearest f32 in all its digits.
fn shortest<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    let shortest = value.to_string().parse();
    serializer.serialize_f64(shortest.unwrap_or_else(|_| f64::from(*value)))
}

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {message}")]
pub struct AdaptationConfigError {
    pub field: &'static str,
    pub message: String,
}

impl Default for RouterLayers {
    /// The paper's: half of all layers.
    fn default() -> Self {
        Self {
            depth: 0,
            share: 0.5,
            score: LayerScore::Confidence,
            order: ScoreOrder::High,
            weighted: false,
        }
    }
}

impl AdaptationConfig {
    /// The last layer, 5 steps at 0.05, to the prompt alone.
    pub fn router() -> Self {
        Self {
            method: AdaptationMethod::Router,
            steps: 5,
            learning_rate: 0.05,
            interval: 0,
            max_phases: 4,
            window: 512,
            reset_each_phase: false,
            layers: RouterLayers {
                depth: 1,
                ..RouterLayers::default()
            },
            gradient: RouterGradient::Exact,
            kv: KvPolicy::Refresh,
        }
    }

    /// SLOT adapts to the prompt once in 5 steps. Its code's rate is 0.1.
    pub fn slot() -> Self {
        Self {
            method: AdaptationMethod::Slot,
            learning_rate: 0.01,
            max_phases: 1,
            ..Self::router()
        }
    }

    /// Checks every range.
    pub fn check(&self) -> Result<(), AdaptationConfigError> {
        let check = |field, is_right: bool, message: String| match is_right {
            true => Ok(()),
            false => Err(AdaptationConfigError { field, message }),
        };
        let (steps, phases, window) = (self.steps, self.max_phases, self.window);
        let rate = self.learning_rate;
        check(
            "steps",
            (1..=MAX_STEPS).contains(&steps),
            format!("must be 1 to {MAX_STEPS}, not {steps}"),
        )?;
        check(
            "learning_rate",
            rate > 0.0 && rate <= 10.0,
            format!("must be above 0 and at most 10, not {rate}"),
        )?;
        check(
            "max_phases",
            (1..=MAX_PHASES).contains(&phases),
            format!("must be 1 to {MAX_PHASES}, not {phases}"),
        )?;
        check(
            "window",
            window >= MIN_CONTEXT,
            format!("must be at least {MIN_CONTEXT} tokens, not {window}"),
        )?;
        let share = self.layers.share;
        check(
            "layers.share",
            share > 0.0 && share <= 1.0,
            format!("must be above 0 and at most 1, not {share}"),
        )
    }
}
