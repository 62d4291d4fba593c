//! Grammars of tool calls, in the exact texts that each family of models writes.
//!
//! With `is_required` an answer is calls alone. Otherwise an answer is free text, and a mark in the
//! text begins calls; nothing follows the last call but the answer's end.

mod harmony;
mod json;
mod python;
mod xml;

use serde_json::Value;

use super::compile::Source;
use super::lark::{Lark, Mark, Piece, mark, split};
use super::numbers::NumberScope;
use super::vocabulary::Vocabulary;
use super::{GrammarError, ToolGrammar, ToolSpec, schema};
use crate::text::ToolFormat;

/// # Errors
/// A tool twice, a name that calls cannot carry, a schema's own faults.
pub(super) fn source(tools: &ToolGrammar, vocabulary: &Vocabulary) -> Result<Source, GrammarError> {
    check_names(tools)?;
    let mut builder = Builder {
        lark: Lark::default(),
        vocabulary,
        tools,
    };
    let (start, numbers) = match tools.format {
        ToolFormat::Hermes => builder.hermes()?,
        ToolFormat::Llama3Json => builder.llama3()?,
        ToolFormat::Mistral => builder.mistral()?,
        ToolFormat::DeepSeek => builder.deep_seek()?,
        ToolFormat::Qwen3Coder => builder.qwen3_coder()?,
        ToolFormat::Pythonic => builder.pythonic()?,
        ToolFormat::Harmony => builder.harmony()?,
    };
    Ok(Source {
        num_bytes: builder.lark.num_bytes(),
        grammar: builder.lark.finish(&start),
        numbers,
    })
}

fn check_names(tools: &ToolGrammar) -> Result<(), GrammarError> {
    let invalid = |message: String| Err(GrammarError::Invalid(message));
    if tools.tools.is_empty() {
        return invalid("there are no tools to call".to_owned());
    }
    for (index, tool) in tools.tools.iter().enumerate() {
        let name = &tool.name;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.:/".contains(c);
        if name.is_empty() || !name.chars().all(is_plain) {
            return invalid(format!(
                "the name {name:?} of a tool has other characters than letters, digits and _-.:/"
            ));
        }
        if tools.tools[..index].iter().any(|other| other.name == *name) {
            return invalid(format!("two tools have the name {name:?}"));
        }
    }
    Ok(())
}

/// Builds one grammar of calls.
struct Builder<'a> {
    lark: Lark,
    vocabulary: &'a Vocabulary,
    tools: &'a ToolGrammar,
}

impl Builder<'_> {
    fn mark(&self, text: &str) -> Result<Mark, GrammarError> {
        split(text, self.vocabulary)
    }

    /// The JSON of a tool's arguments.
    fn arguments(&mut self, tool: &ToolSpec) -> Result<String, GrammarError> {
        let prepared = self.prepare(tool, &schema::arguments(&tool.parameters))?;
        Ok(self.lark.schema(prepared))
    }

    fn prepare(&self, tool: &ToolSpec, parameters: &Value) -> Result<Value, GrammarError> {
        let of_tool = |message: String| format!("the parameters of {:?}: {message}", tool.name);
        schema::prepare(parameters, tool.strict).map_err(|error| match error {
            GrammarError::Invalid(message) => GrammarError::Invalid(of_tool(message)),
            GrammarError::TooMuchWork(message) => GrammarError::TooMuchWork(of_tool(message)),
        })
    }

    /// A rule that is one call of any tool: an alternative for each.
    fn any_call(
        &mut self,
        call: impl Fn(&mut Self, &ToolSpec) -> Result<String, GrammarError>,
    ) -> Result<String, GrammarError> {
        let tools = self.tools;
        let calls = tools.tools.iter().map(|tool| call(self, tool));
        let calls = calls.collect::<Result<Vec<_>, _>>()?;
        Ok(self.lark.rule(&calls.join(" | ")))
    }

    /// One call, or several with a separator.
    fn several(&mut self, call: &str, separator: &str) -> String {
        match self.tools.is_parallel {
            true => format!("{call} ({separator} {call})*"),
            false => call.to_owned(),
        }
    }

    /// Calls that begin with a mark, alone or behind a text. `calls` is what follows the mark.
    fn behind_text(&mut self, begin: &Mark, calls: &str) -> String {
        if self.tools.is_required {
            return format!("{} {calls}", mark(begin));
        }
        // The mark as plain text begins a call, too: whoever reads the answer sees no tokens.
        let spelled = self.spelling(begin);
        let text = self.lark.text_without(&[&spelled]);
        match begin.as_slice() {
            [Piece::Text(_)] => {
                let until = self.lark.text_until(begin);
                format!("{text} | {until} {calls}")
            }
            _ => format!("{text} ({} {calls})?", mark(begin)),
        }
    }

    /// A mark as text.
    fn spelling(&self, pieces: &Mark) -> String {
        let tokenizer = self.vocabulary.tokenizer();
        let pieces = pieces.iter().map(|piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Special(id) => tokenizer.token_text(*id),
        });
        pieces.collect()
    }

    /// Where numbers of arguments are: in the whole answer, or behind one of the texts.
    fn numbers(&self, begins: &[&str]) -> NumberScope {
        match self.tools.is_required {
            true => NumberScope::Whole,
            false => NumberScope::Between {
                begins: begins.iter().map(|text| text.as_bytes().to_vec()).collect(),
                ends: Vec::new(),
            },
        }
    }
}

/// `{"name": "NAME", "KEY": `: what stands before the arguments.
fn json_head(tool: &ToolSpec, key: &str) -> String {
    format!("{{\"name\": \"{}\", \"{key}\": ", tool.name)
}
