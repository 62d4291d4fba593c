//! Text in and out of token ids. Knows the model's files, nothing of HTTP or the engine.

pub mod chat_template;
pub mod detokenizer;
#[cfg(test)]
mod mutations;
mod output;
mod pattern;
mod step;
pub mod stop;
pub mod tokenizer;

pub use chat_template::{ChatTemplate, Knowledge, TemplateError};
pub use detokenizer::Detokenizer;
pub use output::{OutputFormat, OutputParser, OutputPiece, ReasoningFormat, ToolFormat};
pub use pattern::{Automaton, Pattern, Place};
pub use step::{StepProgress, StepRule};
pub use stop::{StopMatcher, StopOutcome};
pub use tokenizer::{Tokenizer, TokenizerError};
