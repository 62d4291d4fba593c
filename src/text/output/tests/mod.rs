mod bare;
mod detect;
mod formats;
mod harmony;
mod hermes;
mod properties;
mod pythonic;
mod thoughts;

use super::{OutputFormat, OutputParser, OutputPiece, ReasoningFormat, ToolFormat};

/// A whole answer, put together from its pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whole {
    pub content: String,
    pub reasoning: String,
    /// Names and arguments.
    pub calls: Vec<(String, String)>,
}

impl Whole {
    fn add(&mut self, pieces: Vec<OutputPiece>) {
        for piece in pieces {
            match piece {
                OutputPiece::Content(text) => {
                    assert!(!text.is_empty(), "empty content says nothing");
                    self.content.push_str(&text);
                }
                OutputPiece::Reasoning(text) => {
                    assert!(!text.is_empty(), "an empty thought says nothing");
                    self.reasoning.push_str(&text);
                }
                OutputPiece::Call { index, name } => {
                    assert_eq!(index, self.calls.len(), "calls are numbered");
                    self.calls.push((name, String::new()));
                }
                OutputPiece::Arguments { index, text } => {
                    assert_eq!(index + 1, self.calls.len(), "arguments follow their call");
                    assert!(!text.is_empty(), "empty arguments say nothing");
                    self.calls[index].1.push_str(&text);
                }
            }
        }
    }
}

pub fn format(tools: ToolFormat) -> OutputFormat {
    OutputFormat {
        tools: Some(tools),
        reasoning: ReasoningFormat::by_name("qwen3"),
    }
}

/// A parser that knows the tools `f`, `get_weather` and `add`.
pub fn offering(tools: ToolFormat) -> OutputParser {
    OutputParser::new(format(tools), false).with_tools(["f", "get_weather", "add"])
}

/// Reads a text in pieces of `len` characters.
pub fn read_in_pieces(mut parser: OutputParser, text: &str, len: usize) -> Whole {
    let mut whole = Whole::default();
    let chars: Vec<char> = text.chars().collect();
    for piece in chars.chunks(len) {
        whole.add(parser.push(&piece.iter().collect::<String>()));
    }
    whole.add(parser.finish());
    whole
}

/// Reads a text at once, and checks that pieces change nothing.
pub fn read(parser: &OutputParser, text: &str) -> Whole {
    let whole = read_in_pieces(parser.clone(), text, text.len().max(1));
    for len in [1, 2, 3, 5, 7] {
        let pieces = read_in_pieces(parser.clone(), text, len);
        assert_eq!(pieces, whole, "{text:?} in pieces of {len}");
    }
    whole
}

pub fn call(name: &str, arguments: &str) -> (String, String) {
    (name.to_owned(), arguments.to_owned())
}

/// Checks what a text becomes, without thoughts.
#[track_caller]
pub fn check(parser: &OutputParser, text: &str, content: &str, calls: &[(&str, &str)]) {
    let whole = read(parser, text);
    let calls: Vec<_> = calls.iter().map(|(name, args)| call(name, args)).collect();
    assert_eq!(whole.content, content, "{text:?}");
    assert_eq!(whole.calls, calls, "{text:?}");
    assert_eq!(whole.reasoning, "", "{text:?}");
}

/// Checks that a text is content as it stands.
#[track_caller]
pub fn check_plain(parser: &OutputParser, text: &str) {
    check(parser, text, text, &[]);
}
