//! The structure of an answer: lists, tuples, relations and matrices of leaves.

use super::extract::{strip_units, word_number};

const MAX_DEPTH: u32 = 64;
/// Starts the key of an expression with variables: its values at the points.
pub(crate) const SAMPLED: char = '≋';
/// Starts the key of an irrational number.
pub(crate) const ABOUT: char = '≈';

pub(crate) enum Node {
    Leaf(String),
    /// Tag: a pair of brackets, relation signs, "row", or a matrix environment.
    Ordered(String, Vec<Node>),
    /// Tag: `{` for sets and comma lists, `∪` for unions.
    Bag(char, Vec<Node>),
}

/// The structure of a cleaned answer. `strip`: drop a leading `x=`.
pub(crate) fn parse(text: &str, depth: u32, strip: bool) -> Node {
    let text = text.trim().trim_end_matches(['.', ',', ';']);
    let text = strip_units(text);
    // Each level rescans its text, so deep nesting is refused before the first.
    if depth > MAX_DEPTH || depth == 0 && nesting(text) > MAX_DEPTH {
        return leaf(text);
    }
    if text.starts_with([ABOUT, SAMPLED]) && !text.contains([',', '∪']) {
        return leaf(text);
    }
    if let Some(matrix) = matrix(text, depth) {
        return matrix;
    }
    if let (Some((_, rest)), true) = (assigned(text), strip) {
        return parse(rest, depth + 1, strip);
    }
    let parts = split(text, |c| c == '∪');
    if parts.len() > 1 {
        let sets = parts.iter().map(|p| parse(p, depth + 1, strip));
        return Node::Bag('∪', sets.collect());
    }
    if let Some((open, inner, close)) = wrapped(text) {
        if "{«".contains(open) && inner.trim().is_empty() {
            return Node::Leaf("∅".to_owned());
        }
        // Not by way of `parse`, which would read `{1,234}` as one number.
        let set = "{«".contains(open).then(|| list(inner, depth, strip));
        if let Some(Some(set)) = set {
            return set;
        }
        let items = split(inner, |c| c == ',');
        if set.is_some() || items.len() < 2 {
            return parse(inner, depth + 1, strip);
        }
        let items = items.iter().map(|p| parse(p, depth + 1, strip));
        return Node::Ordered(format!("{open}{close}"), items.collect());
    }
    let plain = join_thousands(text).replace(" or ", ", ");
    let plain = plain.replace(" and ", ", ");
    list(&plain, depth, strip)
        .or_else(|| relation(&plain, depth))
        .or_else(|| plus_minus(&plain, depth))
        .unwrap_or_else(|| leaf(&plain))
}

/// A comma list as a bag; `x=` is dropped only where every item names the same variable.
fn list(text: &str, depth: u32, strip: bool) -> Option<Node> {
    let mut items = split(text, |c| c == ',');
    items.retain(|i| !i.trim().is_empty());
    let first = items.first().filter(|_| items.len() > 1)?;
    let name = assigned(first).map(|(n, _)| n);
    let other = |i: &&str| assigned(i).is_some_and(|(n, _)| Some(n) != name);
    let strip = strip && !items.iter().any(other);
    let mut bag = Vec::new();
    for item in items {
        match parse(item, depth + 1, strip) {
            Node::Bag('{', both) if item.contains(['±', '∓']) => bag.extend(both),
            node => bag.push(node),
        }
    }
    Some(Node::Bag('{', bag))
}

/// An equation or a chain of inequalities, turned so that it reads from small to large.
fn relation(text: &str, depth: u32) -> Option<Node> {
    let sign = |c| "=<>≤≥≠".contains(c);
    let mut parts = split(text, sign);
    let mut signs: Vec<char> = text.chars().filter(|c| sign(*c)).collect();
    if parts.len() < 2 || parts.len() != signs.len() + 1 || parts.iter().any(|p| p.is_empty()) {
        return None;
    }
    if signs.iter().all(|c| ">≥".contains(*c)) {
        parts.reverse();
        signs.reverse();
        for c in &mut signs {
            *c = if *c == '>' { '<' } else { '≤' };
        }
    }
    let sides = parts.iter().map(|p| parse(p, depth + 1, false)).collect();
    Some(Node::Ordered(signs.into_iter().collect(), sides))
}

fn plus_minus(text: &str, depth: u32) -> Option<Node> {
    if !text.contains(['±', '∓']) {
        return None;
    }
    let upper = text.replace('±', "+").replace('∓', "-");
    let lower = text.replace('±', "-").replace('∓', "+");
    let both = [upper, lower].map(|t| parse(&t, depth + 1, false));
    Some(Node::Bag('{', both.into()))
}

fn matrix(text: &str, depth: u32) -> Option<Node> {
    let (env, body) = text.strip_prefix("\\begin{")?.split_once('}')?;
    let mut body = body.strip_suffix(&format!("\\end{{{env}}}"))?.trim();
    if env == "array" && body.starts_with('{') {
        body = body.split_once('}')?.1;
    }
    // Only determinant bars change what a matrix means.
    let env = if env.starts_with(['v', 'V']) {
        env
    } else {
        "matrix"
    };
    let cell = |c: &str| parse(c, depth + 1, false);
    let row = |r: &str| Node::Ordered("row".to_owned(), r.split('&').map(cell).collect());
    let rows = body.trim_end_matches("\\\\").split("\\\\").map(row);
    Some(Node::Ordered(env.to_owned(), rows.collect()))
}

/// A leaf with number words and infinities in one form.
fn leaf(text: &str) -> Node {
    let text = text.trim();
    let text = text.trim_start_matches('+');
    if let Some(n) = word_number(text) {
        return Node::Leaf(n.to_string());
    }
    let lower = text.to_ascii_lowercase();
    Node::Leaf(match lower.strip_prefix('-').unwrap_or(&lower) {
        "inf" | "infinity" => format!("{}∞", if lower.starts_with('-') { "-" } else { "" }),
        // "A)" chooses A.
        c if c.len() == 2 && c.ends_with(')') => lower.trim_end_matches(')').to_owned(),
        _ => text.to_owned(),
    })
}

/// Name and rest of `x=…`, `x_1=…`, `f(x)=…`, `area=…` or `x∈…` with no further relation.
fn assigned(text: &str) -> Option<(&str, &str)> {
    let (name, rest) = text.split_once(['=', '∈'])?;
    let name = name.trim();
    let bare = name.strip_prefix('\\').unwrap_or(name);
    let word = bare.chars().all(|c| c.is_ascii_alphabetic()) && (bare.len() == 1 || bare.len() > 3);
    let mut chars = bare.chars();
    let letter = chars.next().is_some_and(|c| c.is_ascii_alphabetic());
    let indexed = match chars.next() {
        Some('_') => bare.len() < 7 && !bare.contains(|c: char| "+-*/^(,".contains(c)),
        Some('(') => bare.len() == 4 && bare.ends_with(')'),
        _ => false,
    };
    let named = word || letter && indexed;
    (named && !rest.trim().is_empty() && !rest.contains(|c| "=<>≤≥≠∈".contains(c)))
        .then_some((name, rest))
}

/// The change in bracket depth at `c`.
fn step(c: char) -> i32 {
    i32::from("([{«".contains(c)) - i32::from(")]}»".contains(c))
}

fn nesting(text: &str) -> u32 {
    let deepest = text.chars().scan(0_i32, |depth, c| {
        *depth = (*depth + step(c)).max(0);
        Some(depth.unsigned_abs())
    });
    deepest.max().unwrap_or(0)
}

/// Splits at separators outside all brackets.
fn split(text: &str, separator: impl Fn(char) -> bool) -> Vec<&str> {
    let mut depth = 0_i32;
    let at_top = |c: char| {
        depth += step(c);
        depth == 0 && separator(c)
    };
    text.split(at_top).collect()
}

/// The inside of a text that one pair of brackets encloses; `[1,2)` is a pair.
fn wrapped(text: &str) -> Option<(char, &str, char)> {
    let open = text.chars().next().filter(|c| "([{«".contains(*c))?;
    let close = text.chars().next_back().filter(|c| ")]}»".contains(*c))?;
    let inner = text.get(open.len_utf8()..text.len().checked_sub(close.len_utf8())?)?;
    let mut depth = 0_i32;
    let closes = inner.chars().any(|c| {
        depth += step(c);
        depth < 0
    });
    (!closes && depth == 0).then_some((open, inner, close))
}

/// Joins `1,234,567` outside tuples and sets; `1,2` and `12,345,6` stay lists.
fn join_thousands(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut depth = 0_i32;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ',');
        let (run, _) = rest
            .split_at_checked(rest.len() - after.len())
            .unwrap_or_default();
        if run.is_empty() {
            depth += i32::from("([«".contains(c)) - i32::from(")]»".contains(c));
            out.push(c);
            rest = rest.get(c.len_utf8()..).unwrap_or_default();
            continue;
        }
        let core = run.trim_end_matches(',');
        let mut groups = core.split(',');
        let lead = groups
            .next()
            .is_some_and(|g| (1..4).contains(&g.len()) && !g.starts_with('0'));
        let joins = depth == 0 && lead && !out.ends_with('.') && groups.all(|g| g.len() == 3);
        out.push_str(&if joins {
            core.replace(',', "")
        } else {
            core.to_owned()
        });
        out.push_str(run.get(core.len()..).unwrap_or_default());
        rest = after;
    }
    out
}
