//! Calls without marks, and with those that small models make up.

use super::*;

const CALL: &str = r#"{"name": "get_weather", "arguments": {"city": "Oslo"}}"#;
const CALLS: [(&str, &str); 1] = [("get_weather", r#"{"city": "Oslo"}"#)];

#[test]
fn small_models_wrap_calls_in_many_ways() {
    let parser = offering(ToolFormat::Hermes);
    for text in [
        CALL.to_owned(),
        format!("\n{CALL}\n"),
        format!("[{CALL}]"),
        format!("```json\n{CALL}\n```"),
        format!("```\n{CALL}\n```\n"),
        format!("```json\n[\n  {CALL}\n]\n```"),
        format!("```json\n{CALL}"),
        format!("```json\n{CALL}\n``"),
        format!("<tools>\n{CALL}\n</tools>"),
        format!("<tool>{CALL}</tool>"),
        format!("<function_call>\n{CALL}\n</function_call>"),
        format!("<response>{CALL}</response>"),
        format!("<tool_call>\n{CALL}"),
        format!("{CALL}\n</tool_call>"),
        format!("<tool_call>{CALL}</tool_call>"),
        format!("```xml\n<tool_call>\n{CALL}\n</tool_call>\n```"),
        format!("```json\n<tools>{CALL}</tools>```"),
        format!("<think>\n\n</think>\n\n{CALL}"),
    ] {
        check(&parser, &text, "", &CALLS);
    }
    check(
        &parser,
        &format!("I call it:\n{CALL}"),
        "I call it:",
        &CALLS,
    );
    check(
        &parser,
        &format!("Here:\n```json\n{CALL}\n```\n"),
        "Here:",
        &CALLS,
    );
    let text = format!("Here:\n```json\n{CALL}\n```\nThen I know more.");
    check(&parser, &text, "Here:\n\nThen I know more.", &CALLS);
    let both = [CALLS[0], CALLS[0]];
    for text in [
        format!("{CALL}\n{CALL}"),
        format!("{CALL}; {CALL}"),
        format!("[{CALL}, {CALL}]"),
        format!("```json\n{CALL}\n```\n```json\n{CALL}\n```"),
        format!("```json\n{CALL}\n{CALL}\n```"),
        format!("<tools>{CALL}</tools>\n<tools>{CALL}</tools>"),
    ] {
        check(&parser, &text, "", &both);
    }
}

#[test]
fn only_calls_of_offered_tools_are_calls() {
    let parser = offering(ToolFormat::Hermes);
    for text in [
        r#"{"name": "other", "arguments": {}}"#,
        r#"{"name": "get_weather_now", "arguments": {}}"#,
        r#"{"name": "get_wea", "arguments": {}}"#,
        "```json\n{\"name\": \"other\", \"arguments\": {}}\n```",
        "<tools>{\"name\": \"other\", \"arguments\": {}}</tools>",
        // An echo of the tool itself.
        r#"{"type": "function", "function": {"name": "f", "description": "F.", "parameters": {}}}"#,
        r#"{"name": "f", "description": "F.", "parameters": {"type": "object"}}"#,
        r#"{"city": "Oslo", "name": "f"}"#,
        "[{\"a\": 1}, {\"b\": 2}]",
        "{}",
        "[]",
        "[1] says so, [2] does not. {",
        "```json\n{\"a\": 1}\n```\nand\n```rust\nfn main() { [0]; }\n```",
        "```python\nx = {\"name\": \"f\", \"arguments\": {}}\n```",
        "````",
        "``` ``` ```",
        "A <json> b <xml> c <function>",
        "{\"name\": \"f",
    ] {
        check_plain(&parser, text);
    }
    // Behind the right mark every name is a call.
    let text = r#"<tool_call>{"name": "other", "arguments": {}}</tool_call>"#;
    check(&parser, text, "", &[("other", "{}")]);
}

#[test]
fn a_bare_call_that_is_cut_is_one_once_its_tool_is_certain() {
    let parser = offering(ToolFormat::Hermes);
    let cut = "{\"name\": \"f\", \"arguments\": {\"a\": \"b";
    check(&parser, cut, "", &[("f", "{\"a\": \"b")]);
    check(
        &parser,
        "```json\n{\"name\": \"f\", \"arg",
        "",
        &[("f", "")],
    );
    check(&parser, "{\"name\": \"f\"}", "", &[("f", "{}")]);
}

#[test]
fn code_keeps_its_fences() {
    let parser = offering(ToolFormat::Hermes);
    let text = format!("```python\nprint(1)\n```\n{CALL}");
    check(&parser, &text, "```python\nprint(1)\n```", &CALLS);
}

#[test]
fn llamas_json() {
    let call = r#"{"name": "f", "parameters": {"a": 1}}"#;
    let calls = [("f", "{\"a\": 1}")];
    for parser in [
        OutputParser::new(format(ToolFormat::Llama3Json), false),
        offering(ToolFormat::Llama3Json),
    ] {
        check(&parser, call, "", &calls);
        check(&parser, &format!("<|python_tag|>{call}"), "", &calls);
        check(&parser, &format!("Hm. <|python_tag|>{call}"), "Hm.", &calls);
        let typed = r#"{"type": "function", "name": "f", "parameters": {"a": 1}}"#;
        check(&parser, typed, "", &calls);
        let arguments = r#"{"name": "f", "arguments": {"a": 1}}"#;
        check(&parser, arguments, "", &calls);
        for between in ["; ", "\n", ";", ", "] {
            check(
                &parser,
                &format!("{call}{between}{call}"),
                "",
                &[calls[0]; 2],
            );
            let text = format!("<|python_tag|>{call}{between}{call}");
            check(&parser, &text, "", &[calls[0]; 2]);
        }
        check(&parser, &format!("{call}\nDone."), "Done.", &calls);
        check_plain(&parser, "<|python_tag|>print(1)");
        check_plain(&parser, "{\"answer\": 4}");
        check_plain(&parser, "It is {x}.");
    }
    let text = format!("Text {call}");
    check_plain(
        &OutputParser::new(format(ToolFormat::Llama3Json), false),
        &text,
    );
    check(&offering(ToolFormat::Llama3Json), &text, "Text", &calls);
    let other = r#"{"name": "other", "parameters": {}}"#;
    check_plain(&offering(ToolFormat::Llama3Json), other);
    let text = format!("<|python_tag|>{other}");
    check(
        &offering(ToolFormat::Llama3Json),
        &text,
        "",
        &[("other", "{}")],
    );
}
