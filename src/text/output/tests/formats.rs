//! The formats that have marks of their own.

use serde_json::json;

use super::*;

fn parser(tools: ToolFormat) -> OutputParser {
    OutputParser::new(format(tools), false)
}

#[test]
fn mistral() {
    let parser = parser(ToolFormat::Mistral);
    let one = [("f", "{\"a\": \"]}\"}")];
    let object = r#"{"name": "f", "arguments": {"a": "]}"}}"#;
    for text in [
        format!("[TOOL_CALLS][{object}]"),
        format!("[TOOL_CALLS] [{object}]\n"),
        format!("[TOOL_CALLS]{object}"),
        format!("[TOOL_CALLS] [{object}"),
        "[TOOL_CALLS]f[ARGS]{\"a\": \"]}\"}".to_owned(),
        "[TOOL_CALLS]f{\"a\": \"]}\"}".to_owned(),
        "[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{\"a\": \"]}\"}".to_owned(),
        "[TOOL_CALLS] f [ARGS]{\"a\": \"]}\"}".replace(" [", "["),
    ] {
        check(&parser, &text, "", &one);
    }
    let two = [one[0], ("g-2", "{}")];
    for text in [
        format!("[TOOL_CALLS][{object}, {{\"name\": \"g-2\"}}]"),
        "[TOOL_CALLS]f[ARGS]{\"a\": \"]}\"}[TOOL_CALLS]g-2[ARGS]{}".to_owned(),
        "[TOOL_CALLS]f{\"a\": \"]}\"}\n[TOOL_CALLS]g-2{}".to_owned(),
        "[TOOL_CALLS]f{\"a\": \"]}\"}[TOOL_CALLS]g-2[ARGS]null".to_owned(),
    ] {
        check(&parser, &text, "", &two[..]);
    }
    check(
        &parser,
        &format!("Hm.\n[TOOL_CALLS][{object}]"),
        "Hm.",
        &one,
    );
    check(
        &parser,
        "[TOOL_CALLS]f[ARGS]{\"a\": \"",
        "",
        &[("f", "{\"a\": \"")],
    );
    check(
        &parser,
        "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a",
        "",
        &[("f", "{\"a")],
    );
    for text in [
        "[TOOL_CALLS]",
        "[TOOL_CALLS]f",
        "[TOOL_CALLS]f[AR",
        "[TOOL_CALLS] is a mark",
        "[TOOL_CALLS][]x",
        "[TOOL_CALLS][1]",
        "[TOOL_CA [1] {2}",
        "[TOOL_CALLS]{\"name\"",
        "[TOOL_CALLS]f[CALL_ID]x",
    ] {
        check_plain(&parser, text);
    }
}

const SECTION: &str = "<｜tool▁calls▁begin｜>";
const SECTION_END: &str = "<｜tool▁calls▁end｜>";
const CALL: &str = "<｜tool▁call▁begin｜>";
const CALL_END: &str = "<｜tool▁call▁end｜>";
const SEP: &str = "<｜tool▁sep｜>";

#[test]
fn deepseek() {
    let parser = parser(ToolFormat::DeepSeek);
    let arguments = "{\"a\": \"```<｜tool▁call▁end｜>\"}";
    let one = [("f", arguments)];
    let v3 = format!("{CALL}function{SEP}f\n```json\n{arguments}\n```{CALL_END}");
    let v31 = format!("{CALL}f{SEP}{arguments}{CALL_END}");
    for call in [&v3, &v31] {
        check(&parser, &format!("{SECTION}{call}{SECTION_END}"), "", &one);
        check(
            &parser,
            &format!("{SECTION}\n{call}\n{SECTION_END}"),
            "",
            &one,
        );
        check(&parser, &format!("Hm.\n\n{SECTION}{call}"), "Hm.", &one);
        check(&parser, call, "", &one);
        check(
            &parser,
            &format!("{SECTION}{call}\n{call}{SECTION_END}"),
            "",
            &[one[0]; 2],
        );
        check(
            &parser,
            &format!("{SECTION}{call}{SECTION_END}\nSo."),
            "So.",
            &one,
        );
        let lost = call.replacen("\"}", "\"", 1);
        let whole = read(&parser, &format!("{SECTION}{lost}{SECTION_END}"));
        assert_eq!(whole.content, "");
        let [(name, closed)] = &whole.calls[..] else {
            panic!("one call, not {:?}", whole.calls);
        };
        assert_eq!(
            (name.as_str(), closed.replace('\n', "")),
            ("f", arguments.to_owned())
        );
    }
    for (text, args) in [
        (format!("{CALL}f{SEP}{CALL_END}"), "{}"),
        (format!("{CALL}f{SEP}{{}}{CALL_END}"), "{}"),
        (
            format!("{CALL}function{SEP}f\n```json\n{{}}\n```{CALL_END}"),
            "{}",
        ),
        (format!("{CALL}function{SEP}f\n{CALL_END}"), "{}"),
        (format!("{CALL}f{SEP}{{\"a\": \"b"), "{\"a\": \"b"),
        (format!("{CALL}function{SEP}f\n```json\n{{\"a"), "{\"a"),
        (format!("{CALL}function{SEP}f\n``"), ""),
        (format!("{CALL}f{SEP}"), ""),
    ] {
        check(&parser, &text, "", &[("f", args)]);
    }
    check(
        &parser,
        &format!("{CALL}function{SEP}{{\"a\": 1}}{CALL_END}"),
        "",
        &[("function", "{\"a\": 1}")],
    );
    for text in [
        SECTION.to_owned(),
        format!("{SECTION} is a mark"),
        format!("{SECTION}{SECTION_END}"),
        CALL.to_owned(),
        format!("{CALL}f"),
        format!("{CALL}f\ng{SEP}"),
        format!("{CALL}f{SEP}x"),
        format!("{CALL}function{SEP}f"),
        "a < b <｜tool".to_owned(),
    ] {
        check_plain(&parser, &text);
    }
}

#[test]
fn qwen3_coder() {
    let tools = [
        json!({"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {"text": {"type": "string"}, "n": {"type": "integer"},
            "list": {"type": "array"}, "any": {}}}}}),
    ];
    let parser = parser(ToolFormat::Qwen3Coder).with_schemas(&tools);
    let wrap =
        |inside: &str| format!("<tool_call>\n<function=f>\n{inside}</function>\n</tool_call>");
    let parameter = |key: &str, value: &str| format!("<parameter={key}>\n{value}\n</parameter>\n");
    for (inside, arguments) in [
        (String::new(), "{}"),
        (parameter("text", "5"), "{\"text\": \"5\"}"),
        (parameter("n", "5"), "{\"n\": 5}"),
        (parameter("any", "5"), "{\"any\": 5}"),
        (parameter("any", "Oslo"), "{\"any\": \"Oslo\"}"),
        (
            parameter("text", "a\n\"b\" {c}</p>\n"),
            "{\"text\": \"a\\n\\\"b\\\" {c}</p>\\n\"}",
        ),
        (
            parameter("list", "[1, {\"a\": 2}]"),
            "{\"list\": [1, {\"a\": 2}]}",
        ),
        (
            parameter("list", "[1, 'a', None]"),
            "{\"list\": [1, \"a\", null]}",
        ),
        (
            parameter("text", "a") + &parameter("n", "1"),
            "{\"text\": \"a\", \"n\": 1}",
        ),
        ("<parameter=n>1</parameter>".to_owned(), "{\"n\": 1}"),
        (
            "<parameter=text>\na\n<parameter=n>\n1\n".to_owned(),
            "{\"text\": \"a\", \"n\": 1}",
        ),
        ("{\"n\": 1}\n".to_owned(), "{\"n\": 1}"),
    ] {
        check(&parser, &wrap(&inside), "", &[("f", arguments)]);
        check(
            &parser,
            &format!("So:\n{}\n", wrap(&inside)),
            "So:",
            &[("f", arguments)],
        );
        let bare = wrap(&inside).replace("<tool_call>\n", "");
        check(&parser, &bare, "", &[("f", arguments)]);
    }
    let two = format!("{}\n{}", wrap(""), wrap(&parameter("n", "1")));
    check(&parser, &two, "", &[("f", "{}"), ("f", "{\"n\": 1}")]);
    for (cut, arguments) in [
        (
            "<tool_call>\n<function=f>\n<parameter=text>\nab\ncd",
            "{\"text\": \"ab\\ncd",
        ),
        ("<function=f>\n<parameter=n>\n12", "{\"n\": 12"),
        ("<function=f>", ""),
        ("<function=f>\n<parameter=te", ""),
        ("<function=f><parameter=text>a</param", "{\"text\": \"a"),
    ] {
        check(&parser, cut, "", &[("f", arguments)]);
    }
    for text in [
        "<tool_call>",
        "<tool_call>\n{\"name\": \"f\"}\n</tool_call>",
        "<function=>",
        "<function=f",
    ] {
        check_plain(&parser, text);
    }
}
