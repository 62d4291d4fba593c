//! A searched tree as text for a terminal.

use std::fmt::Write;

use super::record::{NodeRecord, TraceRecord};

/// Characters of a step that are shown.
const PREVIEW_CHARS: usize = 64;
/// Levels that are indented; below them a line says how deep it is. A deep tree would be drawn as a wide one otherwise, with
/// more spaces than words.
const MAX_INDENTED: usize = 48;

/// One line a node: value, visits, a preview of its text, how it ended; `*` marks the best whole answer.
pub fn render(trace: &TraceRecord) -> String {
    let mut children = vec![Vec::new(); trace.nodes.len()];
    for (id, node) in trace.nodes.iter().enumerate() {
        if let Some(parent) = node.parent.filter(|parent| *parent < id) {
            children[parent].push(id);
        }
    }
    let best = trace.best();
    let mut text = format!(
        "{} ({} nodes)\n",
        trace.strategy,
        trace.nodes.len().max(1) - 1
    );
    // A stack instead of recursion: a trace may be deep.
    let mut stack: Vec<Drawn> = Vec::new();
    let push = |stack: &mut Vec<Drawn>, id: usize, indent: &str, depth: usize| {
        let drawn = |(index, child): (usize, &usize)| Drawn {
            id: *child,
            indent: indent.to_owned(),
            depth,
            is_last: index == 0,
        };
        stack.extend(children[id].iter().rev().enumerate().map(drawn));
    };
    if !trace.nodes.is_empty() {
        push(&mut stack, 0, "", 1);
    }
    while let Some(drawn) = stack.pop() {
        let Drawn {
            id,
            mut indent,
            depth,
            is_last,
        } = drawn;
        let branch = if is_last { "└─" } else { "├─" };
        let mark = if best == Some(id) { "*" } else { "" };
        let level = match depth > MAX_INDENTED {
            true => format!("({depth}) "),
            false => String::new(),
        };
        let line = line(&trace.nodes[id]);
        let _ = writeln!(text, "{indent}{branch} {level}{mark}{line}");
        if depth < MAX_INDENTED {
            indent.push_str(if is_last { "   " } else { "│  " });
        }
        push(&mut stack, id, &indent, depth + 1);
    }
    text
}

/// A node that is still to be drawn.
struct Drawn {
    id: usize,
    indent: String,
    depth: usize,
    is_last: bool,
}

fn line(node: &NodeRecord) -> String {
    let mut line = format!("{:.2}", node.value);
    if node.visit_count > 0 {
        let _ = write!(line, " ×{}", node.visit_count);
    }
    let words = node.text.split_whitespace().collect::<Vec<_>>().join(" ");
    let preview: String = words.chars().take(PREVIEW_CHARS).collect();
    let dots = if words.chars().count() > PREVIEW_CHARS {
        "…"
    } else {
        ""
    };
    // Control characters of a model's text must not reach the terminal.
    let preview: String = preview.chars().filter(|c| !c.is_control()).collect();
    let _ = write!(line, " {preview}{dots}");
    for (is_so, word) in [
        (!node.inserted.is_empty(), "ran code"),
        (node.is_rollout, "roll-out"),
        (node.is_pruned, "pruned"),
        (node.end.as_deref() == Some("length"), "too long"),
        (node.end.as_deref() == Some("cut"), "cut"),
        (node.end.as_deref() == Some("unsure"), "unsure"),
    ] {
        if is_so {
            let _ = write!(line, " [{word}]");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::testing::{chain, node, trace_of};

    #[test]
    fn deep_trees_are_not_wide() {
        let trace = chain(60_000, "a step");
        let text = render(&trace);
        assert!(text.len() < 60_000 * 200, "{}", text.len());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 60_001);
        assert!(lines[48].starts_with(&" ".repeat(3 * 47)));
        assert!(
            lines[60_000].ends_with("└─ (60000) *0.00 a step"),
            "{}",
            lines[60_000]
        );
    }

    #[test]
    fn trees_are_drawn_with_their_values() {
        let node = |parent, text, value, end| NodeRecord {
            value,
            visit_count: 1,
            ..node(parent, text, end)
        };
        let trace = TraceRecord {
            strategy: "mcts".to_owned(),
            ..trace_of(vec![
                node(None, "", 0.5, None),
                node(Some(0), "First\n step", 0.5, None),
                node(Some(1), "right \u{1b}[31m", 0.9, Some("stop")),
                node(Some(0), "cut off", 0.1, Some("cut")),
            ])
        };
        let expected = "mcts (3 nodes)\n\
            ├─ 0.50 ×1 First step\n\
            │  └─ *0.90 ×1 right [31m\n\
            └─ 0.10 ×1 cut off [cut]\n";
        assert_eq!(render(&trace), expected);
    }
}
