//! Values of steps, inferred from a finished tree whose answers are known to be right or wrong.

use serde::{Deserialize, Serialize};

use super::record::TraceRecord;

/// An outcome from here on counts as right.
const RIGHT: f64 = 1.0 - 1e-9;

pub(super) fn is_right(outcome: f64) -> bool {
    outcome >= RIGHT
}

/// What a value means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Target {
    /// ReST-MCTS* (arXiv 2406.03816, section 3.1 and the released code): values climb to 1 along right paths and
    /// fall where a path leaves the last point from which a right answer was reached.
    #[default]
    RestMcts,
    /// VM-MCTS (arXiv 2508.19576): the mean outcome of the answers below.
    Mean,
}

/// What a finished tree says about one of its steps (ReST-MCTS*, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ProcessReward {
    /// Steps to the nearest right answer, one more than remain (the released code's count); of a wrong step that of
    /// the last step above it from which a right answer was reached. `None` where nothing in the tree is right.
    pub distance: Option<f64>,
    /// What the step adds to the value, before the value is kept from falling below 0.
    pub weighted_reward: f64,
    /// 1 at right answers, 0 at the root.
    pub quality_value: f64,
}

/// One value a node; `None` where no outcome is known at or below it.
pub fn infer_values(trace: &TraceRecord, target: Target) -> Vec<Option<f64>> {
    match target {
        Target::RestMcts => {
            let rewards = infer_process_rewards(trace).into_iter();
            rewards
                .map(|reward| reward.map(|reward| reward.quality_value))
                .collect()
        }
        Target::Mean => mean(trace),
    }
}

fn mean(trace: &TraceRecord) -> Vec<Option<f64>> {
    let mut sums: Vec<(f64, f64)> = trace
        .nodes
        .iter()
        .map(|node| match node.outcome {
            // Merged samples were sampled as often as their count says.
            Some(outcome) => {
                let weight = 1.0 + node.duplicate_paths.len() as f64;
                (outcome * weight, weight)
            }
            None => (0.0, 0.0),
        })
        .collect();
    for id in (1..trace.nodes.len()).rev() {
        if let Some(parent) = trace.nodes[id].parent {
            let (sum, weight) = sums[id];
            sums[parent].0 += sum;
            sums[parent].1 += weight;
        }
    }
    let value = |(sum, weight)| (weight > 0.0).then(|| sum / weight);
    sums.into_iter().map(value).collect()
}

/// One a node; `None` where no outcome is known at or below it.
pub fn infer_process_rewards(trace: &TraceRecord) -> Vec<Option<ProcessReward>> {
    let nodes = &trace.nodes;
    // Infinite where no right answer is below.
    let mut distance = vec![f64::INFINITY; nodes.len()];
    let mut is_known = vec![false; nodes.len()];
    for id in (0..nodes.len()).rev() {
        if let Some(outcome) = nodes[id].outcome {
            is_known[id] = true;
            if is_right(outcome) {
                distance[id] = 1.0;
            }
        }
        if let Some(parent) = nodes[id].parent
            && is_known[id]
        {
            is_known[parent] = true;
            distance[parent] = distance[parent].min(distance[id] + 1.0);
        }
    }
    let reward = |distance: Option<f64>, weighted_reward: f64, above: f64| ProcessReward {
        distance,
        weighted_reward,
        quality_value: (above + weighted_reward).max(0.0),
    };
    if distance.first().is_none_or(|root| !root.is_finite()) {
        // Nothing is right: how far a step leads away is unknown, but it leads nowhere.
        let nothing = reward(None, 0.0, 0.0);
        return is_known
            .iter()
            .map(|known| known.then_some(nothing))
            .collect();
    }
    let mut rewards: Vec<Option<ProcessReward>> = vec![None; nodes.len()];
    rewards[0] = Some(reward(Some(distance[0]), 0.0, 0.0));
    for id in 1..nodes.len() {
        let Some(parent) = nodes[id].parent.filter(|_| is_known[id]) else {
            continue;
        };
        let above = rewards[parent].map_or(0.0, |reward| reward.quality_value);
        let sign = if distance[id].is_finite() {
            1.0
        } else {
            distance[id] = distance[parent];
            -1.0
        };
        let weighted = sign * (1.0 - above) / distance[id];
        rewards[id] = Some(reward(Some(distance[id]), weighted, above));
    }
    rewards
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::NodeRecord;
    use crate::trace::testing::{node, trace_of};

    /// Nodes as (parent, outcome).
    fn trace(nodes: &[(Option<usize>, Option<f64>)]) -> TraceRecord {
        let nodes = nodes.iter().map(|(parent, outcome)| NodeRecord {
            outcome: *outcome,
            ..node(*parent, "", outcome.map(|_| "stop"))
        });
        trace_of(nodes.collect())
    }

    #[test]
    fn values_climb_to_right_answers_and_fall_off_the_path() {
        // 0 - 1 - 2 (right)
        //      \- 3 - 4 (wrong)      5: nothing known
        let trace = trace(&[
            (None, None),
            (Some(0), None),
            (Some(1), Some(1.0)),
            (Some(1), None),
            (Some(3), Some(0.0)),
            (Some(0), None),
        ]);
        assert!(trace.is_tree());
        let values = infer_values(&trace, Target::RestMcts);
        // Root: m = 3; node 1: m = 2, 0 + 1/2; right leaf: m = 1, 1/2 + 1/2; the wrong branch takes node 1's m:
        // 1/2 - (1/2)/2 = 1/4, then 1/4 - (3/4)/2 < 0.
        assert_eq!(
            values,
            [Some(0.0), Some(0.5), Some(1.0), Some(0.25), Some(0.0), None]
        );
        let rewards = infer_process_rewards(&trace);
        let weighted: Vec<Option<f64>> = rewards
            .iter()
            .map(|reward| reward.map(|reward| reward.weighted_reward))
            .collect();
        assert_eq!(
            weighted,
            [
                Some(0.0),
                Some(0.5),
                Some(0.5),
                Some(-0.25),
                Some(-0.375),
                None
            ]
        );
        let distances = rewards
            .iter()
            .map(|reward| reward.and_then(|reward| reward.distance));
        assert_eq!(
            distances.collect::<Vec<_>>(),
            [Some(3.0), Some(2.0), Some(1.0), Some(2.0), Some(2.0), None]
        );
        let means = infer_values(&trace, Target::Mean);
        assert_eq!(
            means,
            [Some(0.5), Some(0.5), Some(1.0), Some(0.0), Some(0.0), None]
        );
    }

    #[test]
    fn without_a_right_answer_nothing_has_value() {
        let trace = trace(&[(None, None), (Some(0), Some(0.5)), (Some(0), None)]);
        assert_eq!(
            infer_values(&trace, Target::RestMcts),
            [Some(0.0), Some(0.0), None]
        );
    }
}
