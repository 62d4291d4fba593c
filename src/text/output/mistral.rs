//! Mistral's calls: `[TOOL_CALLS]` before an array of objects, or before a name and its arguments.

use std::collections::VecDeque;

use super::json::{Arguments, CallList, Rules, Scan, Took};
use super::marks::{Marks, Read, Tag};
use super::out::{Out, is_space};

const START: &str = "[TOOL_CALLS]";
/// What may stand behind a name.
const BEHIND_NAME: [&str; 2] = ["[ARGS]", "[CALL_ID]"];
const ARGS: &str = "[ARGS]";

#[derive(Debug, Clone)]
enum State {
    Content,
    /// Behind the mark.
    Opened(String),
    List(Box<CallList>),
    /// A name, with what was read since the mark.
    Name {
        raw: String,
        name: String,
        tag: Tag,
    },
    /// The call's id, which is not needed.
    Id {
        raw: String,
        name: String,
        marks: Marks,
    },
    Arguments(Arguments),
}

/// Reads text with such calls.
#[derive(Debug, Clone)]
pub(super) struct Mistral {
    state: State,
    marks: Marks,
    queue: VecDeque<char>,
}

impl Mistral {
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
                let found = self.marks.push(&[START], c, &mut plain);
                out.content(&plain);
                if found.is_some() {
                    self.state = State::Opened(START.to_owned());
                }
            }
            State::Opened(raw) if is_space(c) => raw.push(c),
            State::Opened(raw) => {
                let raw = std::mem::take(raw);
                self.state = match c {
                    '[' | '{' => State::List(Box::new(CallList::new(raw, Rules::default()))),
                    _ => State::Name {
                        raw,
                        name: String::new(),
                        tag: Tag::default(),
                    },
                };
                self.queue.push_front(c);
            }
            State::List(list) => {
                let took = list.step(c, out);
                let raw = list.take_raw_unless(took == Took::More);
                match took {
                    Took::More => {}
                    Took::Done | Took::Over => self.replay(&raw),
                    Took::Failed => {
                        let kept = raw.strip_suffix(c).unwrap_or(&raw);
                        out.content(kept);
                        self.replay(&raw[kept.len()..]);
                    }
                }
            }
            State::Name { .. } => self.name(c, out),
            State::Id { raw, name, marks } => {
                raw.push(c);
                let mut id = String::new();
                if marks.push(&[ARGS], c, &mut id).is_some() {
                    let name = std::mem::take(name);
                    self.begin(&name, out);
                }
            }
            State::Arguments(arguments) => {
                let mut text = String::new();
                let scan = arguments.step(c, &mut text);
                if scan == Scan::Bad {
                    arguments.close(&mut text);
                }
                out.arguments(&text);
                match scan {
                    Scan::Before | Scan::Inside => {}
                    Scan::Last => self.state = State::Content,
                    Scan::Over | Scan::Bad => self.replay(c.encode_utf8(&mut [0; 4])),
                }
            }
        }
    }

    fn name(&mut self, c: char, out: &mut Out) {
        let State::Name { raw, name, tag } = &mut self.state else {
            return;
        };
        if tag.is_empty() && (c.is_alphanumeric() || "_-.:/".contains(c)) {
            raw.push(c);
            name.push(c);
            return;
        }
        if tag.is_empty() && c == '{' && !name.is_empty() {
            let name = std::mem::take(name);
            self.begin(&name, out);
            self.queue.push_front(c);
            return;
        }
        match tag.push(&BEHIND_NAME, c) {
            Read::Part => {}
            Read::Whole(0) if !name.is_empty() => {
                let name = std::mem::take(name);
                self.begin(&name, out);
            }
            Read::Whole(found) => {
                raw.push_str(BEHIND_NAME[found]);
                self.state = State::Id {
                    raw: std::mem::take(raw),
                    name: std::mem::take(name),
                    marks: Marks::default(),
                };
            }
            Read::No => {
                let rest = tag.take();
                out.content(&std::mem::take(raw));
                self.replay(&rest);
            }
        }
    }

    fn begin(&mut self, name: &str, out: &mut Out) {
        out.call(name);
        self.state = State::Arguments(Arguments::default());
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
            State::Opened(raw) | State::Id { raw, .. } => out.content(raw),
            State::List(list) => list.cut("", out),
            State::Name { raw, tag, .. } => {
                let raw = format!("{raw}{}", tag.take());
                out.content(&raw);
            }
            State::Arguments(arguments) => {
                let mut text = String::new();
                arguments.cut(&mut text);
                out.arguments(&text);
            }
        }
        self.state = State::Content;
    }
}
