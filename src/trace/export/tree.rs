//! A trace as the formats read it: its prompt, its branches, and which of its answers may be
//! taught.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::object;
use crate::trace::values::is_right;
use crate::trace::{NodeRecord, TraceRecord};

/// Gaps count as wide enough from this much less on: 0.7 - 0.4 is less than 0.3.
const ROUNDING: f64 = 1e-9;

pub(super) struct Tree<'a> {
    pub trace: Cow<'a, TraceRecord>,
    pub prompt: Prompt,
    pub children: Vec<Vec<usize>>,
    /// Tokens of the answer up to each node that the model wrote.
    pub num_tokens: Vec<usize>,
    /// Whether the answer up to each node has more than white space.
    has_text: Vec<bool>,
    /// Whether any answer is known to be right or wrong.
    pub has_outcome: bool,
}

pub(super) enum Prompt {
    Chat(Vec<Value>),
    Text(String),
}

impl<'a> Tree<'a> {
    #[cfg(test)]
    pub fn new(trace: &'a TraceRecord) -> Self {
        Self::of(Cow::Borrowed(trace))
    }

    /// `trace` is a tree.
    pub fn of(trace: Cow<'a, TraceRecord>) -> Self {
        let mut children = vec![Vec::new(); trace.nodes.len()];
        let mut num_tokens = vec![0; trace.nodes.len()];
        let mut has_text = vec![false; trace.nodes.len()];
        for (id, node) in trace.nodes.iter().enumerate() {
            if let Some(parent) = node.parent {
                children[parent].push(id);
                num_tokens[id] = num_tokens[parent] + node.num_own();
                has_text[id] = has_text[parent] || !node.text.trim().is_empty();
            }
        }
        Self {
            prompt: Prompt::of(&trace),
            children,
            num_tokens,
            has_text,
            has_outcome: trace.nodes.iter().any(|node| node.outcome.is_some()),
            trace,
        }
    }

    pub fn node(&self, id: usize) -> &NodeRecord {
        &self.trace.nodes[id]
    }

    /// The nodes at which nothing follows.
    pub fn leaves(&self) -> impl Iterator<Item = usize> {
        (1..self.children.len()).filter(|id| self.children[*id].is_empty())
    }

    /// The nodes with which whole answers end.
    pub fn answers(&self) -> impl Iterator<Item = usize> {
        (1..self.children.len()).filter(|id| self.node(*id).is_whole())
    }

    /// The best returned answer.
    pub fn chosen(&self) -> Option<usize> {
        self.trace.best().filter(|id| *id != 0)
    }

    /// Answers that may be taught, the best first: those that are right, or the one that the search chose when
    /// nobody has said what is right. What was cut off is no example then.
    pub fn examples(&self) -> Vec<usize> {
        let mut examples: Vec<usize> = if self.has_outcome {
            self.answers().filter(|id| self.is_right(*id)).collect()
        } else if self.trace.correction.is_some() {
            // The oracle had to say what the answer should have been.
            Vec::new()
        } else {
            let is_finished = |id: &usize| self.node(*id).end.as_deref() == Some("stop");
            self.chosen().filter(is_finished).into_iter().collect()
        };
        examples.retain(|id| self.has_text[*id]);
        examples.sort_by(|a, b| self.node(*b).value.total_cmp(&self.node(*a).value));
        examples
    }

    pub fn is_right(&self, id: usize) -> bool {
        self.node(id).outcome.is_some_and(is_right)
    }

    /// Whether the search looked at a node.
    pub fn is_scored(&self, id: usize) -> bool {
        let node = self.node(id);
        node.score.is_some() || node.visit_count > 0
    }

    /// Whether a node's value means anything: votes are values without scores or visits.
    pub fn has_value(&self, id: usize) -> bool {
        self.is_scored(id) || self.node(id).value != 0.0
    }
}

/// Whether `high` is above `low` by a margin.
pub(super) fn is_above(high: f64, low: f64, margin: f64) -> bool {
    high > low && high - low >= margin - ROUNDING
}

/// Whether texts say the same: samples that differ in the white space at their end are one.
pub(super) fn is_same(a: &str, b: &str) -> bool {
    a.trim_end() == b.trim_end()
}

impl Prompt {
    fn of(trace: &TraceRecord) -> Self {
        let messages = trace.request["messages"].as_array();
        match messages.filter(|messages| messages.iter().all(Value::is_object)) {
            Some(messages) => Self::Chat(messages.iter().map(with_text).collect()),
            None => {
                let prompt = trace.request["prompt"].as_str();
                Self::Text(prompt.unwrap_or(&trace.prompt_text).to_owned())
            }
        }
    }

    /// As a column of its own.
    pub fn column(&self) -> Value {
        match self {
            Self::Chat(messages) => json!(messages),
            Self::Text(text) => json!(text),
        }
    }

    /// An answer, in the kind of the prompt.
    pub fn answer(&self, text: &str) -> Value {
        match self {
            Self::Chat(_) => json!([{"role": "assistant", "content": text}]),
            Self::Text(_) => json!(text),
        }
    }

    /// An example of an answer.
    pub fn example(&self, text: &str) -> Map<String, Value> {
        object(match self {
            Self::Chat(messages) => {
                let answer = json!({"role": "assistant", "content": text});
                let messages: Vec<&Value> = messages.iter().chain([&answer]).collect();
                json!({ "messages": messages })
            }
            Self::Text(prompt) => json!({"prompt": prompt, "completion": text}),
        })
    }
}

/// A message whose content is a string, as chat templates take it: columns hold one type.
fn with_text(message: &Value) -> Value {
    let text = match &message["content"] {
        Value::String(_) => return message.clone(),
        Value::Array(parts) => parts
            .iter()
            .filter_map(|part| part["text"].as_str())
            .collect(),
        _ => String::new(),
    };
    let mut message = message.clone();
    message["content"] = text.into();
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::testing::{node, trace_of};

    fn trace() -> TraceRecord {
        let answer = |text, value, end| NodeRecord {
            value,
            ..node(Some(0), text, Some(end))
        };
        trace_of(vec![
            node(None, "", None),
            answer("a", 0.1, "stop"),
            answer("b", 0.9, "stop"),
            answer(" \n", 1.0, "stop"),
            answer("d", 0.2, "length"),
        ])
    }

    #[test]
    fn right_answers_may_be_taught_or_else_the_chosen_one() {
        let check = |change: &dyn Fn(&mut TraceRecord), expected: &[usize]| {
            let mut trace = trace();
            change(&mut trace);
            assert_eq!(Tree::new(&trace).examples(), expected);
        };
        // The best one says nothing.
        check(&|_| {}, &[]);
        check(&|trace| trace.chosen = vec![1], &[1]);
        check(&|trace| trace.chosen = vec![4], &[]);
        check(&|trace| trace.chosen = vec![0], &[]);
        check(&|trace| trace.chosen = vec![5], &[]);
        let right = |trace: &mut TraceRecord| {
            trace.chosen = vec![1];
            trace
                .nodes
                .iter_mut()
                .for_each(|node| node.outcome = Some(1.0));
        };
        check(&right, &[2, 4, 1]);
        let wrong = |trace: &mut TraceRecord| {
            trace.chosen = vec![1];
            trace.nodes[2].outcome = Some(0.9);
        };
        check(&wrong, &[]);
        let corrected = |trace: &mut TraceRecord| {
            trace.chosen = vec![1];
            trace.correction = Some("e".to_owned());
        };
        check(&corrected, &[]);
    }

    #[test]
    fn contents_become_text() {
        let mut trace = trace();
        trace.request = json!({"messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null},
        ]});
        let prompt = Tree::new(&trace).prompt;
        let messages = json!([
            {"role": "user", "content": "ab"},
            {"role": "assistant", "content": ""},
        ]);
        assert_eq!(prompt.column(), messages);
        assert_eq!(
            prompt.answer("c"),
            json!([{"role": "assistant", "content": "c"}])
        );
    }

    #[test]
    fn prompts_without_messages_are_text() {
        for (request, expected) in [
            (json!({"prompt": "p"}), "p"),
            (json!({"prompt": [1, 2]}), "<user>question<assistant>"),
            (json!({"messages": ["?"]}), "<user>question<assistant>"),
            (json!(null), "<user>question<assistant>"),
        ] {
            let trace = TraceRecord { request, ..trace() };
            let prompt = Tree::new(&trace).prompt;
            assert_eq!(prompt.column(), expected);
            let example = json!({"prompt": expected, "completion": "c"});
            assert_eq!(Value::Object(prompt.example("c")), example);
        }
    }

    #[test]
    fn margins_allow_for_rounding() {
        assert!(is_above(0.7, 0.4, 0.3));
        assert!(!is_above(0.7, 0.41, 0.3));
        assert!(!is_above(0.7, 0.7, 0.0));
        assert!(is_same("a\n", "a"));
        assert!(!is_same(" a", "a"));
    }
}
