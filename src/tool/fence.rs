//! Fenced blocks of Python in a text that comes piece by piece.

const TICK: char = '`';
/// Backticks of a fence at least (CommonMark, section 4.5).
const MIN_TICKS: usize = 3;
/// What is written behind a fence for Python.
const LANGUAGES: [&str; 3] = ["python", "py", "python3"];
/// Bytes of a line that may open a block; longer ones are text.
const MAX_OPENER_BYTES: usize = 256;

/// Finds where a block of Python ends: with the last backtick of the fence that closes it, whatever
/// follows. Fences stand at the beginning of a line, behind white space at most. Blocks in other
/// languages are skipped.
#[derive(Debug, Clone, Default)]
pub struct BlockReader {
    /// Of the line so far.
    line: String,
    block: Option<Block>,
}

/// An open block.
#[derive(Debug, Clone)]
struct Block {
    num_ticks: usize,
    /// White space before its opening fence, which its lines have too.
    indent: usize,
    /// The lines so far; `None` in other languages.
    code: Option<String>,
}

impl BlockReader {
    /// The code of the block that the text closes; what the text has behind that is not read.
    pub fn push(&mut self, text: &str) -> Option<String> {
        for c in text.chars() {
            match c {
                '\n' => self.end_line(),
                _ => self.line.push(c),
            }
            if c != TICK {
                continue;
            }
            let is_closed = self.block.as_ref().is_some_and(|block| {
                let mark = self.line.trim_start();
                mark.len() == block.num_ticks && mark.chars().all(|c| c == TICK)
            });
            if is_closed {
                self.line.clear();
                // What stands behind a fence on its line is no opening fence.
                self.line.push(TICK);
                let code = self.block.take().and_then(|block| block.code);
                if code.is_some() {
                    return code;
                }
            }
        }
        None
    }

    /// Reads a text in which no block counts that it closes.
    pub fn pass(&mut self, text: &str) {
        let mut rest = text;
        while !rest.is_empty() {
            // A block ends with a backtick: pieces that end with one have one end at most.
            let end = rest
                .find(TICK)
                .map_or(rest.len(), |at| at + TICK.len_utf8());
            let (piece, more) = rest.split_at(end);
            self.push(piece);
            rest = more;
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        match &mut self.block {
            Some(Block { code: None, .. }) => {}
            Some(Block {
                code: Some(code),
                indent,
                ..
            }) => {
                let is_indent = |(index, c): (usize, char)| index < *indent && c.is_whitespace();
                let indents = line.chars().enumerate().take_while(|it| is_indent(*it));
                let num_bytes: usize = indents.map(|(_, c)| c.len_utf8()).sum();
                code.push_str(&line[num_bytes..]);
                code.push('\n');
            }
            None => self.block = opened(&line),
        }
    }
}

/// The block that a line opens.
fn opened(line: &str) -> Option<Block> {
    if line.len() > MAX_OPENER_BYTES {
        return None;
    }
    let mark = line.trim_start();
    let indent = line.chars().count() - mark.chars().count();
    let info = mark.trim_start_matches(TICK);
    let num_ticks = mark.len() - info.len();
    if num_ticks < MIN_TICKS || info.contains(TICK) {
        return None;
    }
    let language = info.split_whitespace().next().unwrap_or_default();
    let is_python = LANGUAGES.iter().any(|it| it.eq_ignore_ascii_case(language));
    Some(Block {
        num_ticks,
        indent,
        code: is_python.then(String::new),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes of all blocks, each with where it ends, whatever the pieces are.
    fn blocks(text: &str, num_chars: usize) -> Vec<(String, usize)> {
        let mut reader = BlockReader::default();
        let (mut found, mut end) = (Vec::new(), 0);
        let chars: Vec<char> = text.chars().collect();
        for piece in chars.chunks(num_chars) {
            let piece: String = piece.iter().collect();
            end += piece.len();
            found.extend(reader.push(&piece).map(|code| (code, end)));
        }
        found
    }

    #[test]
    fn a_block_ends_with_its_fence() {
        for (text, expected) in [
            (
                "Let me see:\n```python\nx = 1\n\nprint(x)\n```\nSo",
                Some("x = 1\n\nprint(x)\n"),
            ),
            ("```py\n```", Some("")),
            ("```Python3 title=a\nx\n```", Some("x\n")),
            (
                "1. So:\n   ```python\n   if x:\n     y\n ```",
                Some("if x:\n  y\n"),
            ),
            ("````python\n```\n````", Some("```\n")),
            ("```python\nx = '```'\n```", Some("x = '```'\n")),
            ("```json\n{}\n```\n```python\nx\n```", Some("x\n")),
            ("```output\n```python\n```", None),
            ("Use ```python\nx\n```", None),
            ("```python\nx", None),
            ("```python x```\ny\n```", None),
            ("```\nx\n```", None),
            ("``python\nx\n``", None),
        ] {
            let found = blocks(text, 1);
            let codes: Vec<&str> = found.iter().map(|(code, _)| code.as_str()).collect();
            assert_eq!(codes, expected.into_iter().collect::<Vec<_>>(), "{text:?}");
            if expected.is_some() {
                let end = found[0].1;
                assert!(text[..end].ends_with("```"), "{text:?}");
            }
        }
        let two = "```python\na\n```\ntext\n```python\nb\n```\n";
        let codes: Vec<String> = blocks(two, 1).into_iter().map(|(code, _)| code).collect();
        assert_eq!(codes, ["a\n", "b\n"]);
        // A piece is read up to the end of a block.
        assert_eq!(
            blocks("```python\na\n```\nb", 100),
            [("a\n".to_owned(), 17)]
        );
    }

    #[test]
    fn blocks_that_were_passed_do_not_count() {
        let mut reader = BlockReader::default();
        reader.pass("```python\na\n```\n```json\n```\n```python\nb");
        assert_eq!(reader.push(" = 1\n```"), Some("b = 1\n".to_owned()));
        assert_eq!(reader.push("`python\nc\n```"), None);
    }
}
