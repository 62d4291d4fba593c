//! Fenced blocks of Markdown.

/// Opens and closes a block.
pub(super) const FENCE: &str = "```";

/// The inside of the first fenced block (an open one reaches to the end): models answer first and give
/// examples of use after.
pub fn first_fenced_block(text: &str) -> Option<&str> {
    let start = text.find(FENCE)?;
    // The rest of the opening line is the language.
    let inside = &text[start + FENCE.len()..];
    let inside = &inside[inside.find('\n')? + 1..];
    let end = inside
        .match_indices(FENCE)
        .map(|(at, _)| at)
        .find(|at| *at == 0 || inside[..*at].ends_with('\n'));
    Some(end.map_or(inside, |end| &inside[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_block_counts() {
        let text = "Here:\n```python\nx = '```'\n```\nthen\n```\ny\n```";
        assert_eq!(first_fenced_block(text), Some("x = '```'\n"));
        assert_eq!(first_fenced_block("a ```py\nopen"), Some("open"));
        assert_eq!(first_fenced_block("none"), None);
        assert_eq!(first_fenced_block("```"), None);
        assert_eq!(first_fenced_block("```\n```"), Some(""));
    }
}
