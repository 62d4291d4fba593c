//! How likely the leading answer to a prompt is right, by what is known of the samples so far: a
//! small logistic model over named features, read from a file that `ponder train calibration`
//! writes.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::votes::{Votes, stays_ahead};

/// Version of the file's shape.
const SCHEMA: &str = "ponder.calibration.v1";
/// Names of the features, in the order of [`Evidence::features`].
pub const FEATURES: [&str; 5] = [
    "value_logit",
    "logprob",
    "agreement_logit",
    "log_samples",
    "log_tokens",
];
/// Values this near 0 and 1 are certain enough for a logarithm of odds.
const EDGE: f64 = 1e-3;
/// Larger weights are a mistake, not a model.
const MAX_WEIGHT: f64 = 1e6;

/// What is known of one sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// The reward's word, in 0..=1; `None` where it has none yet.
    pub value: Option<f64>,
    /// Mean log-probability of its tokens.
    pub logprob: f64,
    pub num_tokens: usize,
}

/// What speaks for the leading answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evidence {
    /// Means over the samples that gave it.
    pub value: Option<f64>,
    pub logprob: f64,
    pub num_tokens: f64,
    /// How many they are, those of the other answer that has most, and those of all answers.
    pub num_votes: usize,
    pub num_second: usize,
    pub num_samples: usize,
}

impl Evidence {
    /// Of some votes and of what is known of each; `None` without any.
    pub fn of(votes: &Votes, sampled: impl Fn(usize) -> Sampled) -> Option<Self> {
        let leader = votes.leader()?;
        let (num_votes, num_second) = votes.first_two();
        let samples: Vec<Sampled> = leader.nodes.iter().map(|id| sampled(*id)).collect();
        let count = samples.len() as f64;
        let mean = |of: fn(&Sampled) -> f64| -> f64 { samples.iter().map(of).sum::<f64>() / count };
        let values: Vec<f64> = samples.iter().filter_map(|sample| sample.value).collect();
        Some(Self {
            value: (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64),
            logprob: mean(|sample| sample.logprob),
            num_tokens: mean(|sample| sample.num_tokens as f64),
            num_votes,
            num_second,
            num_samples: votes.num_votes(),
        })
    }

    /// The same with more samples that all agree with the leading answer.
    pub fn with_agreeing(self, count: usize) -> Self {
        Self {
            num_votes: self.num_votes + count,
            num_samples: self.num_samples + count,
            ..self
        }
    }

    /// The probability that more samples would not change the leading answer.
    pub fn stays_ahead(&self) -> f64 {
        stays_ahead(self.num_votes, self.num_second)
    }

    /// Log odds of the value and of the share that agrees (by Laplace's rule, so that seven of
    /// seven say more than one of one), the likelihood, and how many samples and tokens there are.
    pub fn features(&self) -> [f64; FEATURES.len()] {
        let logit = |share: f64| {
            let share = share.clamp(EDGE, 1.0 - EDGE);
            (share / (1.0 - share)).ln()
        };
        let agreement = (self.num_votes as f64 + 1.0) / (self.num_samples as f64 + 2.0);
        [
            logit(self.value.unwrap_or(0.5)),
            self.logprob.clamp(-100.0, 0.0),
            logit(agreement),
            (self.num_samples as f64).ln(),
            (self.num_tokens + 1.0).ln(),
        ]
    }
}

/// Weights of the features, for values of one kind of reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    schema: String,
    /// The reward whose values it was fitted to, as in the API; used with no other.
    pub reward: String,
    pub intercept: f64,
    /// By their names; those left out are 0.
    pub weights: BTreeMap<String, f64>,
}

/// Why a file is no calibration.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("not a calibration: {0}")]
    Json(#[from] serde_json::Error),
    #[error("its schema is {0:?}, not {SCHEMA:?}: fit it again with this version")]
    Schema(String),
    #[error("it has a weight of {name:?}; the features are {}", FEATURES.join(", "))]
    Feature { name: String },
    #[error("{0} is not a usable number")]
    Number(String),
}

impl Calibration {
    pub fn new(reward: &str, intercept: f64, weights: [f64; FEATURES.len()]) -> Self {
        let names = FEATURES.into_iter().map(str::to_owned);
        Self {
            schema: SCHEMA.to_owned(),
            reward: reward.to_owned(),
            intercept,
            weights: names.zip(weights).collect(),
        }
    }

    pub fn load(path: &Path) -> Result<Self, CalibrationError> {
        let read: Self = serde_json::from_slice(&std::fs::read(path)?)?;
        read.checked()
    }

    fn checked(self) -> Result<Self, CalibrationError> {
        if self.schema != SCHEMA {
            return Err(CalibrationError::Schema(self.schema));
        }
        let is_usable = |value: f64| value.abs() <= MAX_WEIGHT;
        if !is_usable(self.intercept) {
            return Err(CalibrationError::Number("intercept".to_owned()));
        }
        for (name, weight) in &self.weights {
            if !FEATURES.contains(&name.as_str()) {
                return Err(CalibrationError::Feature { name: name.clone() });
            }
            if !is_usable(*weight) {
                return Err(CalibrationError::Number(name.clone()));
            }
        }
        Ok(self)
    }

    /// How likely the leading answer is right.
    pub fn probability(&self, evidence: &Evidence) -> f64 {
        self.probability_of(evidence.features())
    }

    /// The same of its features alone.
    pub fn probability_of(&self, features: [f64; FEATURES.len()]) -> f64 {
        let features = FEATURES.iter().zip(features);
        let weighed = features.map(|(name, value)| {
            let weight = self.weights.get(*name).copied();
            weight.unwrap_or_default() * value
        });
        let sum = self.intercept + weighed.sum::<f64>();
        1.0 / (1.0 + (-sum).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(value: f64, num_votes: usize, num_samples: usize) -> Evidence {
        Evidence {
            value: Some(value),
            logprob: -0.5,
            num_tokens: 9.0,
            num_votes,
            num_second: 0,
            num_samples,
        }
    }

    #[test]
    fn evidence_is_that_of_the_leading_answer() {
        let mut votes = Votes::default();
        for (at, (answer, weight)) in [("a", 0.5), ("b", 0.9), ("a", 0.7)].iter().enumerate() {
            votes.add((*answer).to_owned(), at, *weight);
        }
        let sampled = |at: usize| Sampled {
            value: Some([0.5, 0.9, 0.7][at]),
            logprob: -(at as f64),
            num_tokens: 10 * (at + 1),
        };
        let evidence = Evidence::of(&votes, sampled).unwrap();
        assert!((evidence.value.unwrap() - 0.6).abs() < 1e-12);
        assert_eq!((evidence.logprob, evidence.num_tokens), (-1.0, 20.0));
        assert_eq!(
            (
                evidence.num_votes,
                evidence.num_second,
                evidence.num_samples
            ),
            (2, 1, 3)
        );
        assert_eq!(evidence.stays_ahead(), stays_ahead(2, 1));
        assert_eq!(Evidence::of(&Votes::default(), sampled), None);
        // 3 of 5 by Laplace's rule.
        let features = evidence.features();
        assert!((features[2] - 1.5_f64.ln()).abs() < 1e-12);
        assert!((features[3] - 3_f64.ln()).abs() < 1e-12);
        assert!((features[4] - 21_f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn a_weight_of_one_gives_the_value_back() {
        let identity = Calibration::new("prm", 0.0, [1.0, 0.0, 0.0, 0.0, 0.0]);
        for value in [0.01, 0.3, 0.9] {
            let probability = identity.probability(&evidence(value, 1, 1));
            assert!((probability - value).abs() < 1e-12);
        }
        // What is certain stays a number.
        assert!(identity.probability(&evidence(1.0, 1, 1)) < 1.0);
        let agreement = Calibration::new("prm", 0.0, [0.0, 0.0, 1.0, 0.0, 0.0]);
        let probability = agreement.probability(&evidence(0.5, 7, 7));
        assert!((probability - 8.0 / 9.0).abs() < 1e-12);
        let more = evidence(0.5, 3, 5).with_agreeing(2);
        assert_eq!((more.num_votes, more.num_samples), (5, 7));
    }

    #[test]
    fn files_are_checked() {
        let read = |text: &str| {
            let read: Calibration = serde_json::from_str(text).unwrap();
            read.checked().map_err(|error| error.to_string())
        };
        let file = |weights: &str| {
            format!(
                r#"{{"schema": "{SCHEMA}", "reward": "prm", "intercept": 0.5,
                "weights": {weights}, "report": {{"auc": 0.7}}}}"#
            )
        };
        let calibration = read(&file(r#"{"logprob": 2.0}"#)).unwrap();
        let expected = 1.0 / (1.0 + 0.5_f64.exp());
        assert!((calibration.probability(&evidence(0.9, 1, 1)) - expected).abs() < 1e-12);
        assert!(
            read(&file(r#"{"luck": 2.0}"#))
                .unwrap_err()
                .contains("luck")
        );
        assert!(
            read(&file(r#"{"logprob": 1e9}"#))
                .unwrap_err()
                .starts_with("logprob")
        );
        let other = file("{}").replace(".v1", ".v0");
        assert!(read(&other).unwrap_err().contains("fit it again"));
    }
}
