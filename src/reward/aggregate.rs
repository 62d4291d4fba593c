//! Several step scores as one number.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How the scores of an answer's steps become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    Last,
    Min,
    Prod,
    Mean,
}

impl Aggregate {
    /// One number of the scores in their order; 0 of none.
    pub fn of(self, scores: &[f64]) -> f64 {
        let Some(last) = scores.last() else {
            return 0.0;
        };
        match self {
            Self::Last => *last,
            Self::Min => scores.iter().copied().fold(f64::INFINITY, f64::min),
            Self::Prod => scores.iter().product(),
            Self::Mean => scores.iter().sum::<f64>() / scores.len() as f64,
        }
    }
}
