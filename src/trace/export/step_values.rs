//! Values of steps along each path of the tree, for value models (ReST-MCTS*, VM-MCTS) and process
//! reward models.

use serde_json::json;

use super::tree::Tree;
use super::{Plan, Row, object};
use crate::trace::infer_process_rewards;

/// From this value of the search on a step counts as good, where no outcome says so.
const GOOD: f64 = 0.5;

/// What is known of a step.
#[derive(Clone, Copy)]
struct StepValue {
    value: f64,
    label: bool,
}

/// One row a leaf, up to its first step of which nothing is known; none for what earlier rows hold already.
struct Paths {
    source: &'static str,
    steps: Vec<Option<StepValue>>,
    ends: std::vec::IntoIter<End>,
}

/// Where the steps of a row end.
struct End {
    last: usize,
    /// Steps that an earlier row holds.
    first_new: usize,
}

pub(super) fn plan(tree: &Tree) -> impl Plan + use<> {
    let (source, steps) = if tree.has_outcome {
        ("outcome", from_outcomes(tree))
    } else {
        ("search", from_search(tree))
    };
    let ends = ends(tree, &steps).into_iter();
    Paths {
        source,
        steps,
        ends,
    }
}

/// Each node is looked at once or twice, however deep the tree is.
fn ends(tree: &Tree, steps: &[Option<StepValue>]) -> Vec<End> {
    let num_nodes = steps.len();
    // The last node of which something is known on the way to each node, all above it included.
    let mut last_known = vec![0; num_nodes];
    let mut depth = vec![0; num_nodes];
    for id in 1..num_nodes {
        let parent = tree.node(id).parent.unwrap_or_default();
        depth[id] = depth[parent] + 1;
        let is_known = last_known[parent] == parent && steps[id].is_some();
        last_known[id] = if is_known { id } else { last_known[parent] };
    }
    let mut is_held = vec![false; num_nodes];
    is_held[0] = true;
    let mut ends = Vec::new();
    for leaf in tree.leaves() {
        let last = last_known[leaf];
        if is_held[last] {
            continue;
        }
        // What is held goes up to the root.
        let mut id = last;
        while !is_held[id] {
            is_held[id] = true;
            id = tree.node(id).parent.unwrap_or_default();
        }
        ends.push(End {
            last,
            first_new: depth[id],
        });
    }
    ends
}

impl Plan for Paths {
    fn next(&mut self, tree: &Tree) -> Option<Option<Row>> {
        let End { last, first_new } = self.ends.next()?;
        let path = tree.trace.path(last);
        let known = || path.iter().filter_map(|id| self.steps[*id]);
        let texts = path.iter().map(|id| &tree.node(*id).text);
        let token_ids = path.iter().map(|id| &tree.node(*id).token_ids);
        let inserted = path.iter().map(|id| tree.trace.inserted_in(&[*id]));
        let shape = json!({
            "prompt": tree.trace.prompt_text,
            "completions": texts.collect::<Vec<_>>(),
            "prompt_token_ids": tree.trace.prompt_token_ids,
            "token_ids": token_ids.collect::<Vec<_>>(),
            "is_complete": tree.node(last).end.as_deref() == Some("stop"),
            "labels": known().map(|step| step.label).collect::<Vec<_>>(),
            "values": known().map(|step| step.value).collect::<Vec<_>>(),
            "inserted": inserted.collect::<Vec<_>>(),
            "first_new": first_new,
            "value_source": self.source,
        });
        Some(Some(Row {
            shape: object(shape),
            text: tree.trace.answer_text(last),
            node: Some(last),
        }))
    }
}

/// Inferred values, and whether a right answer is at or below a step.
fn from_outcomes(tree: &Tree) -> Vec<Option<StepValue>> {
    let mut has_right: Vec<bool> = (0..tree.children.len())
        .map(|id| tree.is_right(id))
        .collect();
    for id in (0..has_right.len()).rev() {
        has_right[id] |= tree.children[id].iter().any(|child| has_right[*child]);
    }
    let rewards = infer_process_rewards(&tree.trace).into_iter();
    rewards
        .zip(has_right)
        .map(|(reward, label)| {
            reward.map(|reward| StepValue {
                value: reward.quality_value,
                label,
            })
        })
        .collect()
}

fn from_search(tree: &Tree) -> Vec<Option<StepValue>> {
    let step = |id: usize| {
        let value = tree.node(id).value;
        tree.is_scored(id).then_some(StepValue {
            value,
            label: value >= GOOD,
        })
    };
    (0..tree.children.len()).map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::export::drain;
    use crate::trace::testing::{node, trace_of};
    use crate::trace::{NodeRecord, TraceRecord};
    use serde_json::Value;

    fn rows(tree: &Tree) -> Vec<Row> {
        drain(plan(tree), tree)
    }

    fn shapes(trace: &TraceRecord) -> Vec<Value> {
        let rows = rows(&Tree::new(trace)).into_iter();
        rows.map(|row| Value::Object(row.shape)).collect()
    }

    /// A row of steps of one token each.
    fn row(texts: Value, labels: Value, values: Value, first_new: usize, source: &str) -> Value {
        let num_steps = texts.as_array().unwrap().len();
        let has_end = ["b", "d"].contains(&texts[num_steps - 1].as_str().unwrap());
        let inserted = vec![json!([]); num_steps];
        json!({
            "inserted": inserted,
            "prompt": "<user>question<assistant>",
            "completions": texts,
            "prompt_token_ids": [0],
            "token_ids": vec![[1]; num_steps],
            "is_complete": has_end,
            "labels": labels,
            "values": values,
            "first_new": first_new,
            "value_source": source,
        })
    }

    fn tree(outcomes: [Option<f64>; 2]) -> TraceRecord {
        // 0 - a - b (right)
        //      \- c - d (wrong, a rollout)      e: nothing known
        let answer = |parent, text, outcome| NodeRecord {
            outcome,
            ..node(Some(parent), text, Some("stop"))
        };
        let scored = |value, node| NodeRecord {
            value,
            score: Some(value),
            ..node
        };
        trace_of(vec![
            node(None, "", None),
            scored(0.5, node(Some(0), "a", None)),
            scored(1.0, answer(1, "b", outcomes[0])),
            scored(0.25, node(Some(1), "c", None)),
            NodeRecord {
                is_rollout: true,
                ..answer(3, "d", outcomes[1])
            },
            node(Some(0), "e", None),
        ])
    }

    #[test]
    fn values_come_from_outcomes_where_there_are_any() {
        let source = "outcome";
        let rows = shapes(&tree([Some(1.0), Some(0.0)]));
        let right = row(
            json!(["a", "b"]),
            json!([true, true]),
            json!([0.5, 1.0]),
            0,
            source,
        );
        let wrong = row(
            json!(["a", "c", "d"]),
            json!([true, false, false]),
            json!([0.5, 0.25, 0.0]),
            1,
            source,
        );
        assert_eq!(rows, [right.clone(), wrong]);
        // The other path adds nothing that is known.
        assert_eq!(shapes(&tree([Some(1.0), None])), [right]);
        let wrong = row(
            json!(["a", "b"]),
            json!([false, false]),
            json!([0.0, 0.0]),
            0,
            source,
        );
        assert_eq!(shapes(&tree([Some(0.0), None])), [wrong]);
    }

    #[test]
    fn values_of_the_search_stand_in_for_outcomes() {
        let source = "search";
        let first = row(
            json!(["a", "b"]),
            json!([true, true]),
            json!([0.5, 1.0]),
            0,
            source,
        );
        // The search never looked at the rollout.
        let second = row(
            json!(["a", "c"]),
            json!([true, false]),
            json!([0.5, 0.25]),
            1,
            source,
        );
        assert_eq!(shapes(&tree([None, None])), [first, second]);
    }

    #[test]
    fn an_answer_is_complete_when_it_ended_by_itself() {
        for (end, is_complete) in [("stop", true), ("length", false), ("cut", false)] {
            let mut trace = tree([Some(1.0), None]);
            trace.nodes[2].end = Some(end.to_owned());
            trace.nodes[2].token_ids = vec![5, 6];
            let row = shapes(&trace).remove(0);
            assert_eq!(row["is_complete"], is_complete, "{end}");
            assert_eq!(row["token_ids"], json!([[1], [5, 6]]));
        }
    }

    #[test]
    fn the_signals_are_those_of_the_last_known_step() {
        let trace = tree([None, None]);
        let rows = rows(&Tree::new(&trace));
        assert_eq!((rows[1].node, rows[1].text.as_str()), (Some(3), "ac"));
    }
}
