//! How models mark thoughts and calls.

use super::{deepseek, harmony};

/// How a model writes calls of tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>` (Hermes, Qwen2.5, Qwen3).
    Hermes,
    /// `<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`
    /// (Qwen3-Coder).
    Qwen3Coder,
    /// `{"name": …, "parameters": {…}}`, alone or behind `<|python_tag|>` (Llama 3).
    Llama3Json,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}]`, or `[TOOL_CALLS]NAME[ARGS]{…}` (Mistral).
    Mistral,
    /// `[name(key=value), …]` (Llama 4, OLMo).
    Pythonic,
    /// DeepSeek V3's `<｜tool▁calls▁begin｜>` and its siblings.
    DeepSeek,
    /// `<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}` (gpt-oss).
    Harmony,
}

/// The names of vLLM's `--tool-call-parser`, those of one format behind each other.
const TOOL_NAMES: [(&str, ToolFormat); 13] = [
    ("hermes", ToolFormat::Hermes),
    ("qwen25", ToolFormat::Hermes),
    ("qwen3_coder", ToolFormat::Qwen3Coder),
    ("qwen3_xml", ToolFormat::Qwen3Coder),
    ("llama3_json", ToolFormat::Llama3Json),
    ("llama4_json", ToolFormat::Llama3Json),
    ("mistral", ToolFormat::Mistral),
    ("pythonic", ToolFormat::Pythonic),
    ("llama4_pythonic", ToolFormat::Pythonic),
    ("deepseek_v3", ToolFormat::DeepSeek),
    ("deepseek_v31", ToolFormat::DeepSeek),
    ("deepseek_r1", ToolFormat::DeepSeek),
    ("openai", ToolFormat::Harmony),
];

impl ToolFormat {
    /// What [`Self::by_name`] knows.
    pub const NAMES: &'static [&'static str] = &{
        let mut names = [""; TOOL_NAMES.len()];
        let mut at = 0;
        while at < names.len() {
            names[at] = TOOL_NAMES[at].0;
            at += 1;
        }
        names
    };

    /// The format by the name of vLLM's `--tool-call-parser`.
    pub fn by_name(name: &str) -> Option<Self> {
        let found = TOOL_NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, format)| *format)
    }

    /// Whether a text has the mark of a call, in any format.
    pub fn has_mark(text: &str) -> bool {
        let marks_of = |(_, format): &(_, Self)| match format {
            // Its other marks stand in every answer.
            Self::Harmony => &[harmony::CALL],
            format => format.marks(),
        };
        let marks = TOOL_NAMES.iter().flat_map(marks_of);
        marks.into_iter().any(|mark| text.contains(mark))
    }

    /// The marks that a tokenizer may hold as special tokens.
    fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Hermes | Self::Qwen3Coder => &["<tool_call>", "</tool_call>"],
            Self::Llama3Json => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
            Self::Pythonic => &["<|python_start|>", "<|python_end|>"],
            Self::DeepSeek => &[
                deepseek::SECTION_START,
                deepseek::SECTION_END,
                deepseek::CALL_START,
                deepseek::CALL_END,
                deepseek::SEPARATOR,
            ],
            Self::Harmony => &harmony::MARKS,
        }
    }
}

/// Where a model thinks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasoningFormat {
    /// `<think>`, for example.
    pub start: String,
    /// `</think>`, for example.
    pub end: String,
}

/// Marks around thoughts, each with the names of vLLM's `--reasoning-parser` for models that use
/// them.
const REASONING: [(&str, &str, &[&str]); 6] = [
    (harmony::THOUGHT, harmony::END, &["openai_gptoss"]),
    (
        "<think>",
        "</think>",
        &[
            "deepseek_r1",
            "deepseek_v3",
            "qwen3",
            "glm45",
            "step3",
            "ernie45",
            "holo2",
        ],
    ),
    ("[THINK]", "[/THINK]", &["mistral"]),
    ("<|START_THINKING|>", "<|END_THINKING|>", &["cohere"]),
    ("<seed:think>", "</seed:think>", &["seed_oss"]),
    (
        "<|begin_of_thought|>",
        "<|end_of_thought|>",
        &["openthinker"],
    ),
];

impl ReasoningFormat {
    /// What [`Self::by_name`] knows.
    pub fn names() -> Vec<&'static str> {
        let names = REASONING.iter().flat_map(|(_, _, names)| *names);
        names.copied().collect()
    }

    /// The format by the name of vLLM's `--reasoning-parser`.
    pub fn by_name(name: &str) -> Option<Self> {
        let found = REASONING.iter().find(|(_, _, names)| names.contains(&name));
        found.map(|(start, end, _)| Self::new(start, end))
    }

    /// What follows the last thought of a text, whatever marks it.
    pub fn after_thought(text: &str) -> &str {
        let ends = REASONING.iter().map(|(_, end, _)| *end);
        let end_of = |end: &str| Some(text.rfind(end)? + end.len());
        let end = ends.chain([harmony::ANSWER]).filter_map(end_of).max();
        &text[end.unwrap_or(0)..]
    }

    /// The format whose marks a template writes.
    pub(super) fn of_template(template: &str) -> Option<Self> {
        // Templates that only cut thoughts out of the history write the end alone.
        // Other models end their messages with gpt-oss' end of a thought.
        let mark = |start, end| {
            if start == harmony::THOUGHT {
                start
            } else {
                end
            }
        };
        let mut known = REASONING.iter();
        let found = known.find(|(start, end, _)| template.contains(mark(*start, *end)));
        found.map(|(start, end, _)| Self::new(start, end))
    }

    /// Whether thoughts are messages of gpt-oss.
    pub fn is_harmony(&self) -> bool {
        self.start == harmony::THOUGHT
    }

    /// What ends a thought and leads to the answer: gpt-oss begins another message.
    pub fn end_before_answer(&self) -> String {
        match self.is_harmony() {
            true => format!("{}{}", self.end, harmony::NEXT),
            false => self.end.clone(),
        }
    }

    fn new(start: &str, end: &str) -> Self {
        Self {
            start: start.to_owned(),
            end: end.to_owned(),
        }
    }
}

/// How to read a model's text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutputFormat {
    pub tools: Option<ToolFormat>,
    pub reasoning: Option<ReasoningFormat>,
}

impl OutputFormat {
    /// Texts that may be special tokens and must stay visible to the parser.
    pub fn marks(&self) -> Vec<String> {
        let tools = self.tools.into_iter().flat_map(ToolFormat::marks);
        let tools = tools.map(|mark| (*mark).to_owned());
        let thoughts = self.reasoning.iter();
        let thoughts = thoughts.flat_map(|format| match format.is_harmony() {
            true => harmony::MARKS.map(str::to_owned).to_vec(),
            false => vec![format.start.clone(), format.end.clone()],
        });
        tools.chain(thoughts).collect()
    }

    /// What a model writes before its answer, and behind its thoughts.
    pub fn before_answer(&self) -> &'static str {
        match self.is_harmony() {
            true => harmony::ANSWER,
            false => "",
        }
    }

    /// Whether answers are messages of gpt-oss.
    pub fn is_harmony(&self) -> bool {
        let thoughts = self.reasoning.as_ref();
        self.tools == Some(ToolFormat::Harmony) || thoughts.is_some_and(ReasoningFormat::is_harmony)
    }

    /// Whether a prompt's end has opened a thought, which the answer goes on with.
    pub fn opens_thought(&self, prompt: &str) -> bool {
        let Some(format) = &self.reasoning else {
            return false;
        };
        prompt.trim_end().ends_with(&format.start)
    }
}
