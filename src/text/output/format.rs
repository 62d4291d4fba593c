//! How models mark thoughts and calls.

/// How a model writes calls of tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>` (Hermes, Qwen2.5, Qwen3).
    Hermes,
    /// `<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>` (Qwen3-Coder).
    Qwen3Coder,
    /// `{"name": …, "parameters": {…}}`, alone or behind `<|python_tag|>` (Llama 3).
    Llama3Json,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}]`, or `[TOOL_CALLS]NAME[ARGS]{…}` (Mistral).
    Mistral,
    /// `[name(key=value), …]` (Llama 4, OLMo).
    Pythonic,
    /// DeepSeek V3's `<｜tool▁calls▁begin｜>` and its siblings.
    DeepSeek,
}

/// Where a model thinks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasoningFormat {
    /// `<think>`.
    pub start: String,
    /// `</think>`.
    pub end: String,
}

/// How to read a model's text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutputFormat {
    pub tools: Option<ToolFormat>,
    pub reasoning: Option<ReasoningFormat>,
}

impl ToolFormat {
    pub const NAMES: [&str; 1] = ["hermes"];

    pub fn by_name(name: &str) -> Option<Self> {
        (name == "hermes").then_some(Self::Hermes)
    }
}

impl OutputFormat {
    pub fn detect(_template: &str, _tokenizer: &crate::text::Tokenizer) -> Self {
        Self::default()
    }

    pub fn marks(&self) -> Vec<String> {
        Vec::new()
    }

    pub fn opens_thought(&self, _prompt: &str) -> bool {
        false
    }
}
