//! llama.cpp's notation, GBNF, as Lark.
//!
//! A rule that does not reach itself is a regular expression, and becomes one terminal: masks of
//! such rules cost little. In other rules, regular parts that stand side by side become one
//! terminal. Terminals take the longest text that they match.

mod emit;
mod parse;

use super::GrammarError;

/// A part of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Text(String),
    /// A class of characters as a pattern, such as `[^\u{22}]`.
    Class(String),
    /// A token of the vocabulary, as `<name>` or `<[id]>`.
    Token(String),
    /// A rule by its index.
    Rule(usize),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    Repeat {
        node: Box<Node>,
        least: u64,
        most: Option<u64>,
    },
}

/// # Errors
/// What is wrong, with its line.
pub(super) fn to_lark(text: &str) -> Result<String, GrammarError> {
    let rules = parse::parse(text)?;
    Ok(emit::emit(&rules))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        to_lark(text).expect_err(text).to_string()
    }

    #[test]
    fn regular_rules_are_terminals() {
        let lark = to_lark("root ::= word (\" \" word)* # words\nword ::= [a-z]+").unwrap();
        assert_eq!(
            lark,
            "start: T0\nT0: T1 (\" \" T1)*\nT1: /[\\u{61}-\\u{7A}]/+\n"
        );
    }

    #[test]
    fn recursive_rules_stay_rules() {
        let text = "root ::= \"(\" (root | [0-9]{1,3}) \")\"";
        let lark = to_lark(text).unwrap();
        assert_eq!(
            lark,
            "start: r0\nr0: A0 (r0 | A1) A2\nA0: \"(\"\nA1: /[\\u{30}-\\u{39}]/{1,3}\nA2: \")\"\n"
        );
    }

    #[test]
    fn errors_name_their_lines() {
        for (text, line, part) in [
            ("", 1, "root"),
            ("value ::= \"a\"", 1, "root"),
            ("root ::= value", 1, "value"),
            ("root ::= \"a\"\nroot ::= \"b\"", 2, "root"),
            ("root ::= \"a\n", 1, "ends"),
            ("root ::= \"a\" |\n  (\"b\"", 2, "closed"),
            ("# text\n\nroot ::= [a-", 3, "closed"),
            ("root ::= [z-a]", 1, "range"),
            ("root ::= \"\\q\"", 1, "escape"),
            ("root ::= \"a\"{3,2}", 1, "3"),
            ("root ::= \"a\"{2,1000000}", 1, "10000"),
            ("root ::= \"a\"{x}", 1, "{"),
            ("root ::= \"a\" ^", 1, "^"),
            ("root = \"a\"", 1, "::="),
            ("root ::= *", 1, "*"),
            ("root ::= \"\\u12\"", 1, "escape"),
            ("root ::= []", 1, "empty"),
        ] {
            let message = error(text);
            assert!(
                message.contains(&format!("line {line}")),
                "{text}: {message}"
            );
            assert!(message.contains(part), "{text}: {message}");
        }
        let deep = format!("root ::= {}\"a\"{}", "(".repeat(50), ")".repeat(50));
        assert!(error(&deep).contains("deep"));
    }
}
