//! Finds the final answer in a model's text and strips its typesetting.

use regex::Regex;
use std::sync::LazyLock;

use super::fence::FENCE;

// Word boundaries are ASCII: Unicode ones make the regex engine slow on non-ASCII text.

/// "answer is", "answer is:", "Answer:", "**Answer:**", in any case.
static PHRASE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)(?-u:\b)answer\**\s*(?:is(?-u:\b)\s*:?|:)").ok());

static NUMBER: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"[-−]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?-u:\b)|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?",
    )
    .ok()
});

/// Units that may follow a number; matched as whole words.
const UNITS: &str = "m g s h cm mm km kg mg hr hrs hour hours min mins minute minutes sec secs \
    second seconds day days week weeks month months year years dollar dollars cent cents usd \
    degree degrees percent mph kph ft foot feet in inch inches yd yard yards mi mile miles \
    meter meters metre metres centimeter centimeters centimetre centimetres kilometer kilometers \
    kilometre kilometres millimeter millimeters gram grams kilogram kilograms pound pounds lb lbs \
    ounce ounces oz ml liter liters litre litres gallon gallons unit units square sq cubic per \
    radian radians rad points ways celsius fahrenheit";

/// The final answer in `text`, trimmed and never empty.
///
/// The first of these that is there: the later of the last balanced `\boxed{…}` (or `\fbox`) and
/// the last `<answer>…</answer>`; the last `#### x`; the text after the last "answer is" or
/// "answer:"; the last number. Takes time linear in the length of `text`.
pub fn final_answer(text: &str) -> Option<String> {
    marked_answer(text).or_else(|| last_number(text))
}

/// The same where the text says that it is the answer.
pub(crate) fn marked_answer(text: &str) -> Option<String> {
    let marked = boxed(text).into_iter().chain(tagged(text));
    let last = marked.max_by_key(|(at, _)| *at);
    let marked = last.map(|(_, inner)| inner.to_owned());
    marked.or_else(|| hashed(text)).or_else(|| phrased(text))
}

/// Start and content of the balanced, non-empty box that starts last.
fn boxed(text: &str) -> Option<(usize, &str)> {
    let bytes = text.as_bytes();
    // One forward pass with a stack: retrying from every `\boxed{` would be quadratic.
    let mut open: Vec<Option<usize>> = Vec::new();
    let mut best: Option<(usize, &str)> = None;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'\\' => match box_body(bytes, at) {
                Some(body) => {
                    open.push(Some(body));
                    at = body;
                }
                // An escaped brace does not count.
                None if bytes.get(at).is_some_and(|b| b"{}\\".contains(b)) => at += 1,
                None => {}
            },
            b'{' => open.push(None),
            b'}' => {
                if let Some(Some(start)) = open.pop()
                    && let Some(inner) = text.get(start..at - 1).map(str::trim)
                    && !inner.is_empty()
                    && best.is_none_or(|(b, _)| start > b)
                {
                    best = Some((start, inner));
                }
            }
            _ => {}
        }
    }
    best
}

/// Where the content starts when `boxed{` or `fbox{` stands at `at`.
fn box_body(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = bytes.get(at..)?;
    let rest = rest
        .strip_prefix(b"boxed")
        .or_else(|| rest.strip_prefix(b"fbox"))?;
    let rest = rest.trim_ascii_start().strip_prefix(b"{")?;
    Some(bytes.len() - rest.len())
}

/// Start and content of the last non-empty `<answer>…</answer>`.
fn tagged(text: &str) -> Option<(usize, &str)> {
    let mut before = text;
    while let Some((head, _)) = before.rsplit_once("</answer>") {
        let (outer, inner) = head.rsplit_once("<answer>")?;
        // A start tag belongs to the first end tag after it.
        let inner = inner.split("</answer>").next().unwrap_or(inner).trim();
        if !inner.is_empty() {
            return Some((outer.len(), inner));
        }
        before = outer;
    }
    None
}

fn hashed(text: &str) -> Option<String> {
    text.lines().rev().find_map(|line| {
        let (_, rest) = line.rsplit_once("####")?;
        tidy(rest)
    })
}

fn phrased(text: &str) -> Option<String> {
    phrased_line(text).and_then(tidy)
}

/// The line that holds what follows the last "answer is" or "answer:", from there on.
fn phrased_line(text: &str) -> Option<&str> {
    let found = PHRASE.as_ref()?.find_iter(text).last()?;
    // Display math often starts on a line of its own, so an empty line is passed over.
    let mut lines = text.get(found.end()..)?.lines();
    lines.find(|line| tidy(line).is_some())
}

/// Whether `text` says which part of it is the final answer. A fence that opens where the answer
/// would stand is none.
pub fn is_marked(text: &str) -> bool {
    boxed(text).is_some()
        || tagged(text).is_some()
        || hashed(text).is_some()
        || phrased_line(text).is_some_and(|line| !line.contains(FENCE))
}

/// One line without Markdown, dollar signs, and what follows the first sentence.
fn tidy(line: &str) -> Option<String> {
    let mut out = line.to_owned();
    for mark in ["**", "`", "\\$", "$", "\\(", "\\)", "\\[", "\\]"] {
        out = out.replace(mark, "");
    }
    let first = out.split(". ").next().unwrap_or_default().trim();
    let first = first.trim_end_matches('.').trim();
    (!first.is_empty()).then(|| first.to_owned())
}

fn last_number(text: &str) -> Option<String> {
    let found = NUMBER.as_ref()?.find_iter(text).last()?;
    let number = found.as_str();
    let before = text.get(..found.start())?.chars().next_back();
    // In "10-5" the hyphen belongs to no number.
    let joined = before.is_some_and(|c| c.is_alphanumeric() || c == ')');
    let number = if joined {
        number.trim_start_matches(['-', '−'])
    } else {
        number
    };
    Some(number.to_owned())
}

/// `text` with typesetting removed and commands with one meaning folded to one character:
/// `\pi` to `π`, `\{` to `«`, `\cdot` to `*`. Keeps `\frac`, `\sqrt` and what it does not know.
pub(crate) fn clean(text: &str) -> String {
    let text = text.trim().trim_matches('`');
    let text = text.trim_start_matches("**").trim_end_matches("**");
    let text = text.replace("{,}", "").replace(",\\!", "");
    let text = text.replace("**", "^").replace("<=", "≤");
    let text = text.replace(">=", "≥");
    let mut out = String::with_capacity(text.len());
    // For each open brace, whether it went with a dropped wrapper such as `\text`.
    let mut dropped: Vec<bool> = Vec::new();
    let mut rest = text.as_str();
    while let Some(c) = rest.chars().next() {
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
        match c {
            '\\' => rest = command(rest, &mut out, &mut dropped),
            '{' => {
                dropped.push(false);
                out.push('{');
            }
            '}' => out.push(if dropped.pop() == Some(true) {
                ' '
            } else {
                '}'
            }),
            c => symbol(c, &mut out),
        }
    }
    for degrees in ["^{°}", "^°", "°"] {
        out = out.replace(degrees, "");
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Appends the meaning of the command at the start of `rest`; returns what follows it.
fn command<'a>(rest: &'a str, out: &mut String, dropped: &mut Vec<bool>) -> &'a str {
    let letters = rest.len()
        - rest
            .trim_start_matches(|c: char| c.is_ascii_alphabetic())
            .len();
    let len = match letters {
        0 => rest.chars().next().map_or(0, char::len_utf8),
        n => n,
    };
    let (name, after) = rest.split_at_checked(len).unwrap_or((rest, ""));
    let meaning = match name {
        "left" | "right" | "big" | "Big" | "bigl" | "bigr" | "Bigl" | "Bigr" | "displaystyle"
        | "," | "!" | ";" | ":" | "$" | "%" | "(" | ")" | "[" | "]" => "",
        "text" | "textbf" | "textit" | "textrm" | "mathrm" | "mathbf" | "mathit" | "mbox"
        | "operatorname" | "boxed" | "fbox" => {
            out.push(' ');
            let Some(inner) = after.trim_start().strip_prefix('{') else {
                return after;
            };
            dropped.push(true);
            return inner;
        }
        "frac" | "dfrac" | "tfrac" | "cfrac" => "\\frac",
        " " | "quad" | "qquad" => " ",
        "{" | "lbrace" => "«",
        "}" | "rbrace" => "»",
        "le" | "leq" | "leqslant" => "≤",
        "ge" | "geq" | "geqslant" => "≥",
        "ne" | "neq" => "≠",
        "langle" => "(",
        "rangle" => ")",
        "lt" => "<",
        "gt" => ">",
        "cdot" | "times" => "*",
        "div" => "/",
        "circ" | "degree" => "°",
        "infty" => "∞",
        "pm" => "±",
        "mp" => "∓",
        "pi" => "π",
        "cup" => "∪",
        "in" => "∈",
        "emptyset" | "varnothing" => "∅",
        "lvert" | "rvert" | "vert" | "mid" => "|",
        _ => {
            out.push('\\');
            name
        }
    };
    out.push_str(meaning);
    after
}

/// Appends one character outside commands, folding Unicode forms.
fn symbol(c: char, out: &mut String) {
    let folded = match c {
        '$' | '%' | '€' | '£' => "",
        '~' | '\u{a0}' => " ",
        '−' | '–' => "-",
        '×' | '·' | '⋅' => "*",
        '÷' => "/",
        '√' => "\\sqrt ",
        '²' => "^2",
        '³' => "^3",
        '½' => "\\frac12",
        '¼' => "\\frac14",
        '¾' => "\\frac34",
        c => return out.push(c),
    };
    out.push_str(folded);
}

/// `text` without the units at its end ("3 cm^2", "5 m/s"), where a quantity is left before them.
pub(crate) fn strip_units(text: &str) -> &str {
    let mut rest = text.trim_end();
    let mut short = false;
    loop {
        let body = ["^2", "^3", "^{2}", "^{3}"]
            .iter()
            .find_map(|p| rest.strip_suffix(p).map(str::trim_end))
            .filter(|b| b.ends_with(|c: char| c.is_ascii_alphabetic()))
            .unwrap_or(rest);
        let head = body.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let word = body.get(head.len()..).unwrap_or_default();
        if !is_unit(word) || !bounded(head, word.len() == 1) {
            break;
        }
        short |= word.len() == 1;
        rest = head.trim_end().trim_end_matches('/').trim_end();
    }
    let quantity = rest.contains(|c: char| c.is_ascii_digit() || c == 'π' || c == '\\')
        || word_number(rest).is_some();
    // "3x m" may be a product of variables; only a plain number takes a one-letter unit.
    if quantity && !(short && has_letters(rest)) {
        rest
    } else {
        text
    }
}

fn is_unit(word: &str) -> bool {
    let same = |unit: &str| match word.len() {
        1 => unit == word,
        _ => unit.eq_ignore_ascii_case(word),
    };
    UNITS.split_whitespace().any(same)
}

/// Whether a unit may start after `head`. "3m" may be 3 times m: one letter needs a space.
fn bounded(head: &str, one_letter: bool) -> bool {
    if let Some(before) = head.strip_suffix('/') {
        return before.ends_with(|c: char| c.is_ascii_alphabetic());
    }
    head.ends_with(char::is_whitespace)
        || !one_letter && head.ends_with(|c: char| c.is_ascii_digit() || ")]}»".contains(c))
}

/// Whether `text` has letters outside `\commands`.
fn has_letters(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic();
    let mut parts = text.split('\\');
    parts.next().is_some_and(|p| p.contains(letter))
        || parts.any(|p| p.trim_start_matches(letter).contains(letter))
}

/// The value of a number word from zero to twenty, in any case.
pub(crate) fn word_number(word: &str) -> Option<usize> {
    let words = "zero one two three four five six seven eight nine ten eleven twelve thirteen \
        fourteen fifteen sixteen seventeen eighteen nineteen twenty";
    words
        .split_whitespace()
        .position(|w| w.eq_ignore_ascii_case(word.trim()))
}

#[cfg(test)]
mod tests;
