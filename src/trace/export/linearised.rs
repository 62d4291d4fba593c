//! A tree walked depth-first as one chain of thought that visits wrong branches and turns back
//! (ASTRO, arXiv 2507.00417), and the same answer without detours. In the paper a model rewrites
//! the steps; here they stay as they were sampled, and templates say why the walk turns and where
//! to.

use std::collections::HashSet;

use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use super::options::ExportOptions;
use super::tree::{Tree, is_above};
use super::{Plan, Row};

/// What is said when a wrong branch is left. `{step}` is the last good step.
const RETURNS: [&str; 5] = [
    "Wait, this does not look right. Let me go back to {step} and try another way.",
    "Hmm, that seems to be a mistake. I will return to {step} and continue differently.",
    "Checking this, it does not lead to a right answer. Going back to {step}, there must be a better way.",
    "This approach does not work. Let me return to {step} and take another path from there.",
    "Something went wrong here. I should go back to {step} and think again.",
];
/// Characters of a step that is returned to.
const PREVIEW_CHARACTERS: usize = 60;

/// A wrong answer that leaves the right path.
struct Detour {
    /// Steps of the right path before it.
    position: usize,
    leaf: usize,
}

/// The walk, if there is a detour, and then the way without.
struct Walks {
    target: Option<usize>,
    detours: Vec<Detour>,
}

pub(super) fn plan(tree: &Tree, options: &ExportOptions) -> impl Plan + use<> {
    let target = tree.examples().first().copied();
    let detours = target.map(|target| detours(tree, target, options));
    Walks {
        target,
        detours: detours.unwrap_or_default(),
    }
}

impl Plan for Walks {
    fn next(&mut self, tree: &Tree) -> Option<Option<Row>> {
        let target = self.target?;
        let detours = std::mem::take(&mut self.detours);
        let (text, inserted, form) = match detours.is_empty() {
            false => {
                let walked = walk(tree, target, &detours);
                (walked.text, walked.inserted, "backtracking")
            }
            true => {
                self.target = None;
                let inserted = tree.trace.answer_inserted(target);
                (tree.trace.answer_text(target), inserted, "direct")
            }
        };
        let mut shape = tree.prompt.example(&text);
        shape.insert("inserted".to_owned(), json!(inserted));
        shape.insert("form".to_owned(), json!(form));
        shape.insert("num_backtracks".to_owned(), json!(detours.len()));
        Some(Some(Row {
            shape,
            text,
            node: Some(target),
        }))
    }
}

/// How a node lies to the right path.
#[derive(Clone, Copy, Default)]
struct Place {
    /// Steps of the right path above it, its own included.
    position: usize,
    /// The first node off the path on the way to it.
    branch: Option<usize>,
    /// Whether anything is said since.
    has_text: bool,
    /// Bytes of the right answer that the text up to here is, if it is a beginning of it.
    beginning: Option<usize>,
    /// The same, but for white space at its end.
    is_beginning: bool,
}

/// One a node, from those above it: no text is put together.
fn places(tree: &Tree, path: &[usize], answer: &str) -> Vec<Place> {
    let mut is_on_path = vec![false; tree.children.len()];
    for id in path {
        is_on_path[*id] = true;
    }
    let mut places = vec![Place::default(); tree.children.len()];
    places[0].beginning = Some(0);
    places[0].is_beginning = true;
    for id in 1..places.len() {
        let node = tree.node(id);
        let above = places[node.parent.unwrap_or_default()];
        let is_next = |text: &str| {
            let rest = above.beginning.and_then(|at| answer.get(at..));
            rest.is_some_and(|rest| rest.starts_with(text))
        };
        let own = node.text.trim_end();
        places[id] = Place {
            position: above.position + usize::from(is_on_path[id]),
            branch: above.branch.or((!is_on_path[id]).then_some(id)),
            has_text: above.has_text || !is_on_path[id] && !own.is_empty(),
            beginning: above
                .beginning
                .filter(|_| is_next(&node.text))
                .map(|at| at + node.text.len()),
            is_beginning: match own.is_empty() {
                true => above.is_beginning,
                false => is_next(own),
            },
        };
    }
    places
}

/// One wrong answer for each branch that leaves the right path, the one of most value; in the order of the walk.
fn detours(tree: &Tree, target: usize, options: &ExportOptions) -> Vec<Detour> {
    let path = tree.trace.path(target);
    let places = places(tree, &path, &tree.trace.answer_text(target));
    let value = |id: usize| tree.node(id).value;
    let is_wrong = |id: usize| match tree.node(id).outcome {
        Some(_) => !tree.is_right(id),
        None => {
            !tree.has_outcome
                && tree.has_value(id)
                && is_above(value(target), value(id), options.min_margin)
        }
    };
    let mut wrong: Vec<usize> = tree
        .leaves()
        .filter(|id| *id != target && is_wrong(*id))
        // What is the beginning of the right answer is no mistake.
        .filter(|id| !places[*id].is_beginning)
        // What goes on below the right answer leaves it nowhere.
        .filter(|id| places[*id].has_text && places[*id].position < path.len())
        .collect();
    wrong.sort_by(|a, b| value(*b).total_cmp(&value(*a)));
    let mut branches = HashSet::new();
    wrong.retain(|id| branches.insert(places[*id].branch));
    let detour = |leaf: usize| Detour {
        position: places[leaf].position,
        leaf,
    };
    let mut detours: Vec<Detour> = wrong.into_iter().map(detour).collect();
    detours.sort_by_key(|detour| detour.position);
    detours.truncate(options.max_wrong_branches);
    detours
}

/// The steps as they are, with blank lines only where the walk turns: steps may end within a line.
fn walk(tree: &Tree, target: usize, detours: &[Detour]) -> Marked {
    let path = tree.trace.path(target);
    let mut walked = Marked::default();
    let mut steps = Marked::default();
    // In the order of their positions.
    let mut detours = detours.iter().peekable();
    // The last good step that says something.
    let mut good: Option<&str> = None;
    let mut num_turns = 0;
    for (position, step) in path.iter().enumerate() {
        while let Some(detour) = detours.next_if(|detour| detour.position == position) {
            for id in tree.trace.path(detour.leaf).iter().skip(position) {
                steps.push(&tree.node(*id).text, tree.trace.inserted_in(&[*id]));
            }
            walked.join(std::mem::take(&mut steps));
            let mut said = Marked::default();
            said.push(&turn(tree, good, num_turns), Vec::new());
            walked.join(said);
            num_turns += 1;
        }
        let text = &tree.node(*step).text;
        steps.push(text, tree.trace.inserted_in(&[*step]));
        if !text.trim().is_empty() {
            good = Some(text);
        }
    }
    walked.join(steps);
    walked
}

/// A text, and what of it the model did not write.
#[derive(Debug, Default)]
struct Marked {
    text: String,
    num_chars: usize,
    /// From character to character.
    inserted: Vec<[usize; 2]>,
    is_joined: bool,
}

impl Marked {
    fn push(&mut self, text: &str, inserted: Vec<[usize; 2]>) {
        let before = self.num_chars;
        let moved = inserted.into_iter();
        self.inserted
            .extend(moved.map(|it| it.map(|at| at.saturating_add(before))));
        self.num_chars += text.chars().count();
        self.text.push_str(text);
    }

    /// Adds a part behind a blank line, without the line breaks before it and the white space
    /// behind it.
    fn join(&mut self, part: Self) {
        if std::mem::replace(&mut self.is_joined, true) {
            self.push("\n\n", Vec::new());
        }
        let begun = part.text.trim_start_matches('\n');
        let num_cut = part.text.len() - begun.len();
        let text = begun.trim_end();
        let num_chars = text.chars().count();
        let places = part.inserted.into_iter();
        let places = places.map(|it| it.map(|at| at.saturating_sub(num_cut).min(num_chars)));
        self.push(text, places.filter(|[from, to]| from < to).collect());
    }
}

/// The sentences that leave wrong branch `number` for the last good step.
fn turn(tree: &Tree, good: Option<&str>, number: usize) -> String {
    let step = match good {
        Some(step) => format!("the step “{}”", preview(step)),
        None => "the beginning".to_owned(),
    };
    let hash = xxh3_64(format!("{}/{number}", tree.trace.id).as_bytes());
    let template = RETURNS[(hash % RETURNS.len() as u64) as usize];
    template.replace("{step}", &step)
}

/// The beginning of a step in one line; its end is not looked at.
fn preview(text: &str) -> String {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word.chars().take(PREVIEW_CHARACTERS + 1));
        if let Some((end, _)) = line.char_indices().nth(PREVIEW_CHARACTERS) {
            return format!("{}…", line[..end].trim_end());
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::export::drain;
    use crate::trace::testing::{node, trace_of};
    use crate::trace::{NodeRecord, TraceRecord};
    use serde_json::Value;

    fn rows(tree: &Tree, options: &ExportOptions) -> Vec<Row> {
        drain(plan(tree, options), tree)
    }

    fn shapes(trace: &TraceRecord, options: &ExportOptions) -> Vec<Value> {
        let rows = rows(&Tree::new(trace), options).into_iter();
        rows.map(|row| Value::Object(row.shape)).collect()
    }

    fn row(text: &str, form: &str, num_backtracks: usize) -> Value {
        json!({
            "messages": [
                {"role": "user", "content": "question"},
                {"role": "assistant", "content": text},
            ],
            "inserted": [],
            "form": form,
            "num_backtracks": num_backtracks,
        })
    }

    fn said(number: usize, step: &str) -> String {
        let hash = xxh3_64(format!("trace-1/{number}").as_bytes()) as usize;
        RETURNS[hash % RETURNS.len()].replace("{step}", step)
    }

    fn trace(outcomes: [Option<f64>; 5]) -> TraceRecord {
        // 0 - First. - Right.
        //           \- Wrong way. - Wrong.
        //  \- Bad.    \- Right. as the answer, but for white space at its end
        //  \- Worse.
        let answer = |parent, text, value, outcome| NodeRecord {
            value,
            outcome,
            ..node(Some(parent), text, Some("stop"))
        };
        trace_of(vec![
            node(None, "", None),
            node(Some(0), "First\nstep.\n\n", None),
            answer(1, "Right.", 1.0, outcomes[0]),
            node(Some(1), "Wrong way. ", None),
            answer(3, "Wrong.", 0.5, outcomes[1]),
            answer(0, "Worse.", 0.25, outcomes[2]),
            answer(0, "Bad.", 0.75, outcomes[3]),
            answer(1, "Right.\n", 0.0, outcomes[4]),
        ])
    }

    #[test]
    fn walks_turn_back_from_wrong_branches() {
        let mut trace = trace([Some(1.0), Some(0.0), Some(0.0), Some(0.5), Some(0.0)]);
        let options = ExportOptions {
            max_wrong_branches: 3,
            ..ExportOptions::default()
        };
        let start = "the beginning";
        let first = "the step “First step.”";
        let text = format!(
            "Bad.\n\n{}\n\nWorse.\n\n{}\n\nFirst\nstep.\n\nWrong way. Wrong.\n\n{}\n\nRight.",
            said(0, start),
            said(1, start),
            said(2, first)
        );
        let direct = row("First\nstep.\n\nRight.", "direct", 0);
        let expected = [row(&text, "backtracking", 3), direct.clone()];
        assert_eq!(shapes(&trace, &options), expected);
        // No more branches than asked for, from the start of the walk.
        let options = ExportOptions {
            max_wrong_branches: 1,
            ..options
        };
        let text = format!("Bad.\n\n{}\n\nFirst\nstep.\n\nRight.", said(0, start));
        let expected = [row(&text, "backtracking", 1), direct.clone()];
        assert_eq!(shapes(&trace, &options), expected);
        let options = ExportOptions {
            max_wrong_branches: 0,
            ..options
        };
        assert_eq!(shapes(&trace, &options), [direct]);
        // Nothing is right.
        trace.nodes[2].outcome = Some(0.0);
        assert!(shapes(&trace, &options).is_empty());
    }

    #[test]
    fn values_stand_in_for_outcomes() {
        let mut trace = trace([None; 5]);
        trace.nodes[6].value = 0.75;
        let options = ExportOptions::default();
        let text = format!(
            "Worse.\n\n{}\n\nFirst\nstep.\n\nWrong way. Wrong.\n\n{}\n\nRight.",
            said(0, "the beginning"),
            said(1, "the step “First step.”")
        );
        let expected = [
            row(&text, "backtracking", 2),
            row("First\nstep.\n\nRight.", "direct", 0),
        ];
        assert_eq!(shapes(&trace, &options), expected);
        trace.nodes[2].end = Some("length".to_owned());
        assert!(shapes(&trace, &options).is_empty());
    }

    #[test]
    fn previews_are_one_short_line() {
        assert_eq!(preview(" a\n b "), "a b");
        let long = "ä ".repeat(40);
        assert_eq!(preview(&long), "ä ".repeat(30).trim_end().to_owned() + "…");
    }

    #[test]
    fn the_beginning_of_the_right_answer_is_no_detour() {
        let answer = |parent, text, outcome| NodeRecord {
            outcome: Some(outcome),
            ..node(Some(parent), text, Some("stop"))
        };
        let trace = trace_of(vec![
            node(None, "", None),
            node(Some(0), "one\n", None),
            answer(1, "two", 1.0),
            answer(0, "one", 0.0),
        ]);
        let shapes = shapes(&trace, &ExportOptions::default());
        assert_eq!(shapes.len(), 1);
        assert_eq!(shapes[0]["form"], "direct");
    }
}
