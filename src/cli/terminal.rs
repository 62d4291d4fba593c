//! What a stream of this process can show.

use std::io::IsTerminal;

/// Whether text on `stream` may have colours: on a terminal, unless `NO_COLOR` is set to anything
/// (<https://no-color.org>).
pub(super) fn has_colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A line for stderr that stands behind others.
pub(super) fn dim(line: &str) -> String {
    match has_colours(&std::io::stderr()) {
        true => format!("\x1b[2m{line}\x1b[0m"),
        false => line.to_owned(),
    }
}
