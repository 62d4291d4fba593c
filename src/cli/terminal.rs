//! What a stream of this process can show.

use std::io::IsTerminal;

/// Whether text on `stream` may have colours: on a terminal, unless `NO_COLOR` is set to anything
/// (<https://no-color.org>).
pub(super) fn has_colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A line for stderr that stands behind others.
pub(super) fn dim(line: &str) -> String {
    dimmed(line, has_colours(&std::io::stderr()))
}

/// A part of what is written to stdout that stands behind the rest.
pub(super) fn dim_text(text: &str) -> String {
    dimmed(text, has_colours(&std::io::stdout()))
}

fn dimmed(text: &str, has_colours: bool) -> String {
    match has_colours {
        true => format!("\x1b[2m{text}\x1b[0m"),
        false => text.to_owned(),
    }
}
