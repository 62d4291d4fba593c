//! Code as a tool inside an answer: where a block of Python ends, what runs it, and how its output
//! is written into the answer. Knows no engine, no trees and no HTTP.

mod call;
mod fence;
mod runner;
mod text;

pub use call::{CallStatus, CodeCall, CodeLimits, CodeTool};
pub use fence::BlockReader;
pub use runner::{CodeRunner, Program, Ran};
pub use text::output_text;
