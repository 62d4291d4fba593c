//! Finding a model's format from its files.

use super::format::{OutputFormat, ReasoningFormat, ToolFormat};
use crate::text::Tokenizer;

/// Texts of templates that tell of a format. The first that fits counts; all parts of an entry
/// must be there.
const BY_TEMPLATE: [(&[&str], ToolFormat); 11] = [
    (&["<|channel|>commentary"], ToolFormat::Harmony),
    (&["<｜tool▁call▁begin｜>"], ToolFormat::DeepSeek),
    (&["<function=", "<parameter="], ToolFormat::Qwen3Coder),
    (&["[TOOL_CALLS]"], ToolFormat::Mistral),
    (
        &["func_name1(params_name1=params_value1"],
        ToolFormat::Pythonic,
    ),
    (
        &["<|python_start|>", "<|header_start|>", "pythonic"],
        ToolFormat::Pythonic,
    ),
    (&["<tool_call>"], ToolFormat::Hermes),
    (
        &["\"parameters\": dictionary of argument name"],
        ToolFormat::Llama3Json,
    ),
    (&["<|python_tag|>"], ToolFormat::Llama3Json),
    (&["<|python_start|>"], ToolFormat::Llama3Json),
    (&["<|header_start|>", "tools"], ToolFormat::Pythonic),
];

/// Marks of formats that are not read here, though they share marks with one that is.
const OTHERS: [&str; 2] = ["<arg_key>", "<｜DSML｜"];

/// Tokens that tell of a format where the template has tools and does not say how to call them.
const BY_TOKEN: [(&str, ToolFormat); 4] = [
    ("<｜tool▁call▁begin｜>", ToolFormat::DeepSeek),
    ("[TOOL_CALLS]", ToolFormat::Mistral),
    ("<tool_call>", ToolFormat::Hermes),
    ("<|python_tag|>", ToolFormat::Llama3Json),
];

impl OutputFormat {
    /// The format of a model by the source of its chat template and by its vocabulary.
    ///
    /// `tools` is `None` where the template has no tools, or calls that are not known here.
    pub fn detect(template: &str, tokenizer: &Tokenizer) -> Self {
        Self {
            tools: tools(template, tokenizer),
            reasoning: ReasoningFormat::of_template(template),
        }
    }
}

fn tools(template: &str, tokenizer: &Tokenizer) -> Option<ToolFormat> {
    if OTHERS.iter().any(|mark| template.contains(mark)) {
        return None;
    }
    let fits = |parts: &[&str]| parts.iter().all(|part| template.contains(part));
    if let Some((_, format)) = BY_TEMPLATE.iter().find(|(parts, _)| fits(parts)) {
        return Some(*format);
    }
    let has_token = |token: &str| tokenizer.token_to_id(token).is_some();
    let found = BY_TOKEN.iter().find(|(token, _)| has_token(token));
    found
        .filter(|_| template.contains("tools"))
        .map(|(_, format)| *format)
}
