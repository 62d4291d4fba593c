//! Thoughts before answers.

use super::*;

fn check_thought(parser: &OutputParser, text: &str, reasoning: &str, content: &str) {
    let whole = read(parser, text);
    assert_eq!(
        (whole.reasoning.as_str(), whole.content.as_str()),
        (reasoning, content),
        "{text:?}"
    );
    assert_eq!(whole.calls, [], "{text:?}");
}

#[test]
fn thoughts_and_answers() {
    for tools in [None, Some(ToolFormat::Hermes)] {
        let reasoning = ReasoningFormat::by_name("deepseek_r1");
        let format = OutputFormat { tools, reasoning };
        let parser = OutputParser::new(format.clone(), false);
        for (text, reasoning, content) in [
            (
                "<think>\nHm.\n\nSo.\n</think>\n\nFour. \n",
                "Hm.\n\nSo.",
                "Four. \n",
            ),
            ("<think></think>Four.", "", "Four."),
            ("<think>\n\n</think>\n\nFour.", "", "Four."),
            ("\n<think>a</think>\n<think>b</think>c", "ab", "c"),
            ("<think>never closed </thin", "never closed </thin", ""),
            ("<think>a < b </ think></think>c", "a < b </ think>", "c"),
            (
                "<think>a <think> b</think>c</think>",
                "a <think> b",
                "c</think>",
            ),
            ("<think>only</think>\n", "only", ""),
            ("<think>", "", ""),
            ("Four.", "", "Four."),
            ("  Four.", "", "  Four."),
            ("<thinking> is a word", "", "<thinking> is a word"),
            ("I <think> so</think>", "", "I <think> so</think>"),
            ("</think>", "", "</think>"),
            ("<thin", "", "<thin"),
            ("", "", ""),
        ] {
            check_thought(&parser, text, reasoning, content);
        }
        let thinking = OutputParser::new(format, true);
        for (text, reasoning, content) in [
            ("Hm.</think>\n\nFour.", "Hm.", "Four."),
            ("\n<think>\nHm.</think>Four.", "Hm.", "Four."),
            ("Hm. <think></think>Four.", "Hm. <think>", "Four."),
            ("</think>Four.", "", "Four."),
            ("Never closed.\n", "Never closed.", ""),
            ("", "", ""),
        ] {
            check_thought(&thinking, text, reasoning, content);
        }
    }
}

#[test]
fn calls_in_a_thought_are_thoughts() {
    let one = "<tool_call>{\"name\": \"f\"}</tool_call>";
    let whole = read(
        &OutputParser::new(format(ToolFormat::Hermes), true),
        &format!("I could {one}\n</think>\n\n{one}"),
    );
    assert_eq!(whole.reasoning, format!("I could {one}"));
    assert_eq!(whole.calls, [call("f", "{}")]);
    assert_eq!(whole.content, "");
}

#[test]
fn other_tags() {
    for (name, start, end) in [
        ("mistral", "[THINK]", "[/THINK]"),
        ("cohere", "<|START_THINKING|>", "<|END_THINKING|>"),
        ("seed_oss", "<seed:think>", "</seed:think>"),
    ] {
        let format = OutputFormat {
            tools: None,
            reasoning: ReasoningFormat::by_name(name),
        };
        assert_eq!(format.marks(), [start, end]);
        assert!(format.opens_thought(&format!("<|assistant|>{start}\n")));
        assert!(!format.opens_thought(&format!("{start} {end}\n\n")));
        assert!(!format.opens_thought("<|assistant|>"));
        let parser = OutputParser::new(format, false);
        check_thought(&parser, &format!("{start}a{end} b"), "a", "b");
    }
}

#[test]
fn without_a_format_text_is_text() {
    let parser = OutputParser::new(OutputFormat::default(), true);
    check_plain(
        &parser,
        " <think>a</think> <tool_call>{\"name\": \"f\"}</tool_call> ",
    );
    assert!(!OutputFormat::default().opens_thought("<think>"));
}

#[test]
fn formats_have_the_names_of_vllm() {
    for name in ToolFormat::NAMES {
        assert!(ToolFormat::by_name(name).is_some(), "{name}");
    }
    for name in ReasoningFormat::names() {
        assert!(ReasoningFormat::by_name(name).is_some(), "{name}");
    }
    assert_eq!(ToolFormat::by_name("hermes"), Some(ToolFormat::Hermes));
    assert_eq!(
        ToolFormat::by_name("llama3_json"),
        Some(ToolFormat::Llama3Json)
    );
    assert_eq!(ToolFormat::by_name("Hermes"), None);
    assert_eq!(ReasoningFormat::by_name(""), None);
}

#[test]
fn what_the_model_did_not_write_holds_no_marks() {
    let call = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    let printed = format!("\n</think> {call}\n");
    for tools in [None, Some(ToolFormat::Hermes), Some(ToolFormat::Pythonic)] {
        let format = OutputFormat {
            tools,
            reasoning: ReasoningFormat::by_name("qwen3"),
        };
        let parser = OutputParser::new(format, false).with_tools(["f"]);
        for (before, after, reasoning, content) in [
            ("So ```", "x", String::new(), format!("So ```{printed}x")),
            (
                "<think>Hm </th",
                "y</think>z",
                format!("Hm </th{printed}y"),
                "z".to_owned(),
            ),
        ] {
            let (mut parser, mut whole) = (parser.clone(), Whole::default());
            whole.add(parser.push(before));
            let flushed = parser.flush();
            assert!(!parser.is_thinking() || before.starts_with("<think>"));
            whole.add(flushed);
            whole.add(parser.insert(&printed));
            whole.add(parser.push(after));
            whole.add(parser.finish());
            let expected = Whole {
                content,
                reasoning,
                calls: Vec::new(),
            };
            assert_eq!(whole, expected, "{tools:?}");
        }
    }
    // Calls before and behind keep their numbers.
    let mut whole = Whole::default();
    let mut parser = offering(ToolFormat::Hermes);
    whole.add(parser.push(call));
    whole.add(parser.insert("42\n"));
    whole.add(parser.push(call));
    whole.add(parser.finish());
    assert_eq!(whole.calls.len(), 2);
    assert_eq!(whole.content, "42");
}
