//! What two answers must share to count as the same.

use serde::de::IgnoredAny;

use super::verifier::{extract, math};

/// What stands in front of an answer in the text of models that think.
const THOUGHT_END: &str = "</think>";
/// What begins a call of a tool in one model or another.
const CALL_MARKS: [&str; 4] = [
    "<tool_call>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "<｜tool▁calls▁begin｜>",
];

/// The canonical form of the final answer of `text`, for votes; of the whole text when it names none. JSON and calls of
/// tools count as a whole, but for their white space.
pub fn answer_key(text: &str) -> String {
    if let Some(data) = data(text) {
        return without_white_space(data);
    }
    match extract::final_answer(text) {
        Some(answer) => math::normalize(&answer),
        None => text.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

/// The answer of a text when it is JSON or a call.
fn data(text: &str) -> Option<&str> {
    let answer = text
        .rsplit_once(THOUGHT_END)
        .map_or(text, |(_, answer)| answer);
    let answer = answer.trim();
    let is_json =
        answer.starts_with(['{', '[']) && serde_json::from_str::<IgnoredAny>(answer).is_ok();
    let is_call = CALL_MARKS.iter().any(|mark| answer.contains(mark));
    // `[name(key=value)]`, Python's way.
    let is_python = answer.starts_with('[') && answer.ends_with(")]");
    (is_json || is_call || is_python).then_some(answer)
}

/// A text without the white space outside of its strings.
fn without_white_space(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let (mut is_string, mut is_escaped) = (false, false);
    for c in text.chars() {
        match c {
            '"' if !is_escaped => is_string = !is_string,
            c if c.is_whitespace() && !is_string => continue,
            _ => {}
        }
        is_escaped = c == '\\' && !is_escaped;
        kept.push(c);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_counts_as_a_whole_but_for_its_white_space() {
        let same = [
            r#"{"name": "Al Bo", "age": 7}"#,
            "{\n  \"name\": \"Al Bo\",\n  \"age\": 7\n}",
            r#"<think>7 {or} 8?</think> {"name":"Al Bo","age":7}"#,
        ];
        for text in same {
            assert_eq!(answer_key(text), r#"{"name":"Al Bo","age":7}"#);
        }
        for (a, b) in [
            // The last number is not all that they say.
            (r#"{"name": "Al", "age": 7}"#, r#"{"name": "Bo", "age": 7}"#),
            (r#"{"a": "x y"}"#, r#"{"a": "xy"}"#),
            (r#"{"a": "\" x"}"#, r#"{"a": "\"x"}"#),
            (
                "<tool_call>\n{\"name\": \"a\"}\n</tool_call>",
                "<tool_call>{\"name\": \"b\"}</tool_call>",
            ),
            ("[a(x=1)]", "[b(x=1)]"),
        ] {
            assert_ne!(answer_key(a), answer_key(b));
        }
        let calls = [
            "<tool_call>\n{\"name\": \"a\"}\n</tool_call>",
            "<tool_call>{\"name\":\"a\"}</tool_call>",
        ];
        assert_eq!(answer_key(calls[0]), answer_key(calls[1]));
        // What is no data is read for its answer.
        assert_eq!(answer_key("{1, 2} has 2 elements"), "2");
        assert_eq!(answer_key(r"It is \boxed{4}."), answer_key("so 4"));
    }
}
