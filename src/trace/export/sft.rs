//! Answers to learn by heart: what is right (STaR, ReST^EM), or else what the search chose.

use serde_json::json;

use super::tree::Tree;
use super::{Plan, Row};

/// The right answers and then the correction, which is in no tree.
struct Answers(std::vec::IntoIter<Option<usize>>);

pub(super) fn plan(tree: &Tree) -> impl Plan + use<> {
    let mut answers: Vec<Option<usize>> = tree.examples().into_iter().map(Some).collect();
    let correction = tree.trace.correction.as_ref();
    if correction.is_some_and(|text| !text.trim().is_empty()) {
        answers.push(None);
    }
    Answers(answers.into_iter())
}

impl Plan for Answers {
    fn next(&mut self, tree: &Tree) -> Option<Option<Row>> {
        let node = self.0.next()?;
        let text = match node {
            Some(id) => tree.trace.answer_text(id),
            None => tree.trace.correction.clone().unwrap_or_default(),
        };
        let inserted = node.map(|id| tree.trace.answer_inserted(id));
        let mut shape = tree.prompt.example(&text);
        shape.insert("inserted".to_owned(), json!(inserted.unwrap_or_default()));
        Some(Some(Row { shape, text, node }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::export::drain;
    use crate::trace::testing::{node, trace_of};
    use crate::trace::{NodeRecord, TraceRecord};

    fn rows(tree: &Tree) -> Vec<Row> {
        drain(plan(tree), tree)
    }

    fn texts(trace: &TraceRecord) -> Vec<(String, Option<usize>)> {
        let rows = rows(&Tree::new(trace)).into_iter();
        rows.map(|row| (row.text, row.node)).collect()
    }

    #[test]
    fn right_answers_come_best_first_and_the_correction_last() {
        let answer = |parent, text, value, outcome| NodeRecord {
            value,
            outcome: Some(outcome),
            ..node(Some(parent), text, Some("stop"))
        };
        let mut trace = trace_of(vec![
            node(None, "", None),
            node(Some(0), "a ", None),
            answer(1, "b", 0.1, 1.0),
            answer(0, "c", 0.2, 1.0),
            answer(0, "d", 0.9, 0.5),
        ]);
        let right = vec![("c".to_owned(), Some(3)), ("a b".to_owned(), Some(2))];
        assert_eq!(texts(&trace), right);
        trace.request = json!({"prompt": "p"});
        trace.correction = Some("e".to_owned());
        let rows = rows(&Tree::new(&trace));
        assert_eq!(
            json!(rows[2].shape),
            json!({"prompt": "p", "completion": "e", "inserted": []})
        );
        assert_eq!((rows.len(), rows[2].node), (3, None));
        // A correction says that what was chosen is not it, even without an outcome.
        trace.nodes.iter_mut().for_each(|node| node.outcome = None);
        assert_eq!(texts(&trace), [("e".to_owned(), None)]);
        trace.correction = None;
        assert_eq!(texts(&trace), [("d".to_owned(), Some(4))]);
    }
}
