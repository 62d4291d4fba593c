//! How sure a model is of what it writes (DeepConf, arXiv 2508.15260, section 3.1): a token's
//! confidence is the negative mean log-probability of its likeliest candidates, that of a group the
//! mean over a window of tokens, and that of an answer the lowest of its groups'.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::spec::{SpecError, invalid, within};
use crate::engine::TokenLogprobs;

/// Candidates of a token that count, most likely first (the released code's `conf_topk`).
pub const CONFIDENCE_TOP_K: usize = 20;
/// What is less likely counts as this: the logarithm of about the smallest normal f32.
const MIN_LOGPROB: f64 = -88.0;
/// Answers that are sampled to their ends first (N_init in section 4.1). With a small `n`, half of
/// it.
const WARM_UP: usize = 16;
/// Tokens of a group. The paper's 2,048 are for traces of tens of thousands; answers of a few
/// hundred tokens need a group of the same share.
const WINDOW: usize = 32;
/// Longest window.
const MAX_WINDOW: usize = 32_768;
/// DeepConf-high keeps 90 % of the warm-up's answers, DeepConf-low 10 %. The high one is the safe
/// one.
const KEEP: f64 = 0.9;

/// How `deepconf` tells answers that go wrong.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfidenceRequest {
    /// Answers that are sampled to their ends first: their confidences say where the limit lies.
    pub warm_up: Option<usize>,
    /// The share of the warm-up's answers that lies above the limit: 0.1 stops most of the later
    /// ones, 0.9 few.
    pub keep: Option<f64>,
    /// Tokens over which confidence is averaged.
    pub window: Option<usize>,
}

/// A complete, checked [`ConfidenceRequest`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConfidenceSpec {
    pub warm_up: usize,
    pub keep: f64,
    pub window: usize,
}

impl ConfidenceSpec {
    /// What holds where a request says nothing and samples enough.
    pub const DEFAULT: Self = Self {
        warm_up: WARM_UP,
        keep: KEEP,
        window: WINDOW,
    };
}

impl ConfidenceRequest {
    /// Checks the fields; `n` answers are sampled.
    pub(super) fn resolve(self, n: usize) -> Result<ConfidenceSpec, SpecError> {
        let default = ConfidenceSpec::DEFAULT;
        let keep = self.keep.unwrap_or(default.keep);
        if !(keep > 0.0 && keep <= 1.0) {
            let message = format!("keep must be above 0 and at most 1, not {keep}");
            return invalid("confidence.keep", message);
        }
        let (warm_up, at) = (default.warm_up.min(n.div_ceil(2)), "confidence.warm_up");
        Ok(ConfidenceSpec {
            warm_up: within(at, self.warm_up, warm_up, 1, n)?,
            keep,
            window: within(
                "confidence.window",
                self.window,
                default.window,
                1,
                MAX_WINDOW,
            )?,
        })
    }
}

/// How a sample's confidence is measured, and where it ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConfidenceRule {
    pub window: usize,
    /// A sample ends with the first token behind which a whole group is below this.
    pub limit: Option<f64>,
}

impl ConfidenceRule {
    /// The lowest confidence of a group of these tokens, and whether one ended them.
    pub(super) fn measure(self, logprobs: &[TokenLogprobs]) -> (Option<f64>, bool) {
        let mut groups = Groups::new(self);
        let is_below = logprobs.iter().any(|token| groups.push(token));
        (groups.lowest(), is_below)
    }
}

/// The confidence of the last tokens of a sample while it grows.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    rule: ConfidenceRule,
    /// Of the tokens in the window.
    recent: VecDeque<f64>,
    sum: f64,
    /// Of whole groups.
    lowest: Option<f64>,
}

impl Groups {
    pub fn new(rule: ConfidenceRule) -> Self {
        Self {
            rule,
            recent: VecDeque::new(),
            sum: 0.0,
            lowest: None,
        }
    }

    /// Takes the next token; true when the group that ends with it is below the limit.
    pub fn push(&mut self, token: &TokenLogprobs) -> bool {
        let Some(confidence) = token_confidence(token) else {
            return false;
        };
        if self.recent.len() == self.rule.window {
            self.sum -= self.recent.pop_front().unwrap_or_default();
        }
        self.recent.push_back(confidence);
        self.sum += confidence;
        if self.recent.len() < self.rule.window {
            return false;
        }
        let mean = self.sum / self.rule.window as f64;
        self.lowest = Some(self.lowest.map_or(mean, |lowest| lowest.min(mean)));
        self.rule.limit.is_some_and(|limit| mean < limit)
    }

    /// That of the least confident group; a sample shorter than one is a group.
    pub fn lowest(&self) -> Option<f64> {
        let all = (!self.recent.is_empty()).then(|| self.sum / self.recent.len() as f64);
        self.lowest.or(all)
    }
}

/// `None` where no candidates were asked for.
fn token_confidence(token: &TokenLogprobs) -> Option<f64> {
    let top = &token.top[..token.top.len().min(CONFIDENCE_TOP_K)];
    let logprobs = top
        .iter()
        .map(|(_, logprob)| f64::from(*logprob).max(MIN_LOGPROB));
    (!top.is_empty()).then(|| -logprobs.sum::<f64>() / top.len() as f64)
}

/// The value below which a share of `values` lies, between two of them in proportion (NumPy's
/// `percentile`, which the released code uses).
pub(super) fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let at = share.clamp(0.0, 1.0) * (sorted.len().checked_sub(1)? as f64);
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token with this confidence.
    fn token(confidence: f32) -> TokenLogprobs {
        TokenLogprobs {
            token_id: 0,
            logprob: -0.1,
            top: vec![(0, 0.0), (1, -2.0 * confidence)],
        }
    }

    fn tokens(confidences: &[f32]) -> Vec<TokenLogprobs> {
        confidences.iter().copied().map(token).collect()
    }

    #[test]
    fn the_lowest_group_is_that_of_a_window() {
        let tokens = tokens(&[4.0, 2.0, 1.0, 3.0, 8.0]);
        let measure = |window, limit| ConfidenceRule { window, limit }.measure(&tokens);
        assert_eq!(measure(2, None), (Some(1.5), false));
        assert_eq!(measure(3, None), (Some(2.0), false));
        // Shorter than a group: one group.
        assert_eq!(measure(9, Some(100.0)), (Some(3.6), false));
        // Ends behind the third token, and what follows is not seen.
        assert_eq!(measure(2, Some(2.0)), (Some(1.5), true));
        // Strictly below.
        assert_eq!(measure(2, Some(1.5)), (Some(1.5), false));
        assert_eq!(measure(1, Some(3.0)), (Some(2.0), true));
    }

    #[test]
    fn only_the_likeliest_candidates_count_and_none_is_infinitely_unlikely() {
        let mut many = token(0.0);
        many.top = (0..25)
            .map(|id| (id, if id < 20 { -1.0 } else { -9.0 }))
            .collect();
        assert_eq!(token_confidence(&many), Some(1.0));
        many.top = vec![(0, 0.0), (1, f32::NEG_INFINITY)];
        assert_eq!(token_confidence(&many), Some(44.0));
        many.top.clear();
        assert_eq!(token_confidence(&many), None);
    }

    #[test]
    fn quantiles_are_numpys() {
        // numpy.percentile([1, 2, 4, 8], [10, 50, 90])
        let values = [8.0, 1.0, 4.0, 2.0];
        for (share, expected) in [(0.1, 1.3), (0.5, 3.0), (0.9, 6.8), (1.0, 8.0)] {
            assert!((quantile(&values, share).unwrap() - expected).abs() < 1e-12);
        }
        assert_eq!(quantile(&[3.0], 0.1), Some(3.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
