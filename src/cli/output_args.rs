//! Flags about the marks in a model's text: thoughts and calls.

use clap::Args;

use crate::api::detect_output;
use crate::text::{ChatTemplate, OutputFormat, ReasoningFormat, Tokenizer, ToolFormat};

/// Reads nothing, whatever the template says.
const OFF: &str = "off";

#[derive(Debug, Clone, Default, Args)]
pub struct OutputArgs {
    /// Format of the model's tool calls, by vLLM's name (hermes, llama3_json, mistral, ...); off
    /// leaves calls in the text [default: as the chat template has it]
    #[arg(long, env = "PONDER_TOOL_CALL_PARSER", value_parser = parse_tool_parser, value_name = "NAME", help_heading = "Engine")]
    pub tool_call_parser: Option<ToolCallParser>,
    /// Format of the model's thoughts, by vLLM's name (deepseek_r1, qwen3, ...); off leaves
    /// thoughts in the text [default: as the chat template has it]
    #[arg(long, env = "PONDER_REASONING_PARSER", value_parser = parse_reasoning_parser, value_name = "NAME", help_heading = "Engine")]
    pub reasoning_parser: Option<ReasoningParser>,
}

/// `None` is off.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCallParser(Option<ToolFormat>);

/// `None` is off.
#[derive(Debug, Clone, PartialEq)]
pub struct ReasoningParser(Option<ReasoningFormat>);

impl OutputArgs {
    /// What the model's template says, and the flags in its place.
    pub(super) fn format(
        &self,
        template: Option<&ChatTemplate>,
        tokenizer: &Tokenizer,
    ) -> OutputFormat {
        let mut format = detect_output(template, tokenizer);
        if let Some(ToolCallParser(tools)) = &self.tool_call_parser {
            format.tools = *tools;
        }
        if let Some(ReasoningParser(reasoning)) = &self.reasoning_parser {
            format.reasoning.clone_from(reasoning);
        }
        format
    }
}

fn parse_tool_parser(text: &str) -> Result<ToolCallParser, String> {
    match ToolFormat::by_name(text) {
        None if text == OFF => Ok(ToolCallParser(None)),
        None => Err(unknown(text, ToolFormat::NAMES)),
        format => Ok(ToolCallParser(format)),
    }
}

fn parse_reasoning_parser(text: &str) -> Result<ReasoningParser, String> {
    if text == OFF {
        return Ok(ReasoningParser(None));
    }
    match ReasoningFormat::by_name(text) {
        None => Err(unknown(text, &ReasoningFormat::names())),
        format => Ok(ReasoningParser(format)),
    }
}

fn unknown(text: &str, names: &[&str]) -> String {
    format!("{text:?} is none of {OFF}, {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsers_have_vllm_s_names() {
        assert_eq!(
            parse_tool_parser("hermes"),
            Ok(ToolCallParser(Some(ToolFormat::Hermes)))
        );
        assert_eq!(parse_tool_parser("off"), Ok(ToolCallParser(None)));
        assert_eq!(parse_reasoning_parser("off"), Ok(ReasoningParser(None)));
        let qwen = parse_reasoning_parser("qwen3").unwrap().0.unwrap();
        let marks = (qwen.start.as_str(), qwen.end.as_str());
        assert_eq!(marks, ("<think>", "</think>"));
        for name in ["", "Hermes", "nobody"] {
            assert!(parse_tool_parser(name).unwrap_err().contains("hermes"));
            assert!(parse_reasoning_parser(name).unwrap_err().contains("qwen3"));
        }
    }
}
