//! DeepSeek's calls: sections of marked calls, with the arguments in a fence (V3, R1) or not
//! (V3.1).

use std::collections::VecDeque;

use super::json::{Arguments, Scan};
use super::marks::{Marks, Read, Tag};
use super::out::{Out, is_space};

/// What begins a section, and, as the last, a call. Some conversions spell the marks with other
/// spaces.
const STARTS: [&str; 5] = [
    "<｜tool▁calls▁begin｜>",
    "<｜tool_calls_begin｜>",
    "<｜tool calls begin｜>",
    "<｜tool▁calls｜>",
    CALL_START,
];
pub(super) const SECTION_START: &str = STARTS[0];
pub(super) const SECTION_END: &str = "<｜tool▁calls▁end｜>";
pub(super) const CALL_START: &str = "<｜tool▁call▁begin｜>";
pub(super) const CALL_END: &str = "<｜tool▁call▁end｜>";
pub(super) const SEPARATOR: &str = "<｜tool▁sep｜>";
/// What V3 writes before the separator.
const KIND: &str = "function";
/// Bytes of a name.
const MAX_NAME: usize = 1024;

#[derive(Debug, Clone)]
enum State {
    Content,
    /// Within a section, between calls.
    Section {
        raw: String,
        tag: Tag,
    },
    /// Before the separator.
    Head {
        raw: String,
        head: String,
        marks: Marks,
    },
    /// Behind it.
    Separated {
        raw: String,
        head: String,
    },
    /// The line with the name, in V3.
    Name {
        raw: String,
        name: String,
    },
    /// The fence before the arguments.
    Fence,
    Arguments(Arguments),
    /// Behind the arguments.
    Tail(Tag),
}

/// Reads text with such calls.
#[derive(Debug, Clone)]
pub(super) struct DeepSeek {
    state: State,
    marks: Marks,
    queue: VecDeque<char>,
}

impl DeepSeek {
    pub fn new() -> Self {
        Self {
            state: State::Content,
            marks: Marks::default(),
            queue: VecDeque::new(),
        }
    }

    pub fn push(&mut self, text: &str, out: &mut Out) {
        self.queue.extend(text.chars());
        while let Some(c) = self.queue.pop_front() {
            self.step(c, out);
        }
    }

    fn step(&mut self, c: char, out: &mut Out) {
        match &mut self.state {
            State::Content => {
                let mut plain = String::new();
                let found = self.marks.push(&STARTS, c, &mut plain);
                out.content(&plain);
                let Some(found) = found else {
                    return;
                };
                let raw = STARTS[found].to_owned();
                self.state = match STARTS[found] == CALL_START {
                    true => head(raw),
                    false => section(raw),
                };
            }
            State::Section { .. } => self.section(c, out),
            State::Head { .. } => self.head(c, out),
            State::Separated { .. } => self.separated(c, out),
            State::Name { .. } => self.name(c, out),
            State::Fence if c == '{' => self.begin_arguments(c),
            State::Fence if is_space(c) || c == '`' || c.is_ascii_alphabetic() => {}
            State::Fence => {
                out.arguments("{}");
                self.state = State::Tail(Tag::default());
                self.queue.push_front(c);
            }
            State::Arguments(_) => self.arguments(c, out),
            State::Tail(tag) if tag.is_empty() && (is_space(c) || c == '`' || c == '}') => {}
            State::Tail(tag) => match tag.push(&[CALL_END, SECTION_END, CALL_START], c) {
                Read::Part => {}
                Read::Whole(0) => self.state = section(String::new()),
                Read::Whole(1) => self.state = State::Content,
                Read::Whole(_) => self.state = head(CALL_START.to_owned()),
                Read::No => {
                    let rest = tag.take();
                    self.replay(&rest);
                }
            },
        }
    }

    fn section(&mut self, c: char, out: &mut Out) {
        let State::Section { raw, tag } = &mut self.state else {
            return;
        };
        if tag.is_empty() && is_space(c) {
            raw.push(c);
            return;
        }
        match tag.push(&[CALL_START, SECTION_END], c) {
            Read::Part => {}
            Read::Whole(0) => self.state = head(format!("{raw}{CALL_START}")),
            Read::Whole(_) => {
                // A section without calls says nothing, but one that was said is not swallowed.
                if !raw.trim().is_empty() {
                    out.content(&format!("{raw}{SECTION_END}"));
                }
                self.state = State::Content;
            }
            Read::No => {
                out.content(raw);
                let rest = tag.take();
                self.replay(&rest);
            }
        }
    }

    fn head(&mut self, c: char, out: &mut Out) {
        let State::Head { raw, head, marks } = &mut self.state else {
            return;
        };
        let is_found = marks.push(&[SEPARATOR], c, head).is_some();
        let is_wrong = head.contains('\n') || head.len() > MAX_NAME;
        if is_found {
            self.state = State::Separated {
                raw: format!("{raw}{head}{SEPARATOR}"),
                head: head.trim().to_owned(),
            };
        } else if is_wrong {
            out.content(&format!("{raw}{head}"));
            let rest = marks.take();
            self.replay(&rest);
        }
    }

    fn separated(&mut self, c: char, out: &mut Out) {
        let State::Separated { raw, head } = &mut self.state else {
            return;
        };
        if is_space(c) {
            raw.push(c);
            return;
        }
        let name = std::mem::take(head);
        match c {
            '{' if !name.is_empty() => {
                out.call(&name);
                self.begin_arguments(c);
            }
            '<' => {
                // The call has no arguments, or is none.
                let is_call = !name.is_empty() && name != KIND;
                match is_call {
                    true => {
                        out.call(&name);
                        out.arguments("{}");
                        self.state = State::Tail(Tag::default());
                        self.queue.push_front(c);
                    }
                    false => {
                        out.content(&std::mem::take(raw));
                        self.replay("<");
                    }
                }
            }
            _ if name == KIND || name.is_empty() => {
                self.state = State::Name {
                    raw: std::mem::take(raw),
                    name: String::new(),
                };
                self.queue.push_front(c);
            }
            '`' => {
                out.call(&name);
                self.state = State::Fence;
            }
            _ => {
                out.content(&std::mem::take(raw));
                self.replay(c.encode_utf8(&mut [0; 4]));
            }
        }
    }

    fn name(&mut self, c: char, out: &mut Out) {
        let State::Name { raw, name } = &mut self.state else {
            return;
        };
        match c {
            '\n' => {
                let name = name.trim().to_owned();
                out.call(&name);
                self.state = State::Fence;
            }
            '<' | '{' => {
                out.content(&format!("{raw}{name}"));
                self.replay(c.encode_utf8(&mut [0; 4]));
            }
            _ => name.push(c),
        }
    }

    fn begin_arguments(&mut self, first: char) {
        self.state = State::Arguments(Arguments::default());
        self.queue.push_front(first);
    }

    fn arguments(&mut self, c: char, out: &mut Out) {
        let State::Arguments(arguments) = &mut self.state else {
            return;
        };
        let mut text = String::new();
        // Outside of strings, these begin what stands behind the arguments: a bracket was lost.
        if !arguments.is_in_string() && matches!(c, '<' | '`') {
            arguments.close(&mut text);
            out.arguments(&text);
            self.state = State::Tail(Tag::default());
            self.queue.push_front(c);
            return;
        }
        let scan = arguments.step(c, &mut text);
        out.arguments(&text);
        if scan == Scan::Last {
            self.state = State::Tail(Tag::default());
        }
    }

    /// Reads again, as content.
    fn replay(&mut self, text: &str) {
        self.state = State::Content;
        for c in text.chars().rev() {
            self.queue.push_front(c);
        }
    }

    /// The text ends here.
    pub fn finish(&mut self, out: &mut Out) {
        match &mut self.state {
            State::Content => out.content(&self.marks.take()),
            State::Section { raw, tag } => {
                let is_said = !raw.trim().is_empty();
                let raw = format!("{raw}{}", tag.take());
                out.content(if is_said { &raw } else { "" });
            }
            State::Head { raw, head, marks } => {
                out.content(&format!("{raw}{head}{}", marks.take()));
            }
            State::Separated { head, .. } if !head.is_empty() && head != KIND => out.call(head),
            State::Separated { raw, .. } => out.content(raw),
            State::Name { raw, name } => out.content(&format!("{raw}{name}")),
            State::Fence | State::Tail(_) => {}
            State::Arguments(arguments) => {
                let mut text = String::new();
                arguments.cut(&mut text);
                out.arguments(&text);
            }
        }
        self.state = State::Content;
    }
}

fn section(raw: String) -> State {
    let tag = Tag::default();
    State::Section { raw, tag }
}

fn head(raw: String) -> State {
    State::Head {
        raw,
        head: String::new(),
        marks: Marks::default(),
    }
}
