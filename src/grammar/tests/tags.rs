//! Structural tags in both notations.

use serde_json::{Value, json};

use super::support::{plain, small};
use crate::grammar::{Grammar, GrammarError};

fn check(tag: &Value, good: &[&str], bad: &[&str]) {
    let grammar = Grammar::StructuralTag(tag.clone());
    for text in good {
        assert!(small().accepts(&grammar, text), "{tag} has {text:?}");
    }
    for text in bad {
        assert!(!small().accepts(&grammar, text), "{tag} lacks {text:?}");
    }
}

fn format(format: Value) -> Value {
    json!({"type": "structural_tag", "format": format})
}

#[test]
fn the_older_notation_has_triggers() {
    let number = json!({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"],
        "additionalProperties": false});
    let tag = json!({"structures": [
        {"begin": "<function=f>", "schema": number, "end": "</function>"},
        {"begin": "<function=g>", "schema": {"type": "string"}, "end": "</function>"},
    ], "triggers": ["<function="]});
    let good = [
        "",
        "Hello 12345678901234567890123",
        "a <function=f>{\"x\": 1}</function> b",
        "<function=g>\"s\"</function><function=f>{\"x\": 12}</function>12345678901234567890123",
        "<functio",
    ];
    let bad = [
        "<function=h>",
        "<function=f>{}</function>",
        "<function=f>{\"x\": 1}",
        "a<function=",
        "<function=f>{\"x\": 12345678901234567890}</function>",
    ];
    check(&tag, &good, &bad);
    // The same as a string of JSON.
    check(&Value::from(tag.to_string()), &good, &bad);
    // Begins and ends that are special tokens.
    let tag = json!({"structures": [{"begin": "<|tool|>", "schema": {"type": "boolean"}, "end": "<|tool|>"}],
        "triggers": ["<|tool|>"]});
    check(
        &tag,
        &["a<|tool|>true<|tool|>b"],
        &["<|tool|>true", "<|tool|>1<|tool|>"],
    );
}

#[test]
fn formats_are_built_of_parts() {
    let text = |value: &str| json!({"type": "const_string", "value": value});
    let digits = json!({"type": "regex", "pattern": "[0-9]+"});
    let sequence = |elements: Value| json!({"type": "sequence", "elements": elements});
    check(&format(text("ab<|tool|>")), &["ab<|tool|>"], &["ab", ""]);
    check(
        &format(sequence(json!([text("a"), digits, text("b")]))),
        &["a12b"],
        &["a12", "ab"],
    );
    let or = json!({"type": "or", "elements": [text("a"), digits]});
    check(&format(or), &["a", "12"], &["", "a1"]);
    check(
        &format(json!({"type": "json_schema", "json_schema": {"type": "boolean"}})),
        &["true"],
        &["1"],
    );
    check(
        &format(json!({"type": "grammar", "grammar": "root ::= \"x\" root?"})),
        &["xx"],
        &["", "y"],
    );
    check(
        &format(json!({"type": "any_text"})),
        &["", "a\nb"],
        &["<|tool|>"],
    );
    let tag = json!({"type": "tag", "begin": "<think>", "content": {"type": "any_text"}, "end": "</think>"});
    let thought = sequence(json!([tag, text("!")]));
    check(
        &format(thought),
        &["<think>a b</think>!", "<think></think>!"],
        &["<think>a", "a</think>!"],
    );
    let before = sequence(
        json!([{"type": "any_text"}, {"type": "tag", "begin": "[", "content": digits, "end": "]"}]),
    );
    check(
        &format(before),
        &["a [1]", "[12]"],
        &["a", "a [b]", "[1] b"],
    );
}

#[test]
fn tags_come_in_text_or_with_separators() {
    let tag = |name: &str| {
        json!({"type": "tag", "begin": format!("<{name}>"), "content": {"type": "json_schema", "json_schema": {"type": "integer"}},
            "end": format!("</{name}>")})
    };
    let triggered = |least: bool, stop: bool| {
        format(
            json!({"type": "triggered_tags", "triggers": ["<"], "tags": [tag("a"), tag("b")],
            "at_least_one": least, "stop_after_first": stop}),
        )
    };
    let two = "x<a>1</a>y<b>2</b>";
    check(
        &triggered(false, false),
        &["", "text", two],
        &["<", "<c>", "<a>x</a>"],
    );
    check(&triggered(true, false), &[two, "<a>1</a>"], &["", "text"]);
    check(
        &triggered(false, true),
        &["", "x<a>1</a>"],
        &[two, "x<a>1</a>y"],
    );
    check(&triggered(true, true), &["x<a>1</a>"], &["", two]);
    let separated = |least: bool, stop: bool| {
        format(
            json!({"type": "tags_with_separator", "separator": ", ", "tags": [tag("a"), tag("b")],
            "at_least_one": least, "stop_after_first": stop}),
        )
    };
    check(
        &separated(false, false),
        &["", "<a>1</a>, <b>2</b>"],
        &["<a>1</a><b>2</b>", "<a>1</a>, "],
    );
    check(
        &separated(true, true),
        &["<b>2</b>"],
        &["", "<a>1</a>, <b>2</b>"],
    );
}

/// Tags that are wrong, and what their errors name.
fn faults() -> Vec<(Value, &'static str)> {
    let schema = json!({"type": "boolean"});
    let structure = |begin: &str| json!({"begin": begin, "schema": schema, "end": "x"});
    vec![
        (json!({}), "format"),
        (json!([]), "format"),
        (json!("{"), "JSON"),
        (json!({"structures": [], "triggers": ["a"]}), "structures"),
        (json!({"structures": [structure("ab")]}), "triggers"),
        (
            json!({"structures": [structure("ab")], "triggers": ["b"]}),
            "\"b\"",
        ),
        (
            json!({"structures": [structure("ab"), structure("b")], "triggers": ["a"]}),
            "\"b\"",
        ),
        (
            json!({"structures": [structure("ab")], "triggers": [""]}),
            "trigger",
        ),
        (
            json!({"structures": [{"begin": "a", "end": "b"}], "triggers": ["a"]}),
            "structures[0]",
        ),
        (
            json!({"structures": [{"begin": "a<|im_end|>", "schema": {}, "end": ""}], "triggers": ["a"]}),
            "<|im_end|>",
        ),
        (
            format(json!({"type": "qwen_xml_parameter"})),
            "qwen_xml_parameter",
        ),
        (format(json!({"type": "regex", "pattern": "("})), "regular"),
        (
            format(json!({"type": "grammar", "grammar": "root ::= ("})),
            "line 1",
        ),
        (
            format(json!({"type": "json_schema", "json_schema": {"type": "text"}})),
            "text",
        ),
        (
            format(
                json!({"type": "sequence", "elements": [{"type": "any_text"}, {"type": "any_text"}]}),
            ),
            "elements[0]",
        ),
        (
            format(json!({"type": "tag", "begin": "a", "content": {"type": "x"}, "end": "b"})),
            "format.content",
        ),
        (
            format(json!({"type": "or", "elements": [5]})),
            "elements[0]",
        ),
    ]
}

#[test]
fn faults_are_named_by_their_place() {
    for (tag, part) in faults() {
        let error = plain_or_small(&tag);
        assert!(error.to_string().contains(part), "{tag}: {error}");
    }
    let structure = json!({"begin": "ab", "schema": {}, "end": "x"});
    let many = json!({"structures": vec![structure; 300], "triggers": ["a"]});
    assert!(matches!(
        plain_or_small(&many),
        GrammarError::TooMuchWork(_)
    ));
    let mut deep = json!({"type": "any_text"});
    for _ in 0..100 {
        deep = json!({"type": "or", "elements": [deep]});
    }
    assert!(matches!(
        plain_or_small(&format(deep)),
        GrammarError::TooMuchWork(_)
    ));
}

fn plain_or_small(tag: &Value) -> GrammarError {
    let grammar = Grammar::StructuralTag(tag.clone());
    plain()
        .compile(&grammar)
        .err()
        .unwrap_or_else(|| panic!("{tag}"));
    small().compile(&grammar).unwrap_err()
}
