//! What a model's text consists of: thoughts, calls of tools, and the answer itself, told apart
//! while they come.
//!
//! Every reader takes one character at a time, so that it cannot matter how the text is cut, and
//! looks at none twice but those of a mark, so that no text takes more than linear time.

mod deepseek;
mod detect;
mod format;
mod harmony;
mod json;
mod json_calls;
mod marks;
mod mistral;
mod offered;
mod out;
mod parameters;
mod parser;
mod python;
mod pythonic;
mod qwen3_coder;
#[cfg(test)]
mod tests;
mod thoughts;

pub use format::{OutputFormat, ReasoningFormat, ToolFormat};
pub use parser::{OutputParser, OutputPiece};
