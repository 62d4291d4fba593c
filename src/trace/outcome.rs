//! What an oracle says of a trace, later: outcomes of answers, from which the values of steps are
//! inferred again.

use serde::{Deserialize, Serialize};

use super::record::TraceRecord;
use super::values::infer_process_rewards;

/// Longest corrected answer, in bytes.
const MAX_CORRECTION_BYTES: usize = 1 << 20;
/// Most answers of which one request speaks.
pub const MAX_LEAVES: usize = 1 << 16;

/// The oracle's word. At least one part is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutcomeUpdate {
    /// Whether the chosen answer is right, in 0..=1.
    pub outcome: Option<f64>,
    /// The same for single answers, by the node with which they end.
    #[serde(default)]
    pub leaves: Vec<LeafOutcome>,
    /// What the answer should have been.
    pub correction: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeafOutcome {
    pub node: usize,
    pub outcome: f64,
}

/// Why an outcome was not taken; the parameter and what to change.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct OutcomeError {
    pub param: &'static str,
    pub message: String,
}

fn refuse<T>(param: &'static str, message: impl Into<String>) -> Result<T, OutcomeError> {
    let message = message.into();
    Err(OutcomeError { param, message })
}

fn check(param: &'static str, outcome: f64) -> Result<(), OutcomeError> {
    if (0.0..=1.0).contains(&outcome) {
        return Ok(());
    }
    refuse(param, format!("{param} must be a number from 0 to 1"))
}

impl TraceRecord {
    /// Takes an oracle's word: all of it or, on an error, nothing.
    pub fn apply(&mut self, update: &OutcomeUpdate) -> Result<(), OutcomeError> {
        if *update == OutcomeUpdate::default() {
            return refuse("outcome", "give an outcome, leaves or a correction");
        }
        if let Some(outcome) = update.outcome {
            check("outcome", outcome)?;
            if self.best().is_none() {
                return refuse("outcome", "the trace has no whole answer");
            }
        }
        if update.leaves.len() > MAX_LEAVES {
            return refuse("leaves", format!("leaves takes at most {MAX_LEAVES}"));
        }
        for leaf in &update.leaves {
            check("leaves", leaf.outcome)?;
            if !self
                .nodes
                .get(leaf.node)
                .is_some_and(|node| node.is_whole())
            {
                let message = format!("node {} is not the end of a whole answer", leaf.node);
                return refuse("leaves", message);
            }
        }
        let length = update.correction.as_ref().map_or(0, String::len);
        if length > MAX_CORRECTION_BYTES {
            let message = format!("correction is longer than {MAX_CORRECTION_BYTES} bytes");
            return refuse("correction", message);
        }
        for leaf in &update.leaves {
            self.nodes[leaf.node].outcome = Some(leaf.outcome);
        }
        if let (Some(outcome), Some(best)) = (update.outcome, self.best()) {
            self.outcome = Some(outcome);
            self.nodes[best].outcome = Some(outcome);
        }
        if let Some(correction) = &update.correction
            && !self.is_redacted
        {
            self.correction = Some(correction.clone());
        }
        // An imported record brings any number.
        self.revision = self.revision.saturating_add(1);
        self.infer();
        Ok(())
    }

    /// Gives each node what the outcomes of its tree imply.
    pub fn infer(&mut self) {
        let rewards = infer_process_rewards(self);
        for (node, reward) in self.nodes.iter_mut().zip(rewards) {
            node.process = reward;
        }
    }

    /// Whether the chosen answer is right, as far as is known.
    pub fn chosen_outcome(&self) -> Option<f64> {
        let of_best = || self.best().and_then(|best| self.nodes[best].outcome);
        self.outcome.or_else(of_best)
    }

    /// Whether any answer's outcome is known.
    pub fn has_outcome(&self) -> bool {
        self.outcome.is_some() || self.nodes.iter().any(|node| node.outcome.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::testing::{node, trace_of};

    fn trace() -> TraceRecord {
        trace_of(vec![
            node(None, "", None),
            node(Some(0), "a", None),
            node(Some(1), "right", Some("stop")),
            node(Some(1), "wrong", Some("stop")),
        ])
    }

    #[test]
    fn outcomes_imply_process_rewards() {
        let mut trace = trace();
        let update = OutcomeUpdate {
            outcome: Some(1.0),
            leaves: vec![LeafOutcome {
                node: 3,
                outcome: 0.0,
            }],
            correction: None,
        };
        trace.apply(&update).unwrap();
        assert_eq!(trace.revision, 2);
        assert_eq!(trace.chosen_outcome(), Some(1.0));
        let value = |id: usize| trace.nodes[id].process.map(|p| p.quality_value);
        // Node 1 is two steps from a right answer, the wrong leaf takes its distance.
        assert_eq!(
            [value(0), value(1), value(2), value(3)],
            [Some(0.0), Some(0.5), Some(1.0), Some(0.25)]
        );
    }

    #[test]
    fn the_last_revision_is_followed_by_itself() {
        let mut trace = trace();
        trace.revision = u64::MAX;
        let update = OutcomeUpdate {
            outcome: Some(1.0),
            ..Default::default()
        };
        trace.apply(&update).unwrap();
        assert_eq!((trace.revision, trace.outcome), (u64::MAX, Some(1.0)));
    }

    #[test]
    fn bad_outcomes_change_nothing() {
        let good = LeafOutcome {
            node: 2,
            outcome: 1.0,
        };
        let bad = |update: OutcomeUpdate, param: &str| {
            let mut changed = trace();
            assert_eq!(changed.apply(&update).unwrap_err().param, param);
            assert_eq!(changed, trace());
        };
        bad(OutcomeUpdate::default(), "outcome");
        for outcome in [-0.1, 1.1, f64::NAN] {
            let outcome = Some(outcome);
            bad(
                OutcomeUpdate {
                    outcome,
                    ..Default::default()
                },
                "outcome",
            );
        }
        for node in [0, 1, 9] {
            let leaves = vec![good, LeafOutcome { node, outcome: 1.0 }];
            bad(
                OutcomeUpdate {
                    leaves,
                    ..Default::default()
                },
                "leaves",
            );
        }
    }
}
