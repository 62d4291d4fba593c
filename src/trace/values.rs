//! Values of steps, inferred from a finished tree whose answers are known to be right or wrong.

use super::record::TraceRecord;

/// An outcome from here on counts as right.
const RIGHT: f64 = 1.0 - 1e-9;

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

/// One value a node; `None` where no outcome is known at or below it.
pub fn infer_values(trace: &TraceRecord, target: Target) -> Vec<Option<f64>> {
    match target {
        Target::RestMcts => rest_mcts(trace),
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

fn rest_mcts(trace: &TraceRecord) -> Vec<Option<f64>> {
    let nodes = &trace.nodes;
    // Steps to a right answer, one more than remain; infinite where none is below.
    let mut distance = vec![f64::INFINITY; nodes.len()];
    let mut is_known = vec![false; nodes.len()];
    for id in (0..nodes.len()).rev() {
        if let Some(outcome) = nodes[id].outcome {
            is_known[id] = true;
            if outcome >= RIGHT {
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
    if !distance[0].is_finite() {
        // Nothing is right: how far a step leads away is unknown, but it leads nowhere.
        return is_known.iter().map(|known| known.then_some(0.0)).collect();
    }
    let mut values = vec![None; nodes.len()];
    values[0] = Some(0.0);
    for id in 1..nodes.len() {
        let Some(parent) = nodes[id].parent.filter(|_| is_known[id]) else {
            continue;
        };
        let above: f64 = values[parent].unwrap_or(0.0);
        let gain = if distance[id].is_finite() {
            (1.0 - above) / distance[id]
        } else {
            // A wrong node is as far as the last node above it from which the right answer was reached.
            distance[id] = distance[parent];
            -(1.0 - above) / distance[parent]
        };
        values[id] = Some((above + gain).max(0.0));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{NodeRecord, SCHEMA};

    /// Nodes as (parent, outcome).
    fn trace(nodes: &[(Option<usize>, Option<f64>)]) -> TraceRecord {
        let node = |(parent, outcome): &(Option<usize>, Option<f64>)| NodeRecord {
            parent: *parent,
            token_ids: vec![1],
            text: String::new(),
            end: outcome.map(|_| "stop".to_owned()),
            logprob: 0.0,
            score: None,
            outcome: *outcome,
            value: 0.0,
            visit_count: 0,
            is_pruned: false,
            is_rollout: false,
            duplicate_paths: Vec::new(),
            branch_path: Vec::new(),
        };
        TraceRecord {
            schema: SCHEMA.to_owned(),
            id: String::new(),
            model: String::new(),
            created: 0,
            strategy: String::new(),
            seed: 0,
            tags: Vec::new(),
            search: serde_json::Value::Null,
            sampling: serde_json::Value::Null,
            prompt_token_ids: vec![0],
            nodes: nodes.iter().map(node).collect(),
        }
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
