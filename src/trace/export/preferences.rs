//! Pairs of a better and a worse continuation of the same text, for preference training (DPO and
//! kin).

use serde_json::{Value, json};

use super::options::{ExportOptions, Level};
use super::tree::{Tree, is_above, is_same};
use super::{Plan, Row, object};
use crate::trace::{ProcessReward, infer_process_rewards};

/// The best and the worst that can be reached through a child.
#[derive(Clone, Copy)]
struct Span {
    /// Whether scores are known outcomes, rather than what the search thought: the two never compare.
    is_known: bool,
    best: Scored,
    worst: Scored,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Scored {
    node: usize,
    score: f64,
}

impl Span {
    fn of(node: usize, score: f64, is_known: bool) -> Self {
        let scored = Scored { node, score };
        Self {
            is_known,
            best: scored,
            worst: scored,
        }
    }

    /// Both spans; what is known outweighs what was thought, and the first of equals counts.
    fn merge(self, later: Self) -> Self {
        match (self.is_known, later.is_known) {
            (true, false) => self,
            (false, true) => later,
            _ => Self {
                is_known: self.is_known,
                best: if later.best.score > self.best.score {
                    later.best
                } else {
                    self.best
                },
                worst: if later.worst.score < self.worst.score {
                    later.worst
                } else {
                    self.worst
                },
            },
        }
    }
}

/// The pairs of each node's children, one node after the other, and then the corrected answer.
struct Pairs {
    level: Level,
    min_margin: f64,
    spans: Vec<Option<Span>>,
    /// The node whose children come next.
    parent: usize,
    pairs: std::vec::IntoIter<[Scored; 2]>,
    is_over: bool,
}

pub(super) fn plan(tree: &Tree, options: &ExportOptions) -> impl Plan + use<> {
    Pairs {
        level: options.level,
        min_margin: options.min_margin,
        spans: match options.level {
            Level::Answer => answer_spans(tree),
            Level::Step => step_spans(tree),
        },
        parent: 0,
        pairs: Vec::new().into_iter(),
        is_over: false,
    }
}

impl Plan for Pairs {
    fn next(&mut self, tree: &Tree) -> Option<Option<Row>> {
        loop {
            if let Some(pair) = self.pairs.next() {
                return Some(match self.level {
                    Level::Answer => answer_row(tree, pair),
                    Level::Step => step_row(tree, self.parent - 1, pair),
                });
            }
            let Some(children) = tree.children.get(self.parent) else {
                let is_last = !std::mem::replace(&mut self.is_over, true);
                let corrects = is_last && self.level == Level::Answer;
                return corrects.then(|| corrected_row(tree));
            };
            self.parent += 1;
            let spans = || children.iter().filter_map(|child| self.spans[*child]);
            let mut found = Vec::new();
            for is_known in [true, false] {
                let spans: Vec<Span> = spans().filter(|span| span.is_known == is_known).collect();
                found.extend(pairs(&spans, self.min_margin));
            }
            self.pairs = found.into_iter();
        }
    }
}

/// The whole answers at or below each node.
fn answer_spans(tree: &Tree) -> Vec<Option<Span>> {
    let mut spans: Vec<Option<Span>> = vec![None; tree.children.len()];
    for id in (1..spans.len()).rev() {
        let node = tree.node(id);
        let own = match node.outcome {
            _ if !node.is_whole() => None,
            Some(outcome) => Some(Span::of(id, outcome, true)),
            None => tree.has_value(id).then(|| Span::of(id, node.value, false)),
        };
        let below = tree.children[id].iter().filter_map(|child| spans[*child]);
        spans[id] = own.into_iter().chain(below).reduce(Span::merge);
    }
    spans
}

/// The steps themselves. Rollouts are no steps.
fn step_spans(tree: &Tree) -> Vec<Option<Span>> {
    let rewards = infer_process_rewards(&tree.trace).into_iter().enumerate();
    let span = |(id, reward): (usize, Option<ProcessReward>)| match reward {
        _ if tree.node(id).is_rollout => None,
        Some(reward) => Some(Span::of(id, reward.quality_value, true)),
        None => tree
            .is_scored(id)
            .then(|| Span::of(id, tree.node(id).value, false)),
    };
    rewards.map(span).collect()
}

/// The best of siblings against the worst of each other one that is worse by the margin.
fn pairs(spans: &[Span], min_margin: f64) -> Vec<[Scored; 2]> {
    let Some(all) = spans.iter().copied().reduce(Span::merge) else {
        return Vec::new();
    };
    let others = spans.iter().filter(|span| span.best.node != all.best.node);
    others
        .filter(|other| is_above(all.best.score, other.worst.score, min_margin))
        .map(|other| [all.best, other.worst])
        .collect()
}

fn answer_row(tree: &Tree, pair: [Scored; 2]) -> Option<Row> {
    let texts = pair.map(|scored| tree.trace.answer_text(scored.node));
    let side = |text: &str| tree.prompt.answer(text);
    let scores = pair.map(|scored| scored.score);
    let inserted = pair.map(|scored| tree.trace.answer_inserted(scored.node));
    let node = Some(pair[0].node);
    row(tree.prompt.column(), (texts, inserted), scores, node, side)
}

/// Steps are text, whatever the prompt is: messages do not end within an answer.
fn step_row(tree: &Tree, parent: usize, pair: [Scored; 2]) -> Option<Row> {
    let prompt = tree.trace.prompt_text.clone() + &tree.trace.answer_text(parent);
    let texts = pair.map(|scored| tree.node(scored.node).text.clone());
    let side = |text: &str| json!(text);
    let scores = pair.map(|scored| scored.score);
    let inserted = pair.map(|scored| tree.trace.inserted_in(&[scored.node]));
    let node = Some(pair[0].node);
    row(json!(prompt), (texts, inserted), scores, node, side)
}

/// What the answer should have been against what it was.
fn corrected_row(tree: &Tree) -> Option<Row> {
    let correction = tree.trace.correction.clone()?;
    let chosen = tree.chosen().filter(|id| !tree.is_right(*id))?;
    let texts = [correction, tree.trace.answer_text(chosen)];
    let side = |text: &str| tree.prompt.answer(text);
    let inserted = [Vec::new(), tree.trace.answer_inserted(chosen)];
    row(
        tree.prompt.column(),
        (texts, inserted),
        [1.0, 0.0],
        None,
        side,
    )
}

/// What of a text the model did not write: from character to character.
type Inserted = Vec<[usize; 2]>;

/// `None` when the texts are no choice.
fn row(
    prompt: Value,
    ([chosen, rejected], [inserted_chosen, inserted_rejected]): ([String; 2], [Inserted; 2]),
    [high, low]: [f64; 2],
    node: Option<usize>,
    side: impl Fn(&str) -> Value,
) -> Option<Row> {
    if chosen.trim().is_empty() || is_same(&chosen, &rejected) {
        return None;
    }
    let shape = json!({
        "prompt": prompt,
        "chosen": side(&chosen),
        "rejected": side(&rejected),
        "inserted_chosen": inserted_chosen,
        "inserted_rejected": inserted_rejected,
        "margin": high - low,
        "score_chosen": high,
        "score_rejected": low,
    });
    Some(Row {
        shape: object(shape),
        text: chosen,
        node,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::export::drain;
    use crate::trace::testing::{node, trace_of};
    use crate::trace::{NodeRecord, TraceRecord};

    fn rows(tree: &Tree, options: &ExportOptions) -> Vec<Row> {
        drain(plan(tree, options), tree)
    }

    /// Pairs as chosen, rejected, margin.
    fn pairs(trace: &TraceRecord, level: Level) -> Vec<(Value, Value, f64)> {
        let options = ExportOptions {
            level,
            ..ExportOptions::default()
        };
        let pair = |row: Row| {
            let margin = row.shape["margin"].as_f64();
            let [chosen, rejected] = ["chosen", "rejected"].map(|side| row.shape[side].clone());
            (chosen, rejected, margin.unwrap())
        };
        let rows = rows(&Tree::new(trace), &options);
        rows.into_iter().map(pair).collect()
    }

    fn answer(parent: usize, text: &str, value: f64, outcome: Option<f64>) -> NodeRecord {
        NodeRecord {
            value,
            outcome,
            ..node(Some(parent), text, Some("stop"))
        }
    }

    /// A completion's trace.
    fn trace(nodes: Vec<NodeRecord>) -> TraceRecord {
        TraceRecord {
            request: json!({"prompt": "p"}),
            ..trace_of([vec![node(None, "", None)], nodes].concat())
        }
    }

    #[test]
    fn the_best_answer_meets_the_worst_of_each_sibling() {
        // 0 - a - b (right), c (wrong)
        //  \- d - e (half right), f (wrong)
        //  \- g (unknown), h (unknown, of less value)
        let trace = trace(vec![
            node(Some(0), "a", None),
            answer(1, "b", 0.0, Some(1.0)),
            answer(1, "c", 0.0, Some(0.0)),
            node(Some(0), "d", None),
            answer(4, "e", 0.0, Some(0.5)),
            answer(4, "f", 0.0, Some(0.0)),
            answer(0, "g", 0.75, None),
            answer(0, "h", 0.25, None),
        ]);
        let expected = [
            ("ab", "df", 1.0),
            ("g", "h", 0.5),
            ("ab", "ac", 1.0),
            ("de", "df", 0.5),
        ];
        let expected = expected.map(|(a, b, margin)| (json!(a), json!(b), margin));
        assert_eq!(pairs(&trace, Level::Answer), expected);
    }

    #[test]
    fn pairs_are_apart_and_differ() {
        let trace = trace(vec![
            answer(0, "a", 0.75, None),
            answer(0, "a\n", 0.25, None),
            answer(0, "b", 0.5, None),
            // Never looked at.
            answer(0, "c", 0.0, None),
        ]);
        assert_eq!(pairs(&trace, Level::Answer), []);
    }

    #[test]
    fn chats_have_messages_and_corrections_win() {
        let mut trace = trace(vec![answer(0, "a", 0.5, Some(0.0))]);
        trace.request = trace_of(Vec::new()).request;
        trace.correction = Some("b".to_owned());
        let rows = rows(&Tree::new(&trace), &ExportOptions::default());
        let expected = json!({
            "prompt": [{"role": "user", "content": "question"}],
            "chosen": [{"role": "assistant", "content": "b"}],
            "rejected": [{"role": "assistant", "content": "a"}],
            "inserted_chosen": [],
            "inserted_rejected": [],
            "margin": 1.0,
            "score_chosen": 1.0,
            "score_rejected": 0.0,
        });
        assert_eq!((rows.len(), rows[0].node), (1, None));
        assert_eq!(json!(rows[0].shape), expected);
        trace.correction = Some("a".to_owned());
        assert_eq!(pairs(&trace, Level::Answer), []);
        trace.correction = Some("b".to_owned());
        trace.nodes[1].outcome = Some(1.0);
        assert_eq!(pairs(&trace, Level::Answer), []);
    }

    #[test]
    fn steps_follow_exactly_one_text() {
        let step = |text, value| NodeRecord {
            value,
            score: Some(value),
            ..node(Some(1), text, None)
        };
        let rollout = NodeRecord {
            is_rollout: true,
            ..answer(1, "e", 1.0, None)
        };
        let mut trace = trace(vec![
            node(Some(0), "a", None),
            step("b", 0.25),
            step("c", 1.0),
            step("d", 0.875),
            rollout,
        ]);
        let options = ExportOptions {
            level: Level::Step,
            ..ExportOptions::default()
        };
        let rows = rows(&Tree::new(&trace), &options);
        let expected = json!({
            "prompt": "<user>question<assistant>a",
            "chosen": "c",
            "rejected": "b",
            "inserted_chosen": [],
            "inserted_rejected": [],
            "margin": 0.75,
            "score_chosen": 1.0,
            "score_rejected": 0.25,
        });
        assert_eq!((rows.len(), rows[0].node), (1, Some(3)));
        assert_eq!(json!(rows[0].shape), expected);
        // Outcomes say otherwise: 1/2 + 1/2 against 1/2 - 1/4.
        trace.nodes[2].outcome = Some(1.0);
        trace.nodes[3].outcome = Some(0.0);
        let expected = [(json!("b"), json!("c"), 0.75)];
        assert_eq!(pairs(&trace, Level::Step), expected);
    }
}
