//! Grammars in Lark's notation, as llguidance reads it, built piece by piece.

use std::fmt::Write;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::Value;
use toktrie::TokTrie;

use super::GrammarError;
use super::vocabulary::Vocabulary;

/// A text that a model writes around a part of its answer.
pub(super) type Mark = Vec<Piece>;

/// A piece of a mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    /// A special token of the vocabulary.
    Special(u32),
}

/// A text as a Lark string.
pub(super) fn literal(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    // Lark's strings have no raw DEL.
    quoted.replace('\u{7f}', "\\u007f")
}

/// An expression that matches a mark.
pub(super) fn mark(pieces: &[Piece]) -> String {
    let pieces = pieces.iter().map(|piece| match piece {
        Piece::Text(text) => literal(text),
        Piece::Special(id) => format!("<[{id}]>"),
    });
    pieces.collect::<Vec<_>>().join(" ")
}

/// A text within a pattern: each character by its number.
pub(super) fn in_pattern(text: &str) -> String {
    let character = |c: char| match c.is_ascii_alphanumeric() {
        true => c.to_string(),
        false => format!("\\u{{{:X}}}", c as u32),
    };
    text.chars().map(character).collect()
}

/// The special tokens in a text that a model writes.
///
/// # Errors
/// Where the text names a token that ends answers.
pub(super) fn split(text: &str, vocabulary: &Vocabulary) -> Result<Mark, GrammarError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut plain = String::new();
    while let Some(next) = rest.chars().next() {
        let found = special_at(rest, vocabulary);
        match found {
            Some((id, len)) => {
                if vocabulary.is_end(id) {
                    let name = &rest[..len];
                    let message = format!("{name:?} ends the answer and cannot be a part of it");
                    return Err(GrammarError::Invalid(message));
                }
                if !plain.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                }
                pieces.push(Piece::Special(id));
                rest = &rest[len..];
            }
            None => {
                plain.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

/// The longest special token that a text begins with.
fn special_at(text: &str, vocabulary: &Vocabulary) -> Option<(u32, usize)> {
    let trie = vocabulary.trie();
    let mut node = trie.child_at_byte(trie.root(), TokTrie::SPECIAL_TOKEN_MARKER)?;
    let mut longest = None;
    for (index, byte) in text.bytes().enumerate() {
        let Some(child) = trie.child_at_byte(node, byte) else {
            break;
        };
        node = child;
        if let Some(id) = node.token_id() {
            longest = Some((id, index + 1));
        }
    }
    longest
}

/// Rules and the grammars that they refer to.
#[derive(Debug, Default)]
pub(super) struct Lark {
    rules: String,
    num_names: usize,
    others: Vec<GrammarWithLexer>,
}

impl Lark {
    fn name(&mut self, prefix: &str) -> String {
        self.num_names += 1;
        format!("{prefix}{}", self.num_names)
    }

    /// A rule that llguidance sees; its name.
    pub(super) fn rule(&mut self, body: &str) -> String {
        let name = self.name("r");
        let _ = writeln!(self.rules, "{name}: {body}");
        name
    }

    /// A rule whose text ends where `suffix` first comes; the suffix belongs to the rule.
    pub(super) fn until(&mut self, body: &str, suffix: &str) -> String {
        let name = self.name("u");
        let suffix = literal(suffix);
        let _ = writeln!(self.rules, "{name}[suffix={suffix}]: {body}");
        name
    }

    /// A terminal: one regular expression.
    pub(super) fn terminal(&mut self, body: &str) -> String {
        let name = self.name("T");
        let _ = writeln!(self.rules, "{name}: {body}");
        name
    }

    /// Whether a rule of that name was defined.
    pub(super) fn has(&self, name: &str) -> bool {
        let mut lines = self.rules.lines();
        lines.any(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(':'))
        })
    }

    /// A rule or terminal with a name of its own.
    pub(super) fn define(&mut self, name: &str, body: &str) {
        let _ = writeln!(self.rules, "{name}: {body}");
    }

    /// A schema that [`super::schema::prepare`] has prepared.
    pub(super) fn schema(&mut self, schema: Value) -> String {
        let name = self.name("j");
        let mut grammar = GrammarWithLexer::from_json_schema(schema);
        grammar.name = Some(name.clone());
        self.others.push(grammar);
        format!("@{name}")
    }

    /// A whole grammar in Lark's notation.
    pub(super) fn grammar(&mut self, lark: String) -> String {
        let name = self.name("g");
        let mut grammar = GrammarWithLexer::from_lark(lark);
        grammar.name = Some(name.clone());
        self.others.push(grammar);
        format!("@{name}")
    }

    /// Any text that has none of `marks` in it, or none.
    pub(super) fn text_without(&mut self, marks: &[&str]) -> String {
        let mut body = "/(?s:.+)/".to_owned();
        for mark in marks {
            let _ = write!(body, " & ~/(?s:.*){}(?s:.*)/", in_pattern(mark));
        }
        format!("{}?", self.terminal(&body))
    }

    /// Any text up to a mark, with the mark.
    pub(super) fn text_until(&mut self, pieces: &[Piece]) -> String {
        match pieces {
            [] => self.text_without(&[]),
            [Piece::Text(first), rest @ ..] => {
                let text = self.until("/(?s:.*)/", first);
                format!("{text} {}", mark(rest))
            }
            pieces => format!("{} {}", self.text_without(&[]), mark(pieces)),
        }
    }

    /// Items in their order with `separator` between those that are there; those without a `true`
    /// may be left out.
    pub(super) fn ordered(&mut self, items: &[(String, bool)], separator: &str) -> String {
        let separator = literal(separator);
        // From the last: what follows when something stands before, and when nothing does.
        let (mut behind, mut first) = (String::from("\"\""), String::from("\"\""));
        for (item, is_required) in items.iter().rev() {
            let next_first = match is_required {
                true => format!("{item} {behind}"),
                false => format!("{item} {behind} | {first}"),
            };
            let next_behind = match is_required {
                true => format!("{separator} {item} {behind}"),
                false => format!("({separator} {item})? {behind}"),
            };
            first = self.rule(&next_first);
            behind = self.rule(&next_behind);
        }
        first
    }

    pub(super) fn num_bytes(&self) -> usize {
        let others = self.others.iter().map(|grammar| {
            let schema = grammar.json_schema.as_ref();
            let lark = grammar.lark_grammar.as_ref();
            schema.map_or(0, |schema| schema.to_string().len()) + lark.map_or(0, String::len)
        });
        self.rules.len() + others.sum::<usize>()
    }

    /// The whole grammar.
    pub(super) fn finish(self, start: &str) -> TopLevelGrammar {
        let lark = format!("start: {start}\n{}", self.rules);
        let mut grammars = vec![GrammarWithLexer::from_lark(lark)];
        grammars.extend(self.others);
        TopLevelGrammar {
            grammars,
            max_tokens: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted() {
        assert_eq!(literal("a\"b\\\n\u{7f}"), r#""a\"b\\\n\u007f""#);
        assert_eq!(in_pattern("a/[é"), r"a\u{2F}\u{5B}\u{E9}");
        let pieces = [Piece::Text("[".to_owned()), Piece::Special(7)];
        assert_eq!(mark(&pieces), r#""[" <[7]>"#);
    }
}
