//! Whether two math answers are the same answer.

use super::answer::{ABOUT, Node, SAMPLED, parse};
use super::expr::{eval, is_expression};
use super::extract::{clean, final_answer};
use super::num::Num;

/// Longer answers are compared as plain strings.
const MAX_LEN: usize = 4096;
const MAX_PASSES: u32 = 8;
/// Larger unordered lists match only where their sorted keys do.
const MAX_BAG: usize = 24;
/// Points at which expressions with variables are compared.
const POINTS: u64 = 5;

/// Whether the final answer found in `text` is equivalent to `reference`, or rounds to it where the
/// reference is a decimal with two or more digits behind its point.
pub fn equivalent_text(text: &str, reference: &str) -> bool {
    final_answer(text).is_some_and(|given| {
        equivalent(&given, reference) || rounds_to_reference(&given, reference)
    })
}

fn rounds_to_reference(given: &str, reference: &str) -> bool {
    if given.len() > MAX_LEN || reference.len() > MAX_LEN {
        return false;
    }
    let (a, b) = (clean(given), clean(reference));
    match (parse(&a, 0, true), parse(&b, 0, true)) {
        (Node::Leaf(a), Node::Leaf(b)) => match (eval(&a, None), eval(&b, None)) {
            (Some(x), Some(y)) => decimals::rounds_to((&a, x), (&b, y)),
            _ => false,
        },
        _ => false,
    }
}

/// Whether two answers are the same: as exact rationals where both are, else as floats within 1e-9,
/// as a value and its print as a float, as expressions by value at fixed points, as lists and
/// tuples by element, else as text. Units and percent signs do not count. Symmetric, deterministic,
/// and never panics.
pub fn equivalent(given: &str, reference: &str) -> bool {
    if given.len() > MAX_LEN || reference.len() > MAX_LEN {
        return given.trim() == reference.trim();
    }
    if normalize(given) == normalize(reference) {
        return true;
    }
    let (a, b) = (clean(given), clean(reference));
    if a.is_empty() || b.is_empty() {
        return false;
    }
    same(&parse(&a, 0, true), &parse(&b, 0, true))
        || (a.contains('=') && b.contains('=')) && same(&parse(&a, 0, false), &parse(&b, 0, false))
}

/// A key for grouping votes: equal keys mean equivalent answers. Idempotent. Rationals become
/// `p/q`; other values and expressions become rounded numbers, so a key is not for display.
pub fn normalize(answer: &str) -> String {
    let answer = answer.trim();
    let mut out = answer.to_owned();
    // A pass can expose what the next one folds, such as a second `x=`; few passes settle it.
    for _ in 0..MAX_PASSES {
        if out.len() > MAX_LEN {
            return out;
        }
        let next = key(&parse(&clean(&out), 0, true)).trim().to_owned();
        if next == out || next.is_empty() {
            return out;
        }
        out = next;
    }
    // Only malformed text never settles; as it stands it is its own key.
    answer.to_owned()
}

/// The grouping key of a node; parsing it again gives it back.
fn key(node: &Node) -> String {
    match node {
        Node::Leaf(text) => leaf_key(text),
        Node::Bag(tag, items) => {
            let mut keys: Vec<String> = items.iter().map(key).collect();
            keys.sort();
            match tag {
                '∪' => keys.join("∪"),
                _ => format!("{{{}}}", keys.join(", ")),
            }
        }
        Node::Ordered(tag, items) => {
            let mut keys: Vec<String> = items.iter().map(key).collect();
            if tag.chars().all(|c| "=≠".contains(c)) {
                keys.sort();
            }
            match tag.chars().next().unwrap_or_default() {
                open @ ('(' | '[') => {
                    let close = tag.chars().next_back().unwrap_or_default();
                    format!("{open}{}{close}", keys.join(", "))
                }
                'r' => keys.join("&"),
                c if c.is_ascii_alphabetic() => {
                    format!("\\begin{{{tag}}}{}\\end{{{tag}}}", keys.join("\\\\"))
                }
                _ => {
                    let mut signs = tag.chars();
                    let pieces = keys
                        .into_iter()
                        .map(|k| k + &String::from_iter(signs.next()));
                    pieces.collect()
                }
            }
        }
    }
}

fn leaf_key(text: &str) -> String {
    if text.starts_with([SAMPLED, ABOUT]) {
        return text.to_owned();
    }
    match eval(text, None).map(Num::snapped) {
        Some(Num::Q(n, 1)) => n.to_string(),
        Some(Num::Q(n, d)) => format!("{n}/{d}"),
        Some(Num::R(v)) => literal(text).unwrap_or_else(|| format!("{ABOUT}{v:.9e}")),
        None => sampled_key(text).unwrap_or_else(|| text_key(text)),
    }
}

fn sampled_key(text: &str) -> Option<String> {
    // One letter is more likely a choice than a variable.
    let values = samples(text).filter(|_| text.len() > 1)?;
    let show = |v: &Option<f64>| match v {
        Some(v) if v.abs() < 1e-14 => "0".to_owned(),
        Some(v) => format!("{v:.5e}"),
        None => "u".to_owned(),
    };
    let shown: Vec<String> = values.iter().map(show).collect();
    Some(format!("{SAMPLED}{}", shown.join(";")))
}

/// A plain decimal without the zeros that do not count, for numbers too long for a rational.
fn literal(text: &str) -> Option<String> {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |d| ("-", d));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    if !whole
        .chars()
        .chain(part.chars())
        .all(|c| c.is_ascii_digit())
    {
        return None;
    }
    let (whole, part) = (whole.trim_start_matches('0'), part.trim_end_matches('0'));
    let whole = if whole.is_empty() { "0" } else { whole };
    let point = if part.is_empty() { "" } else { "." };
    Some(format!("{sign}{whole}{point}{part}"))
}

/// Text without the spaces and braces that do not count; words in lower case.
fn text_key(text: &str) -> String {
    let chars: Vec<char> = text.replace('*', " ").chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut spaced = false;
    let mut rest = chars.as_slice();
    while let [c, after @ ..] = rest {
        rest = after;
        let c = match rest {
            // `x_{1}` is `x_1`.
            [inner, '}', after @ ..] if *c == '{' && inner.is_alphanumeric() => {
                rest = after;
                *inner
            }
            _ => *c,
        };
        if c.is_whitespace() {
            spaced = true;
            continue;
        }
        // "2 3" is not 23, and words stay apart.
        let joins =
            |a: char| a.is_alphabetic() && c.is_alphabetic() || a.is_numeric() && c.is_numeric();
        if spaced && out.chars().next_back().is_some_and(joins) {
            out.push(' ');
        }
        spaced = false;
        out.push(c);
    }
    if out.chars().all(|c| c.is_alphabetic() || c == ' ') {
        return out.to_lowercase();
    }
    out
}

/// The values at the fixed points of what reads as an expression and has at least two.
fn samples(text: &str) -> Option<Vec<Option<f64>>> {
    if !is_expression(text) {
        return None;
    }
    let at = |point| eval(text, Some(point)).map(Num::float);
    let values: Vec<Option<f64>> = (0..POINTS).map(at).collect();
    (values.iter().flatten().count() >= 2).then_some(values)
}

fn same(a: &Node, b: &Node) -> bool {
    match (a, b) {
        (Node::Leaf(x), Node::Leaf(y)) => leaf_key(x) == leaf_key(y) || same_leaf(x, y),
        (Node::Ordered(t, xs), Node::Ordered(u, ys)) => {
            t == u
                && xs.len() == ys.len()
                && (xs.iter().zip(ys).all(|(x, y)| same(x, y))
                    || t == "=" && same_equation(xs, ys).unwrap_or(false))
        }
        (Node::Bag(t, xs), Node::Bag(u, ys)) => t == u && same_bag(xs, ys),
        _ => false,
    }
}

fn same_bag(xs: &[Node], ys: &[Node]) -> bool {
    if xs.len() != ys.len() || xs.len() > MAX_BAG {
        return false;
    }
    let mut left: Vec<&Node> = ys.iter().collect();
    xs.iter().all(|x| {
        let found = left.iter().position(|y| same(x, y));
        found.map(|at| left.swap_remove(at)).is_some()
    })
}

fn same_leaf(a: &str, b: &str) -> bool {
    if let (Some(x), Some(y)) = (eval(a, None), eval(b, None)) {
        // Literals too long for a rational are told apart by their digits, in their keys.
        let long = matches!((x, y), (Num::R(_), _) | (_, Num::R(_)));
        let are_long = long && literal(a).is_some() && literal(b).is_some();
        return !are_long && x.close(y) || decimals::is_printed((a, x), (b, y));
    }
    let (Some(xs), Some(ys)) = (samples(a), samples(b)) else {
        return false;
    };
    xs.into_iter().zip(ys).all(|pair| match pair {
        (Some(x), Some(y)) => near(x, y),
        (x, y) => x.is_none() && y.is_none(),
    })
}

fn near(x: f64, y: f64) -> bool {
    (x - y).abs() <= 1e-6 * x.abs().max(y.abs()) + 1e-14
}

/// Whether one equation's difference of sides is a constant multiple of the other's.
fn same_equation(xs: &[Node], ys: &[Node]) -> Option<bool> {
    let difference = |sides: &[Node]| match sides {
        [Node::Leaf(l), Node::Leaf(r)] => {
            let sides = samples(l)?.into_iter().zip(samples(r)?);
            sides
                .map(|(l, r)| Some(l? - r?))
                .collect::<Option<Vec<f64>>>()
        }
        _ => None,
    };
    let (xs, ys) = (difference(xs)?, difference(ys)?);
    let pairs = || xs.iter().zip(&ys);
    let (x, y) = pairs().find(|(x, y)| x.abs() > 1e-9 && y.abs() > 1e-9)?;
    let ratio = x / y;
    Some(pairs().all(|(x, y)| near(*x, ratio * y)))
}

mod decimals;
#[cfg(test)]
mod tests;
