//! Calls of tools, as the served model writes them.

use serde_json::Value;

use crate::text::ToolFormat;

/// A tool that a call may name.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolSpec {
    pub name: String,
    /// The schema of its arguments; null for any object.
    pub parameters: Value,
    /// Arguments keep to the schema even where calls are the model's choice.
    pub strict: bool,
}

/// Which calls an answer may or must have.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolGrammar {
    pub format: ToolFormat,
    pub tools: Vec<ToolSpec>,
    /// The answer is at least one call and nothing else; otherwise text may come, and calls in it.
    pub is_required: bool,
    /// More than one call.
    pub is_parallel: bool,
}
