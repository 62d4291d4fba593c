//! Where parsers write: pieces in order, with the white space around thoughts and calls left out.

use super::parser::OutputPiece;

/// White space around marks that says nothing.
pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\n' | '\r' | '\t')
}

/// The pieces since the last look.
#[derive(Debug, Clone, Default)]
pub(super) struct Out {
    pieces: Vec<OutputPiece>,
    num_calls: usize,
    /// White space behind the content so far. Content only if more content follows.
    space: String,
    /// Whether white space waits in `space`: only calls make that necessary.
    pub holds_space: bool,
    has_content: bool,
    /// A thought or a call came before all content.
    is_behind: bool,
    is_last_a_call: bool,
}

impl Out {
    pub fn take(&mut self) -> Vec<OutputPiece> {
        std::mem::take(&mut self.pieces)
    }

    /// Whether nothing but white space came before, or since the last call.
    pub fn is_at_start(&self) -> bool {
        !self.has_content || self.is_last_a_call
    }

    /// Whether nothing of the line so far is content.
    pub fn is_at_line_start(&self) -> bool {
        self.is_at_start() || self.space.contains('\n')
    }

    pub fn content(&mut self, text: &str) {
        let kept = text.trim_end_matches(is_space);
        if !kept.is_empty() {
            let is_trimmed = self.is_behind && !self.has_content;
            let space = std::mem::take(&mut self.space);
            match is_trimmed {
                true => self.append_content(kept.trim_start_matches(is_space)),
                false => {
                    self.append_content(&space);
                    self.append_content(kept);
                }
            }
            (self.has_content, self.is_last_a_call) = (true, false);
        }
        self.space.push_str(&text[kept.len()..]);
        if !self.holds_space {
            self.release();
        }
    }

    pub fn reasoning(&mut self, text: &str) {
        match self.pieces.last_mut() {
            Some(OutputPiece::Reasoning(last)) => last.push_str(text),
            _ => self.pieces.push(OutputPiece::Reasoning(text.to_owned())),
        }
    }

    /// A thought has ended here.
    pub fn end_of_thought(&mut self) {
        self.is_behind = true;
    }

    /// A call begins.
    pub fn call(&mut self, name: &str) {
        let index = self.num_calls;
        self.num_calls += 1;
        (self.is_behind, self.is_last_a_call) = (true, true);
        self.pieces.push(OutputPiece::Call {
            index,
            name: name.to_owned(),
        });
    }

    /// More arguments of the last call.
    pub fn arguments(&mut self, more: &str) {
        let current = self.num_calls.saturating_sub(1);
        match self.pieces.last_mut() {
            _ if more.is_empty() => {}
            Some(OutputPiece::Arguments { index, text }) if *index == current => {
                text.push_str(more);
            }
            _ => self.pieces.push(OutputPiece::Arguments {
                index: current,
                text: more.to_owned(),
            }),
        }
    }

    /// The text ends here.
    pub fn finish(&mut self) {
        if !self.is_last_a_call {
            self.release();
        }
    }

    /// Gives the white space that waits, unless a thought or call stands before it and nothing
    /// else.
    fn release(&mut self) {
        if self.has_content || !self.is_behind {
            let space = std::mem::take(&mut self.space);
            self.append_content(&space);
        }
    }

    fn append_content(&mut self, text: &str) {
        match self.pieces.last_mut() {
            _ if text.is_empty() => {}
            Some(OutputPiece::Content(last)) => last.push_str(text),
            _ => self.pieces.push(OutputPiece::Content(text.to_owned())),
        }
    }
}
