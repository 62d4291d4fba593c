//! What holds for every text.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const FORMATS: [ToolFormat; 7] = [
    ToolFormat::Hermes,
    ToolFormat::Qwen3Coder,
    ToolFormat::Llama3Json,
    ToolFormat::Mistral,
    ToolFormat::Pythonic,
    ToolFormat::DeepSeek,
    ToolFormat::Harmony,
];

/// Parts of calls, of thoughts, and of what resembles them.
const WORDS: [&str; 65] = [
    "<tool_call>",
    "</tool_call>",
    "<tools>",
    "</tools>",
    "```",
    "```json\n",
    "\n",
    " ",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "\"",
    "'",
    "\\",
    ",",
    ";",
    ":",
    "=",
    "name",
    "\"name\"",
    "\"name\": \"f\"",
    "\"arguments\": ",
    "\"parameters\": ",
    "{\"name\": \"f\", \"arguments\": {\"a\": 1}}",
    "{\"name\": \"f\"}",
    "f",
    "get_weather",
    "<function=f>",
    "<function=",
    "<parameter=a>",
    "</parameter>",
    "</function>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "f(a=1)",
    "[f(a='x')]",
    "<|python_tag|>",
    "<|python_start|>",
    "<|python_end|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
    "function",
    "<|start|>",
    "<|channel|>",
    "analysis",
    "final",
    "to=functions.f",
    "<|message|>",
    "<|end|>",
    "<think>",
    "</think>",
    "<",
    ">",
    "</",
    "null",
    "é",
    "😀",
    "text",
];

fn texts() -> impl Strategy<Value = String> {
    let words = prop::sample::select(WORDS.to_vec()).prop_map(str::to_owned);
    // A word, or a part of one.
    let part =
        (words, 0..8_usize, any::<bool>()).prop_map(|(word, skip, is_whole)| match is_whole {
            true => word,
            false => word.chars().skip(skip).collect(),
        });
    prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

fn parsers() -> impl Strategy<Value = OutputParser> {
    let formats = prop::sample::select(FORMATS.to_vec());
    (formats, any::<bool>(), any::<bool>()).prop_map(|(tools, is_thinking, knows)| {
        let parser = OutputParser::new(format(tools), is_thinking);
        match knows {
            true => parser.with_tools(["f", "get_weather"]),
            false => parser,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn cuts_change_nothing(parser in parsers(), text in texts(), cuts in prop::collection::vec(1..6_usize, 1..12)) {
        let at_once = read_in_pieces(parser.clone(), &text, text.len().max(1));
        let mut pieces = Whole::default();
        let mut parser = parser;
        let mut chars = text.chars().peekable();
        for len in cuts.iter().cycle() {
            if chars.peek().is_none() {
                break;
            }
            let piece: String = chars.by_ref().take(*len).collect();
            pieces.add(parser.push(&piece));
        }
        pieces.add(parser.finish());
        prop_assert_eq!(pieces, at_once);
    }

    /// Text without calls and thoughts is content, to the byte.
    #[test]
    fn what_is_no_call_is_not_swallowed(parser in parsers(), text in texts()) {
        let whole = read_in_pieces(parser, &text, 3);
        let has_thought = text.contains("<think>") || text.contains("</think>");
        let is_empty = text.trim().is_empty() || text.contains("<|");
        if whole.calls.is_empty() && whole.reasoning.is_empty() && !has_thought && !is_empty {
            prop_assert_eq!(whole.content, text);
        }
    }

    /// Every letter of a text is in a thought, in the content, in a call, or part of a mark.
    #[test]
    fn well_formed_answers_lose_nothing(
        thought in "[a-z .{]{0,20}", before in "[a-z .{]{0,20}", after in "[a-z .(]{0,20}",
        values in prop::collection::vec("[a-z{}<>/\\[\\]é😀 ]{0,12}", 1..4),
    ) {
        let mut text = format!("<think>{thought}</think>{before}");
        let arguments = |value: &str| format!("{{\"a\": {}}}", serde_json::Value::from(value));
        for value in &values {
            let call = format!("{{\"name\": \"f\", \"arguments\": {}}}", arguments(value));
            text.push_str(&format!("<tool_call>\n{call}\n</tool_call>\n"));
        }
        text.push_str(&after);
        let whole = read(&offering(ToolFormat::Hermes), &text);
        let squeeze = |text: &str| text.split_whitespace().collect::<String>();
        prop_assert_eq!(whole.reasoning, thought.trim());
        prop_assert_eq!(squeeze(&whole.content), squeeze(&format!("{before}{after}")));
        let calls: Vec<_> = values.iter().map(|value| call("f", &arguments(value))).collect();
        prop_assert_eq!(whole.calls, calls);
    }
}

/// Repeated forms that look like calls for long take a time that grows with their length alone.
#[test]
fn hostile_texts_take_linear_time() {
    let starts = [
        "<",
        "<tool_call>",
        "<tool_call>{",
        "<tool_call>{\"",
        "[",
        "{",
        "{\"name\": \"f\", ",
        "```",
        "```json\n",
        "[{",
        "\\\"",
        "<tool_call>{\"name\": \"\\\"",
        "[f(",
        "[f(a='",
        "((",
        "[TOOL_CALLS]",
        "[TOOL_CALLS]f",
        "<function=f><parameter=a>",
        "<｜tool▁call▁begin｜>",
        "<|channel|>",
        "<|channel|>x to=f<|message|>",
        "<|start|>",
        "\n",
        "<think>",
        "</think",
        "}",
        "<tool_call>{\"name\":\"f\"}",
    ];
    let len = 60_000;
    for tools in FORMATS {
        for start in starts {
            for text in [
                start.repeat(len / start.len()),
                format!("{start}{}", "\\\"a".repeat(len / 3)),
            ] {
                let begin = Instant::now();
                let whole = read_in_pieces(offering(tools), &text, 4);
                let elapsed = begin.elapsed();
                assert!(
                    elapsed < Duration::from_secs(10),
                    "{tools:?} {start:?} took {elapsed:?}"
                );
                drop(whole);
            }
        }
    }
}
