//! Each kind of grammar by texts that are in its language and texts that are not.

use serde_json::json;

use super::support::{plain, small};
use crate::grammar::{Grammar, GrammarError};

fn check(grammar: &Grammar, good: &[&str], bad: &[&str]) {
    for text in good {
        assert!(small().accepts(grammar, text), "{grammar:?} has {text:?}");
    }
    for text in bad {
        assert!(
            !small().accepts(grammar, text),
            "{grammar:?} lacks {text:?}"
        );
    }
}

fn gbnf(text: &str) -> Grammar {
    Grammar::Gbnf(text.to_owned())
}

#[test]
fn json_has_one_space_behind_commas_and_colons() {
    let good = [
        "{}",
        "{\"a\": 1}",
        "{\"a\": [1, \"x\", true, null, {}], \"b\": {\"c\": -0.5e-1}}",
    ];
    let bad = [
        "",
        "[]",
        "{ }",
        "{\"a\":1}",
        "{\"a\":  1}",
        "{\"a\": 1,\"b\": 2}",
        "{\"a\": 1} ",
        "\n{}",
        "{\"a\": 01}",
        "{\"a\": 1",
        "{} {}",
    ];
    check(&Grammar::JsonObject, &good, &bad);
}

#[test]
fn regular_expressions_match_the_whole_answer() {
    let regex = |text: &str| Grammar::Regex(text.to_owned());
    check(
        &regex("[a-c]+/x?"),
        &["a/", "abc/x"],
        &["", "a", "a/xx", " a/"],
    );
    check(&regex("^a|bc$"), &["a", "bc"], &["abc", "b"]);
    check(&regex("\\d{2}\\s"), &["12 ", "12\n"], &["1", "٣٣ "]);
    check(&regex(""), &[""], &["a"]);
    check(&regex("(é|🙂)*"), &["", "é🙂"], &["e"]);
    for pattern in ["(", "a{2,1}", "(?=a)b", "\\1", "a\\"] {
        let error = small().compile(&regex(pattern)).unwrap_err();
        assert!(
            matches!(error, GrammarError::Invalid(_)),
            "{pattern}: {error}"
        );
    }
}

#[test]
fn choices_are_whole_answers() {
    let choice =
        |choices: &[&str]| Grammar::Choice(choices.iter().map(|c| (*c).to_owned()).collect());
    let words = choice(&["cat", "category", "a \"b\"\n", "🙂"]);
    check(
        &words,
        &["cat", "category", "a \"b\"\n", "🙂"],
        &["", "ca", "catcat", "cat "],
    );
    check(&choice(&["", "a"]), &["", "a"], &["aa"]);
    assert!(small().compile(&choice(&[])).is_err());
}

#[test]
fn lark_names_special_tokens() {
    let lark = |text: &str| Grammar::Lark(text.to_owned());
    let grammar = lark("start: <|tool|> \"a\"+ <|tool|>");
    check(&grammar, &["<|tool|>aa<|tool|>"], &["<|tool|>aa", "aa"]);
    // As plain text there is no special token.
    let text = lark("start: /(?s:.*)/");
    let mut constraint = small().compile(&text).unwrap();
    let mask = small().mask(&mut *constraint);
    for name in ["<|tool|>", "<|im_start|>", "[ARGS]"] {
        assert!(!mask.is_allowed(small().id(name)), "{name}");
    }
    assert!(
        mask.is_allowed(small().id("<tool_call>")),
        "no special token"
    );
    for broken in [
        "",
        "start: b",
        "a: \"b\"",
        "start: \"a\" &",
        "{",
        "start: <|nothing|>",
    ] {
        let error = small().compile(&lark(broken)).unwrap_err();
        let message = error.to_string();
        assert!(
            !message.is_empty() && !message.contains("panic"),
            "{broken}: {message}"
        );
    }
    let error = plain().compile(&lark("start: <|nothing|>")).unwrap_err();
    assert!(matches!(error, GrammarError::Invalid(_)), "{error}");
}

#[test]
fn gbnf_is_followed() {
    check(
        &gbnf("root ::= \"a\" \"b\"* | [0-9]{2,3}"),
        &["a", "abb", "12", "123"],
        &["", "b", "1", "1234"],
    );
    check(
        &gbnf("root ::= [^a\\]-]+"),
        &["xyz", "🙂\n"],
        &["", "a", "]", "-"],
    );
    check(&gbnf("root ::= . ."), &["ab", "\n🙂"], &["a", "abc"]);
    check(
        &gbnf("root ::= \"\\x41\\u00e9\\n\\\"\\\\\""),
        &["Aé\n\"\\"],
        &["A"],
    );
    // A rule goes on over lines, in groups and out of them.
    check(
        &gbnf(
            "# comment\nroot ::=\n  (\n    item |\n    \"z\"\n  ) # end\n  | \"y\"\nitem ::= \"x\"\n\n",
        ),
        &["x", "y", "z"],
        &["xy"],
    );
    let arithmetic =
        "root ::= expr\nexpr ::= term ((\"+\" | \"-\") term)*\nterm ::= [0-9]+ | \"(\" expr \")\"";
    check(
        &gbnf(arithmetic),
        &["1", "1+2-3", "((1)+2)", "(12-(3))"],
        &["", "1+", "(1", "()", "1)"],
    );
    let json = r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"#;
    check(
        &gbnf(json),
        &[
            "{}",
            "{\"a\": [1, 2.5e3, {\"b\": null}]}",
            "{\n\"\\u00e9\":\"x\"}\n",
        ],
        &["[]", "{\"a\"}", "{\"a\": 1", "{\"a\": 01x}"],
    );
    // A word that may be empty, beside a rule that refers to itself.
    check(
        &gbnf("root ::= \"a\"? (\"(\" root \")\")?"),
        &["", "a", "(a)", "a(a())"],
        &["(", "aa"],
    );
    check(
        &gbnf("root ::= <|tool|> [a-z]* <|tool|>"),
        &["<|tool|>cat<|tool|>"],
        &["cat"],
    );
}

#[test]
fn ebnf_is_either() {
    let ebnf = |text: &str| Grammar::Ebnf(text.to_owned());
    check(&ebnf("root ::= \"a\"+"), &["aa"], &["b"]);
    check(&ebnf("start: \"a\"+"), &["aa"], &["b"]);
}

#[test]
fn grammars_that_end_only_with_tokens_counted_are_refused() {
    let lark = "start: a b\na[stop=\"x\"]: /.*/\nb: \"y\"";
    let error = small()
        .compile(&Grammar::Lark(lark.to_owned()))
        .unwrap_err();
    assert!(error.to_string().contains("suffix="), "{error}");
}

#[test]
fn equal_grammars_are_compiled_once() {
    let grammar = |n: usize| Grammar::JsonSchema {
        schema: json!({"type": "integer", "minimum": 0, "maximum": n}),
        strict: true,
    };
    for _ in 0..3 {
        check(&grammar(77), &["77"], &["78"]);
    }
    // The same schema, taken less strictly, is another grammar.
    let Grammar::JsonSchema { schema, .. } = grammar(77) else {
        unreachable!()
    };
    check(
        &Grammar::JsonSchema {
            schema,
            strict: false,
        },
        &["77"],
        &["78"],
    );
    check(&grammar(78), &["78"], &["79"]);
}
