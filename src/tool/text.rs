//! How a program's output is written into an answer.

use super::call::CodeCall;

/// The text that follows a block of code: a fenced block of its own.
///
/// ````text
/// ```output
/// 42
/// ```
/// ````
///
/// It begins and ends with a line of its own. The fence has more backticks than any line of the
/// output begins with.
pub fn output_text(call: &CodeCall, is_at_line_start: bool) -> String {
    let ticks = |line: &str| {
        let line = line.trim_start();
        line.len() - line.trim_start_matches('`').len()
    };
    let most = call.output.lines().map(ticks).max().unwrap_or(0);
    let fence = "`".repeat((most + 1).max(3));
    let before = if is_at_line_start { "" } else { "\n" };
    let after = match call.output.is_empty() || call.output.ends_with('\n') {
        true => "",
        false => "\n",
    };
    format!("{before}{fence}output\n{}{after}{fence}\n", call.output)
}

/// What is shown of a program's output: `max_bytes` of what it printed, with a mark where there was
/// more, and its error on a line of its own.
pub(super) fn shown(stdout: &str, error: Option<&str>, max_bytes: usize) -> String {
    let mut end = max_bytes.min(stdout.len());
    while !stdout.is_char_boundary(end) {
        end -= 1;
    }
    let mut shown = stdout[..end].to_owned();
    let is_cut = end < stdout.len();
    let mark = is_cut.then(|| format!("[cut after {max_bytes} bytes]"));
    for line in mark.as_deref().into_iter().chain(error) {
        if !shown.is_empty() && !shown.ends_with('\n') {
            shown.push('\n');
        }
        shown.push_str(line);
        shown.push('\n');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::CallStatus;

    #[test]
    fn outputs_are_fenced() {
        let text = |output: &str, is_at_line_start| {
            let call = CodeCall {
                code: String::new(),
                output: output.to_owned(),
                status: CallStatus::Completed,
            };
            output_text(&call, is_at_line_start)
        };
        assert_eq!(text("42\n", false), "\n```output\n42\n```\n");
        assert_eq!(text("42", true), "```output\n42\n```\n");
        assert_eq!(text("", true), "```output\n```\n");
        // No output closes its own fence.
        assert_eq!(text(" ````\nx", true), "`````output\n ````\nx\n`````\n");
    }

    #[test]
    fn what_is_shown_is_bounded() {
        assert_eq!(shown("1\n", None, 9), "1\n");
        assert_eq!(shown("1", Some("E: x"), 9), "1\nE: x\n");
        assert_eq!(shown("", Some("E: x"), 9), "E: x\n");
        assert_eq!(shown("éé", None, 3), "é\n[cut after 3 bytes]\n");
        let both = "ab\n[cut after 3 bytes]\nE: x\n";
        assert_eq!(shown("ab\ncd", Some("E: x"), 3), both);
    }
}
