//! `<tool_call>`, and what public reports say of it.

use super::*;

fn hermes() -> OutputParser {
    OutputParser::new(format(ToolFormat::Hermes), false)
}

#[test]
fn calls_with_and_without_text() {
    let parser = hermes();
    let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    check(&parser, one, "", &[("f", "{\"a\": 1}")]);
    check(
        &parser,
        &format!("{one}\n{one}"),
        "",
        &[("f", "{\"a\": 1}"); 2],
    );
    check(
        &parser,
        &format!("{one}{one}"),
        "",
        &[("f", "{\"a\": 1}"); 2],
    );
    check(
        &parser,
        &format!("Let me see.\n\n{one}\n"),
        "Let me see.",
        &[("f", "{\"a\": 1}")],
    );
    check(
        &parser,
        &format!("One {one} two\n{one} three."),
        "One  two\n three.",
        &[("f", "{\"a\": 1}"); 2],
    );
    check(
        &parser,
        &format!("{one}\nDone."),
        "Done.",
        &[("f", "{\"a\": 1}")],
    );
    check_plain(&parser, "  plain text \n");
    check_plain(&parser, "");
}

#[test]
fn arguments_pass_as_they_are_written() {
    let parser = hermes();
    for arguments in [
        "{}",
        "{ \"a\" : [1,2 , {\"b\":null}] }",
        r#"{"a": "\u00e9\ud83d\ude00 \"quoted\" \\ é😀"}"#,
        r#"{"code": "if (x) { y[\"}\"] } </tool_call> <tool_call>"}"#,
        r#"{"json": "{\"name\": \"g\", \"arguments\": {\"x\": \"}}\"}}"}"#,
        "{\"a\": 1e400, \"b\": -0.0}",
        "[1, 2]",
        "7",
        "\"text\"",
    ] {
        let text =
            format!("<tool_call>{{\"name\": \"f\", \"arguments\": {arguments}}}</tool_call>");
        check(&parser, &text, "", &[("f", arguments)]);
    }
}

#[test]
fn calls_without_arguments_have_an_empty_object() {
    let parser = hermes();
    for body in [
        "{\"name\": \"f\"}",
        "{\"name\": \"f\", \"arguments\": null}",
        "{\"name\": \"f\", \"arguments\": \"\"}",
        "{\"name\": \"f\", \"arguments\": {}}",
        "{\"name\": \"f\", \"arguments\": }",
        "{\"name\": \"f\", \"arguments\":",
        "{\"name\": \"f\"",
    ] {
        let text = format!("<tool_call>\n{body}\n</tool_call>");
        check(&parser, &text, "", &[("f", "{}")]);
    }
}

#[test]
fn keys_come_in_any_order() {
    let parser = hermes();
    let calls = [("f", "{\"a\": {\"name\": \"g\"}}")];
    for body in [
        r#"{"arguments": {"a": {"name": "g"}}, "name": "f"}"#,
        r#"{"id": "x{", "type": "function", "name": "f", "arguments": {"a": {"name": "g"}}}"#,
        r#"{"name": "f", "parameters": {"a": {"name": "g"}}, "note": ["]"]}"#,
        r#"{"function": {"name": "f", "arguments": {"a": {"name": "g"}}}}"#,
        r#"{"type": "function", "function": {"arguments": {"a": {"name": "g"}}, "name": "f"}}"#,
        r#"{"function": "f", "arguments": {"a": {"name": "g"}}}"#,
        r#"{"name": "\u0066", "arguments": "{\"a\": {\"name\": \"g\"}}"}"#,
        r#"{"name": "f", "arguments": {"a": {"name": "g"}}, "arguments": {}, "name": "h"}"#,
    ] {
        check(
            &parser,
            &format!("<tool_call>{body}</tool_call>"),
            "",
            &calls,
        );
    }
}

#[test]
fn several_calls_between_two_marks() {
    let parser = hermes();
    let calls = [("f", "{\"a\": 1}"), ("g", "{}")];
    let (one, two) = (
        "{\"name\":\"f\",\"arguments\":{\"a\": 1}}",
        "{\"name\":\"g\"}",
    );
    for body in [
        format!("[{one}, {two}]"),
        format!("{one}\n{two}"),
        format!("{one},{two}"),
        format!("[{one}, {two}"),
    ] {
        check(
            &parser,
            &format!("<tool_call>{body}</tool_call>"),
            "",
            &calls,
        );
    }
}

#[test]
fn lost_and_added_brackets() {
    let parser = hermes();
    let start = "<tool_call>{\"name\": \"f\", \"arguments\": ";
    for (rest, arguments) in [
        // The call's own bracket.
        ("{\"a\": 1}</tool_call>", "{\"a\": 1}"),
        // One of the arguments, too.
        ("{\"a\": 1</tool_call>", "{\"a\": 1}"),
        (
            "{\"a\": [1, {\"b\": 2</tool_call>",
            "{\"a\": [1, {\"b\": 2}]}",
        ),
        ("{\"a\": 1}}}\n</tool_call>", "{\"a\": 1}"),
        ("{\"a\": 1}}\n", "{\"a\": 1}"),
        ("{\"a\": 1}}", "{\"a\": 1}"),
        ("{\"a\": 1}", "{\"a\": 1}"),
        ("{\"a\": 1}}\n</tool_", "{\"a\": 1}"),
    ] {
        check(&parser, &format!("{start}{rest}"), "", &[("f", arguments)]);
    }
    // The second call's mark comes where the first one's end should.
    let text = format!("{start}{{\"a\": 1}}}}\n{start}{{\"b\": 2}}}}\n</tool_call>");
    check(
        &parser,
        &text,
        "",
        &[("f", "{\"a\": 1}"), ("f", "{\"b\": 2}")],
    );
}

#[test]
fn a_cut_call_has_the_arguments_so_far() {
    let parser = hermes();
    let start = "<tool_call>{\"name\": \"f\", \"arguments\": ";
    for (rest, arguments) in [
        ("{\"a\": \"b", "{\"a\": \"b"),
        ("{\"a\": [1, ", "{\"a\": [1, "),
        ("{\"a\": \"</tool_call>", "{\"a\": \"</tool_call>"),
        ("{", "{"),
        ("", ""),
        ("\"{\\\"a\\\": \\\"\\u00", "{\"a\": \""),
    ] {
        check(&parser, &format!("{start}{rest}"), "", &[("f", arguments)]);
    }
    check(&parser, "<tool_call>{\"name\": \"f\"", "", &[("f", "")]);
    for text in [
        "<tool_call>{\"name\": \"f",
        "<tool_call>{\"na",
        "<tool_call>",
        "<tool_ca",
        "Text <tool_call>{\"arguments\": {\"a\": 1}",
    ] {
        check_plain(&parser, text);
    }
}

#[test]
fn what_is_no_call_comes_back() {
    let parser = hermes();
    for text in [
        "I write <tool_call> before a call and </tool_call> behind.",
        "<tool_call></tool_call>",
        "<tool_call>{}</tool_call>",
        "<tool_call>[]</tool_call> x",
        "<tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": 7, \"arguments\": {}}</tool_call>",
        "<tool_call>{\"arguments\": {\"a\": 1}}</tool_call>",
        "<tool_call>{'name': 'f'}</tool_call>",
        "<tool_call>{\"name\" \"f\"}</tool_call>",
        "<tool_call>get_weather(city)</tool_call>",
        "<tool_call>{\"name\": \"f\ng\"}</tool_call>",
        "a < b <t <tool <<tool_call <tool_callx>",
        "fn main() { println!(\"{}\", [1, 2]); }",
        "{\"name\": \"f\", \"arguments\": {}}",
    ] {
        check_plain(&parser, text);
    }
    // A mark that was said does not hide the call behind.
    let text = "Use <tool_call>: <tool_call><tool_call>{\"name\": \"f\"}</tool_call>";
    check(
        &parser,
        text,
        "Use <tool_call>: <tool_call>",
        &[("f", "{}")],
    );
}

#[test]
fn garbage_within_a_call_that_was_told_is_not_swallowed() {
    let text = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1} oops}</tool_call>";
    check(&hermes(), text, "oops}</tool_call>", &[("f", "{\"a\": 1}")]);
    let text = "<tool_call>{\"name\": \"f\", oops}</tool_call>";
    check(&hermes(), text, "oops}</tool_call>", &[("f", "{}")]);
}

#[test]
fn pieces_come_as_soon_as_they_are_certain() {
    let mut parser = hermes();
    let mut push = |text: &str| parser.push(text);
    let content = |text: &str| OutputPiece::Content(text.to_owned());
    let arguments = |text: &str| OutputPiece::Arguments {
        index: 0,
        text: text.to_owned(),
    };
    assert_eq!(push("Hello"), [content("Hello")]);
    assert_eq!(push(" a<b"), [content(" a<b")]);
    assert_eq!(push(" <tool"), []);
    assert_eq!(push("s"), [content(" <tools")]);
    assert_eq!(push("<tool_call>\n{\"name\": \"f"), []);
    let name = "f".to_owned();
    assert_eq!(push("\", "), [OutputPiece::Call { index: 0, name }]);
    assert_eq!(push("\"arguments\": {\"a"), [arguments("{\"a")]);
    assert_eq!(push("\": \"<"), [arguments("\": \"<")]);
    assert_eq!(push("\"}"), [arguments("\"}")]);
    assert_eq!(push("}</tool_call>"), []);
    assert_eq!(parser.finish(), []);
}
