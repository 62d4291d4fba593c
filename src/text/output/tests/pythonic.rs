//! Calls as Python writes them.

use super::*;
use crate::text::output::python;

#[test]
fn lists_of_calls() {
    for parser in [
        OutputParser::new(format(ToolFormat::Pythonic), false),
        offering(ToolFormat::Pythonic),
    ] {
        for (text, calls) in [
            ("[f()]", &[("f", "{}")][..]),
            (
                "[f(a=1), get_weather(city='Oslo')]",
                &[("f", "{\"a\": 1}"), ("get_weather", "{\"city\": \"Oslo\"}")],
            ),
            (
                "[f(a=1, b=\"x\", c={'k': [1]}), add()]",
                &[
                    ("f", "{\"a\": 1, \"b\": \"x\", \"c\": {\"k\": [1]}}"),
                    ("add", "{}"),
                ],
            ),
            ("\n[ f( a = 1 , ) , ]\n", &[("f", "{\"a\": 1}")]),
            (
                "<|python_start|>[f(a=True)]<|python_end|>",
                &[("f", "{\"a\": true}")],
            ),
            ("<|python_start|>[f(a=None)]", &[("f", "{\"a\": null}")]),
            (
                "[f(a='])', b=\"it's\", c='\\'')]",
                &[("f", "{\"a\": \"])\", \"b\": \"it's\", \"c\": \"'\"}")],
            ),
            (
                "[f(a=\"\"\"x \"y\" )\n\"\"\", b='')]",
                &[("f", "{\"a\": \"x \\\"y\\\" )\\n\", \"b\": \"\"}")],
            ),
            ("[f(a=1)", &[("f", "{\"a\": 1}")]),
            ("[f(a=1), ", &[("f", "{\"a\": 1}")]),
            ("[f(a=12", &[("f", "{\"a\": 12")]),
            ("[f(a='xy", &[("f", "{\"a\": \"xy")]),
            ("[f(a=[1, {'b': 'c", &[("f", "{\"a\": [1, {\"b\": \"c")]),
            ("[f(", &[("f", "")]),
        ] {
            check(&parser, text, "", calls);
        }
        for text in [
            "[",
            "[]",
            "[1, 2]",
            "[f",
            "[f]",
            "[f(1)]",
            "[f(x) for x in y]",
            "[f(a=b)]",
            "[f(a=1 + 2)]",
            "[9f(a=1)]",
            "Text [f] and [link](url).",
            "Text in a line [f(a=1)]",
            "<|python_start|>print(1)<|python_end|>",
        ] {
            check_plain(&parser, text);
        }
        check(
            &parser,
            "[f(a=1), f(a=b)]",
            ", f(a=b)]",
            &[("f", "{\"a\": 1}")],
        );
        check(&parser, "[f(a=1)] Done.", "Done.", &[("f", "{\"a\": 1}")]);
    }
    let parser = offering(ToolFormat::Pythonic);
    check(
        &parser,
        "I call:\n[f(a=1)]",
        "I call:",
        &[("f", "{\"a\": 1}")],
    );
    check_plain(&parser, "[other(a=1)]");
    check(
        &parser,
        "<|python_start|>[other(a=1)]",
        "",
        &[("other", "{\"a\": 1}")],
    );
}

#[test]
fn literals_become_json() {
    for (python, json) in [
        ("1", "1"),
        ("-1.5e3", "-1.5e3"),
        ("1.", "1.0"),
        (".5", "0.5"),
        ("+3", "3"),
        ("1_000", "1000"),
        ("True", "true"),
        ("[]", "[]"),
        ("()", "[]"),
        ("(1, 2)", "[1, 2]"),
        ("(1,)", "[1]"),
        ("(1)", "1"),
        ("{}", "{}"),
        ("{1, 'a'}", "[1, \"a\"]"),
        (
            "{'a': 1, 2: None, True: [],}",
            "{\"a\": 1, \"2\": null, \"true\": []}",
        ),
        ("'a' \"b\"", "\"ab\""),
        (r"'\n\t\\\'\x41\u00e9\101\q'", r#""\n\t\\'AéA\\q""#),
        (r"'\ud83d\ude00\U0001f600\ud800'", "\"😀😀\u{fffd}\""),
        (r"r'\n\''", r#""\\n\\'""#),
        ("u'é😀'", "\"é😀\""),
        ("''''a'b'''", "\"'a'b\""),
    ] {
        let read = python::literal(python);
        assert_eq!(read.as_deref(), Some(json), "{python}");
        serde_json::from_str::<serde_json::Value>(json).unwrap();
    }
    for python in [
        "",
        "x",
        "1 2",
        "[1",
        "{'a': 1, 2}",
        "{1, 'a': 2}",
        "{[1]: 2}",
        "f'{x}'",
        "nan",
        "1.2.3",
        "--1",
        "'a",
        "0x",
        "[1 2]",
        "(",
        "'\\x4'",
    ] {
        assert_eq!(python::literal(python), None, "{python}");
    }
    assert_eq!(python::literal(&"[".repeat(100_000)), None, "too deep");
}
