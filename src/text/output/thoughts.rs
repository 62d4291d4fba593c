//! Thoughts, told apart from what follows them.

use super::format::ReasoningFormat;
use super::marks::{Marks, Read, Tag};
use super::out::{Out, is_space};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A thought may begin here: nothing was said yet, or only other thoughts.
    Before,
    Thinking,
    Body,
}

/// Splits a text into thoughts and the body behind them. A thought begins only where nothing else
/// was said: later, `<think>` is a word like others.
#[derive(Debug, Clone)]
pub(super) struct Thoughts {
    format: Option<ReasoningFormat>,
    state: State,
    /// White space that may turn out to stand between marks.
    space: String,
    tag: Tag,
    marks: Marks,
    /// Whether the thought has no text yet.
    is_empty: bool,
}

impl Thoughts {
    pub fn new(format: Option<ReasoningFormat>, is_thinking: bool) -> Self {
        let state = match (&format, is_thinking) {
            (None, _) => State::Body,
            (Some(_), true) => State::Thinking,
            (Some(_), false) => State::Before,
        };
        Self {
            format,
            state,
            space: String::new(),
            tag: Tag::default(),
            marks: Marks::default(),
            is_empty: true,
        }
    }

    /// Whether everything that follows is body.
    pub fn is_body(&self) -> bool {
        self.state == State::Body
    }

    /// Whether the text so far ends inside a thought.
    pub fn is_thinking(&self) -> bool {
        self.state == State::Thinking
    }

    /// Takes a character; `body` gets what is no thought.
    pub fn push(&mut self, c: char, out: &mut Out, body: &mut String) {
        let Some(format) = &self.format else {
            body.push(c);
            return;
        };
        match self.state {
            State::Body => body.push(c),
            State::Before if self.tag.is_empty() && is_space(c) => self.space.push(c),
            State::Before => match self.tag.push(&[&format.start], c) {
                Read::Part => {}
                Read::Whole(_) => {
                    self.space.clear();
                    (self.state, self.is_empty) = (State::Thinking, true);
                }
                Read::No => {
                    body.push_str(&std::mem::take(&mut self.space));
                    body.push_str(&self.tag.take());
                    self.state = State::Body;
                }
            },
            State::Thinking => {
                let mut plain = String::new();
                // Some models open a thought that the prompt has opened already.
                let marks: [&str; 2] = [&format.end, &format.start];
                let marks = if self.is_empty { &marks } else { &marks[..1] };
                let found = self.marks.push(marks, c, &mut plain);
                self.think(&plain, out);
                if found == Some(0) {
                    self.space.clear();
                    out.end_of_thought();
                    self.state = State::Before;
                }
            }
        }
    }

    fn think(&mut self, text: &str, out: &mut Out) {
        for c in text.chars() {
            match is_space(c) {
                true if self.is_empty => {}
                true => self.space.push(c),
                false => {
                    self.space.push(c);
                    out.reasoning(&self.space);
                    self.space.clear();
                    self.is_empty = false;
                }
            }
        }
    }

    /// What is held back of a thought: it begins no mark.
    pub fn flush(&mut self, out: &mut Out) {
        let held = self.marks.take();
        self.insert(&held, out);
    }

    /// Adds text without marks to a thought.
    pub fn insert(&mut self, text: &str, out: &mut Out) {
        self.think(text, out);
    }

    /// The text ends here.
    pub fn finish(&mut self, out: &mut Out, body: &mut String) {
        match self.state {
            State::Body => {}
            State::Before => {
                body.push_str(&std::mem::take(&mut self.space));
                body.push_str(&self.tag.take());
            }
            State::Thinking => {
                let held = self.marks.take();
                self.think(&held, out);
            }
        }
        self.state = State::Body;
    }
}
