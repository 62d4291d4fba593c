//! Calls whose arguments are JSON.

use super::super::GrammarError;
use super::super::lark::{literal, mark};
use super::super::numbers::NumberScope;
use super::{Builder, Piece, json_head};

type Start = Result<(String, NumberScope), GrammarError>;

impl Builder<'_> {
    /// `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`, a new line between two calls.
    pub(super) fn hermes(&mut self) -> Start {
        let begin = self.mark("<tool_call>")?;
        let end = mark(&self.mark("</tool_call>")?);
        let call = self.any_call(|builder, tool| {
            let arguments = builder.arguments(tool)?;
            let head = literal(&format!("\n{}", json_head(tool, "arguments")));
            Ok(format!("{head} {arguments} \"}}\\n\" {end}"))
        })?;
        let separator = format!("\"\\n\" {}", mark(&begin));
        let calls = self.several(&call, &separator);
        let start = self.behind_text(&begin, &calls);
        Ok((start, self.numbers(&["\"arguments\": "])))
    }

    /// `{"name": …, "parameters": {…}}`, maybe behind `<|python_tag|>`; a semicolon between two.
    /// A text that begins with a brace is a call.
    pub(super) fn llama3(&mut self) -> Start {
        let call = self.any_call(|builder, tool| {
            let arguments = builder.arguments(tool)?;
            let head = literal(&json_head(tool, "parameters"));
            Ok(format!("{head} {arguments} \"}}\""))
        })?;
        let calls = self.several(&call, "\"; \"");
        let tag = self.mark("<|python_tag|>")?;
        let behind_tag = match tag.as_slice() {
            [Piece::Special(_)] => format!("{}? ", mark(&tag)),
            _ => String::new(),
        };
        let start = match self.tools.is_required {
            true => format!("{behind_tag}{calls}"),
            false => {
                let text = self.lark.terminal(
                    "/(?s:.+)/ & ~/\\s*\\{(?s:.*)/ & ~/(?s:.*)<\\|python_tag\\|>(?s:.*)/",
                );
                format!("{text}? | {behind_tag}{calls}")
            }
        };
        Ok((start, self.numbers(&["\"parameters\": "])))
    }

    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]NAME[ARGS]{…}` where the
    /// vocabulary has that token.
    pub(super) fn mistral(&mut self) -> Start {
        let begin = self.mark("[TOOL_CALLS]")?;
        let separator = self.mark("[ARGS]")?;
        let is_new = matches!(separator.as_slice(), [Piece::Special(_)]);
        let call = self.any_call(|builder, tool| {
            let arguments = builder.arguments(tool)?;
            Ok(match is_new {
                true => format!("{} {} {arguments}", literal(&tool.name), mark(&separator)),
                false => {
                    let head = literal(&json_head(tool, "arguments"));
                    format!("{head} {arguments} \"}}\"")
                }
            })
        })?;
        let calls = match is_new {
            true => self.several(&call, &mark(&begin)),
            false => format!("\" \"? \"[\" {} \"]\"", self.several(&call, "\", \"")),
        };
        let start = self.behind_text(&begin, &calls);
        Ok((start, self.numbers(&["\"arguments\": ", "[ARGS]"])))
    }

    /// DeepSeek V3 and R1: the name and fenced JSON; V3.1: the name, a separator, JSON.
    pub(super) fn deep_seek(&mut self) -> Start {
        let word = |text: &str| self.mark(&format!("<｜tool▁{text}｜>"));
        let begin = word("calls▁begin")?;
        let end = mark(&word("calls▁end")?);
        let call_begin = mark(&word("call▁begin")?);
        let call_end = mark(&word("call▁end")?);
        let separator = mark(&word("sep")?);
        let call = self.any_call(|builder, tool| {
            let arguments = builder.arguments(tool)?;
            let name = literal(&tool.name);
            let fenced = literal(&format!("{}\n```json\n", tool.name));
            Ok(format!(
                "\"function\" {separator} {fenced} {arguments} \"\\n```\" | {name} {separator} {arguments}"
            ))
        })?;
        let call = self.lark.rule(&format!("{call_begin} {call} {call_end}"));
        let calls = format!("{} {end}", self.several(&call, "\"\\n\"?"));
        let start = self.behind_text(&begin, &calls);
        let spelled = self.spelling(&begin);
        Ok((start, self.numbers(&[&spelled])))
    }
}
