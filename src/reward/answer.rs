//! What two answers must share to count as the same.

use serde::de::IgnoredAny;

use super::verifier::{extract, fence, math};
use crate::text::{ReasoningFormat, ToolFormat};

/// Begins a value that is text as it stands, in calls written as XML (Qwen3-Coder).
const PLAIN_VALUE: &str = "<parameter=";

/// The canonical form of the final answer of `text`, for votes; of the whole text when it names
/// none. JSON and calls of tools count as a whole, but for their white space.
pub fn answer_key(text: &str) -> String {
    let answer = ReasoningFormat::after_thought(text).trim();
    let is_json =
        answer.starts_with(['{', '[']) && serde_json::from_str::<IgnoredAny>(answer).is_ok();
    let is_call = ToolFormat::has_mark(answer);
    // `[name(key=value)]`, Python's way.
    let is_python = !is_json && answer.starts_with('[') && answer.ends_with(")]");
    if is_call && answer.contains(PLAIN_VALUE) {
        return words(answer);
    }
    if is_json || is_call || is_python {
        return without_white_space(answer, is_python);
    }
    match extract::final_answer(text) {
        Some(answer) => math::normalize(&answer),
        None => words(text),
    }
}

/// Marks a fenced block.
const FENCE: &str = "```";

/// Whether an answer is code: it names no final answer, and no number stands behind its last block.
/// Two of those are the same only word by word.
pub fn is_code(text: &str) -> bool {
    let answer = ReasoningFormat::after_thought(text);
    if fence::first_fenced_block(answer).is_none() || extract::is_marked(answer) {
        return false;
    }
    let behind = answer.rsplit_once(FENCE).map(|(_, behind)| behind);
    behind.is_none_or(|behind| extract::final_answer(behind).is_none())
}

/// What an answer shares with those that agree with it: its words where it is code, since the last
/// number of a program says nothing; else [`answer_key`].
pub fn vote_key(text: &str) -> String {
    match is_code(text) {
        true => words(ReasoningFormat::after_thought(text)),
        false => answer_key(text),
    }
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A text without the white space outside of its strings. Python has two marks of strings.
fn without_white_space(text: &str, is_python: bool) -> String {
    let mut kept = String::with_capacity(text.len());
    let (mut string, mut is_escaped) = (None, false);
    for c in text.chars() {
        match c {
            '"' | '\'' if !is_escaped && (c == '"' || is_python) => match string {
                None => string = Some(c),
                Some(mark) if mark == c => string = None,
                Some(_) => {}
            },
            c if c.is_whitespace() && string.is_none() => continue,
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
    fn programs_agree_word_by_word() {
        let program = "Here:\n```python\nprint(1)\n```";
        assert!(is_code(program));
        assert_eq!(vote_key(program), "Here: ```python print(1) ```");
        assert_ne!(vote_key(program), vote_key("```python\nx = 1\n```"));
        for text in [
            "```python\nprint(1)\n```\nThe answer is 1",
            "```\n1\n```\n\\boxed{1}",
            "```python\nprint(2)\n```\nIt prints 1.",
            "so 1",
            "<think>```x```</think>1",
        ] {
            assert!(!is_code(text));
            assert_eq!(vote_key(text), "1");
        }
    }

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
            ("[a(x='b c')]", "[a(x='bc')]"),
            (
                "<tool_call><function=f><parameter=q>new york</parameter></function></tool_call>",
                "<tool_call><function=f><parameter=q>newyork</parameter></function></tool_call>",
            ),
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

    #[test]
    fn code_is_compared_by_the_answer_beside_it_alone() {
        let block = "```python\nprint(2 + 2)\n```";
        for (text, expected) in [
            ("It is 4", true),
            ("Paris", true),
            (block, false),
            (&format!("The answer is:\n{block}"), false),
            (&format!("{block}\nThe answer is 4"), true),
            (&format!("{block}\n#### 4"), true),
            (&format!("{block}\nSo \\boxed{{4}}"), true),
            (&format!("{block}\n<answer>4</answer>"), true),
            (&format!("<think>{block}</think>It is 4"), true),
        ] {
            assert_eq!(is_code(text), !expected, "{text}");
        }
    }
}
