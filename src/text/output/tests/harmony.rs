//! gpt-oss' messages.

use super::*;

fn parser(tools: Option<ToolFormat>, reasoning: bool) -> OutputParser {
    let reasoning = ReasoningFormat::by_name("openai_gptoss").filter(|_| reasoning);
    OutputParser::new(OutputFormat { tools, reasoning }, false)
}

#[track_caller]
fn check_whole(parser: &OutputParser, text: &str, wanted: (&str, &str, &[(&str, &str)])) {
    let whole = read(parser, text);
    let calls: Vec<_> = wanted
        .2
        .iter()
        .map(|(name, args)| call(name, args))
        .collect();
    let told = (
        whole.reasoning.as_str(),
        whole.content.as_str(),
        whole.calls,
    );
    assert_eq!(told, (wanted.0, wanted.1, calls), "{text:?}");
}

const THOUGHT: &str = "<|channel|>analysis<|message|>Two and two.<|end|><|start|>assistant";

#[test]
fn channels_are_thoughts_and_answers() {
    for tools in [None, Some(ToolFormat::Harmony)] {
        let parser = parser(tools, true);
        let final_channel = |text: &str| format!("<|channel|>final<|message|>{text}");
        for (text, reasoning, content) in [
            (
                format!("{THOUGHT}{}", final_channel("Four.\n")),
                "Two and two.",
                "Four.\n",
            ),
            (
                format!("{THOUGHT}{}", final_channel("Four.<|return|>")),
                "Two and two.",
                "Four.",
            ),
            (final_channel(" Four."), "", " Four."),
            (final_channel("a < b <| c"), "", "a < b <| c"),
            // A thought that the text's end cuts, also within a mark.
            ("<|channel|>analysis<|message|> Two".to_owned(), "Two", ""),
            (
                "<|channel|>analysis<|message|>Two <|en".to_owned(),
                "Two <|en",
                "",
            ),
            // Several thoughts, and what is said before calls.
            (
                format!("{THOUGHT}{THOUGHT}{}", final_channel("4")),
                "Two and two.\n\nTwo and two.",
                "4",
            ),
            (
                format!(
                    "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{}",
                    final_channel("4")
                ),
                "",
                "I look.\n\n4",
            ),
            // A forgotten end.
            (
                format!("<|channel|>analysis<|message|>Hm.{}", final_channel("4")),
                "Hm.",
                "4",
            ),
        ] {
            check_whole(&parser, &text, (reasoning, content, &[]));
        }
    }
}

#[test]
fn texts_outside_of_messages_are_content() {
    for tools in [None, Some(ToolFormat::Harmony)] {
        let parser = parser(tools, true);
        for text in [
            "Four.",
            " to do it",
            "to=x is no header\n",
            "<|channel|>analysis\nx",
            "to=x",
            "<|chan",
            "  ",
            "",
        ] {
            check_whole(&parser, text, ("", text, &[]));
        }
        // A header alone says nothing.
        check_whole(&parser, "<|channel|>final", ("", "", &[]));
        for text in [
            THOUGHT.to_owned(),
            format!("{THOUGHT}<|channel|>final<|mess"),
        ] {
            check_whole(&parser, &text, ("Two and two.", "", &[]));
        }
    }
}

#[test]
fn the_lines_of_a_thought_stay_as_they_are() {
    let code = "<|channel|>analysis<|message|>\n a:\n\n    b\n<|end|>";
    check_whole(&parser(None, true), code, ("a:\n\n    b", "", &[]));
}

#[test]
fn messages_to_tools_are_calls() {
    let parser = parser(Some(ToolFormat::Harmony), true);
    let json = r#"{"a": "<|end|> }"}"#;
    for text in [
        format!("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{json}<|call|>"),
        format!("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{json}"),
        format!("<|channel|>commentary to=functions.f<|message|> {json}\n"),
        format!("<|channel|>commentary to=f json<|message|>{json}"),
        format!(" to=functions.f<|channel|>commentary json<|message|>{json}"),
        format!("<|start|>assistant to=functions.f<|channel|>analysis<|message|>{json}"),
    ] {
        check_whole(&parser, &text, ("", "", &[("f", json)]));
        let thought = format!("{THOUGHT}{text}");
        check_whole(&parser, &thought, ("Two and two.", "", &[("f", json)]));
    }
    let head = |name: &str| format!("<|channel|>commentary to=functions.{name}<|message|>");
    let next = "<|call|><|start|>assistant";
    for (text, content, calls) in [
        (
            format!("{}{{\"a\": [1", head("f")),
            "",
            &[("f", "{\"a\": [1")][..],
        ),
        // A bracket that is missing before the end.
        (
            format!("{}{{\"a\": [1<|call|>", head("f")),
            "",
            &[("f", "{\"a\": [1]}")],
        ),
        (head("f"), "", &[("f", "{}")]),
        (format!("{}{next}", head("f")), "", &[("f", "{}")]),
        (
            format!("{}print(1 < 2)<|call|>", head("python")),
            "",
            &[("python", "print(1 < 2)")],
        ),
        (
            format!("{}{{}}{next}{}{{}}", head("f"), head("g")),
            "",
            &[("f", "{}"), ("g", "{}")],
        ),
        (
            format!(
                "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{}{{}}",
                head("f")
            ),
            "I look.",
            &[("f", "{}")],
        ),
        (
            format!("{}{{}}{next}<|channel|>final<|message|>Done.", head("f")),
            "Done.",
            &[("f", "{}")],
        ),
    ] {
        check_whole(&parser, &text, ("", content, calls));
    }
}

#[test]
fn what_is_not_asked_for_is_content() {
    let thought = format!("{THOUGHT}<|channel|>final<|message|>4");
    let quiet = parser(Some(ToolFormat::Harmony), false);
    check_whole(&quiet, &thought, ("", "Two and two.\n\n4", &[]));
    let toolless = parser(None, true);
    let text = "<|channel|>commentary to=functions.f<|message|>{}<|call|>";
    check_whole(&toolless, text, ("", "{}", &[]));
}

#[test]
fn a_prompt_may_open_a_thought() {
    let format = OutputFormat {
        tools: None,
        reasoning: ReasoningFormat::by_name("openai_gptoss"),
    };
    assert!(format.opens_thought("<|start|>assistant<|channel|>analysis<|message|>"));
    let mut parser = OutputParser::new(format, true);
    assert!(parser.is_thinking());
    check_whole(
        &parser,
        "Hm.<|end|><|start|>assistant<|channel|>final<|message|>4",
        ("Hm.", "4", &[]),
    );
    parser.push("Hm.<|end|>");
    assert!(!parser.is_thinking());
}
