//! Calls as messages of gpt-oss. The role of an answer's first message stands in the prompt.

use super::super::GrammarError;
use super::super::lark::{literal, mark};
use super::super::numbers::NumberScope;
use super::Builder;

impl Builder<'_> {
    /// `<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}`, or with the tool
    /// before the channel. `<|call|>` ends the answer, so there is one call.
    pub(super) fn harmony(&mut self) -> Result<(String, NumberScope), GrammarError> {
        let word = |text: &str| self.mark(&format!("<|{text}|>"));
        let (begin, message_mark) = (word("channel")?, word("message")?);
        let (channel, message) = (mark(&begin), mark(&message_mark));
        let constrain = mark(&word("constrain")?);
        let call = self.any_call(|builder, tool| {
            let arguments = builder.arguments(tool)?;
            let inside = literal(&format!("commentary to=functions.{} ", tool.name));
            let before = literal(&format!(" to=functions.{}", tool.name));
            Ok(format!(
                "({channel} {inside} | {before} {channel} \"commentary \") {constrain}? \
                 \"json\" {message} {arguments}"
            ))
        })?;
        let numbers = self.numbers(&["json<|message|>"]);
        if self.tools.is_required {
            return Ok((call, numbers));
        }
        // What is said has no mark in it: whoever reads the answer sees no tokens.
        let (begin, message_mark) = (self.spelling(&begin), self.spelling(&message_mark));
        let text = self.lark.text_without(&[&begin, &message_mark]);
        let next = self.mark("<|end|><|start|>")?;
        let said = self.lark.text_until(&next);
        let start = format!(
            "{channel} \"final\" {message} {text} | \
             ({channel} \"commentary\" {message} {said} \"assistant\")? {call}"
        );
        Ok((start, numbers))
    }
}
