//! What a model's text consists of: thoughts, calls of tools, and the answer itself, told apart while they come.

mod format;
mod parser;

pub use format::{OutputFormat, ReasoningFormat, ToolFormat};
pub use parser::{OutputParser, OutputPiece};
