//! Writing Lark.

use std::fmt::Write;

use super::Node;
use crate::grammar::lark::literal;

pub(super) fn emit(rules: &[Node]) -> String {
    let emitter = Emitter {
        is_regular: regular_rules(rules),
        terminals: Vec::new(),
    };
    emitter.emit(rules)
}

struct Emitter {
    is_regular: Vec<bool>,
    /// Bodies of terminals that have no rule.
    terminals: Vec<String>,
}

impl Emitter {
    fn emit(mut self, rules: &[Node]) -> String {
        let start = self.name(0);
        let mut lark = format!("start: {start}\n");
        for (index, rule) in rules.iter().enumerate() {
            let name = self.name(index);
            let body = match self.is_regular[index] {
                true => self.terminal(rule, false),
                false => self.rule(rule, false),
            };
            let _ = writeln!(lark, "{name}: {body}");
        }
        for (index, body) in self.terminals.iter().enumerate() {
            let _ = writeln!(lark, "A{index}: {body}");
        }
        lark
    }

    fn name(&self, rule: usize) -> String {
        match self.is_regular[rule] {
            true => format!("T{rule}"),
            false => format!("r{rule}"),
        }
    }

    fn is_regular(&self, node: &Node) -> bool {
        match node {
            Node::Text(_) | Node::Class(_) => true,
            Node::Token(_) => false,
            Node::Rule(index) => self.is_regular[*index],
            Node::Sequence(nodes) | Node::Choice(nodes) => {
                nodes.iter().all(|node| self.is_regular(node))
            }
            Node::Repeat { node, .. } => self.is_regular(node),
        }
    }

    /// A regular part within a terminal.
    fn terminal(&self, node: &Node, is_inside: bool) -> String {
        let several = |nodes: &[Node], separator: &str| {
            let nodes: Vec<String> = nodes.iter().map(|node| self.terminal(node, true)).collect();
            group(&nodes.join(separator), is_inside)
        };
        match node {
            Node::Text(text) => literal(text),
            Node::Class(class) => format!("/{class}/"),
            Node::Token(token) => token.clone(),
            Node::Rule(index) => self.name(*index),
            Node::Sequence(nodes) => several(nodes, " "),
            Node::Choice(nodes) => several(nodes, " | "),
            Node::Repeat { node, least, most } => {
                repeat(&self.terminal(node, true), node, *least, *most)
            }
        }
    }

    /// A part of a rule that is no terminal.
    fn rule(&mut self, node: &Node, is_inside: bool) -> String {
        if self.is_regular(node) {
            return self.anonymous(std::slice::from_ref(node), " ");
        }
        match node {
            Node::Sequence(nodes) => {
                let runs = nodes.chunk_by(|a, b| self.is_regular(a) && self.is_regular(b));
                let runs: Vec<&[Node]> = runs.collect();
                let parts: Vec<String> = runs
                    .into_iter()
                    .map(|run| match self.is_regular(&run[0]) {
                        true => self.anonymous(run, " "),
                        false => self.rule(&run[0], true),
                    })
                    .collect();
                group(&parts.join(" "), is_inside)
            }
            Node::Choice(nodes) => {
                let (regular, others): (Vec<Node>, Vec<Node>) = nodes
                    .iter()
                    .cloned()
                    .partition(|node| self.is_regular(node));
                let mut options: Vec<String> =
                    others.iter().map(|node| self.rule(node, true)).collect();
                if !regular.is_empty() {
                    options.push(self.anonymous(&regular, " | "));
                }
                group(&options.join(" | "), is_inside)
            }
            Node::Repeat { node, least, most } => {
                repeat(&self.rule(node, true), node, *least, *most)
            }
            Node::Rule(index) => self.name(*index),
            Node::Token(token) => token.clone(),
            Node::Text(_) | Node::Class(_) => self.terminal(node, is_inside),
        }
    }

    /// A terminal of regular parts.
    fn anonymous(&mut self, nodes: &[Node], separator: &str) -> String {
        if let [Node::Rule(index)] = nodes {
            return self.name(*index);
        }
        let is_inside = nodes.len() > 1;
        let parts = nodes.iter().map(|node| self.terminal(node, is_inside));
        let body = parts.collect::<Vec<_>>().join(separator);
        let index = self.terminals.iter().position(|known| *known == body);
        let index = index.unwrap_or_else(|| {
            self.terminals.push(body);
            self.terminals.len() - 1
        });
        format!("A{index}")
    }
}

fn group(body: &str, is_inside: bool) -> String {
    match is_inside {
        true => format!("({body})"),
        false => body.to_owned(),
    }
}

fn repeat(body: &str, node: &Node, least: u64, most: Option<u64>) -> String {
    // A repetition of a repetition.
    let body = group(body, matches!(node, Node::Repeat { .. }));
    match (least, most) {
        (_, Some(0)) => "\"\"".to_owned(),
        (0, Some(1)) => format!("{body}?"),
        (0, None) => format!("{body}*"),
        (1, None) => format!("{body}+"),
        (least, None) => format!("{body}{{{least},}}"),
        (least, Some(most)) => format!("{body}{{{least},{most}}}"),
    }
}

/// Which rules are regular expressions: those that reach neither a circle of rules nor a token.
fn regular_rules(rules: &[Node]) -> Vec<bool> {
    let mut references = Vec::new();
    let mut is_regular = Vec::new();
    for rule in rules {
        let mut own = Vec::new();
        let mut has_token = false;
        visit(rule, &mut |node| match node {
            Node::Rule(index) => own.push(*index),
            Node::Token(_) => has_token = true,
            _ => {}
        });
        references.push(own);
        is_regular.push(!has_token);
    }
    // A rule is regular once all that it refers to are: circles never get there.
    let mut users = vec![Vec::new(); rules.len()];
    let mut num_open = vec![0; rules.len()];
    for (index, own) in references.iter().enumerate() {
        num_open[index] = own.len();
        own.iter().for_each(|other| users[*other].push(index));
    }
    let mut known = vec![false; rules.len()];
    let is_ready = |index: &usize| num_open[*index] == 0 && is_regular[*index];
    let mut ready: Vec<usize> = (0..rules.len()).filter(is_ready).collect();
    while let Some(index) = ready.pop() {
        known[index] = true;
        for user in &users[index] {
            num_open[*user] -= 1;
            if num_open[*user] == 0 && is_regular[*user] {
                ready.push(*user);
            }
        }
    }
    known
}

fn visit(node: &Node, see: &mut dyn FnMut(&Node)) {
    see(node);
    match node {
        Node::Sequence(nodes) | Node::Choice(nodes) => {
            nodes.iter().for_each(|node| visit(node, see));
        }
        Node::Repeat { node, .. } => visit(node, see),
        Node::Text(_) | Node::Class(_) | Node::Token(_) | Node::Rule(_) => {}
    }
}
