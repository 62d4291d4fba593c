//! Calls as a list of Python: `[name(key=value), …]`.

use std::collections::VecDeque;

use super::marks::{Marks, Read, Tag};
use super::offered::Offered;
use super::out::{Out, is_space};
use super::python;

/// The first is the list's own bracket.
const STARTS: [&str; 2] = ["[", "<|python_start|>"];
const END: &str = "<|python_end|>";

#[derive(Debug, Clone)]
enum State {
    Content,
    /// Behind `<|python_start|>`.
    Opened,
    /// A name must follow.
    Name(String),
    /// Within the parentheses.
    Arguments {
        name: String,
        text: String,
        scan: Scan,
    },
    /// Behind a call.
    Next,
    /// Behind the list.
    Closing(Tag),
}

/// Finds the end of what stands in parentheses.
#[derive(Debug, Clone, Default)]
struct Scan {
    depth: usize,
    quotes: Quotes,
    is_escaped: bool,
}

#[derive(Debug, Clone, Copy, Default)]
enum Quotes {
    #[default]
    None,
    /// One quote, or two: a string, an empty one, or half of a longer mark.
    Begun(char, usize),
    /// In a string of one quote.
    One(char),
    /// In a string of three, after so many that may end the string.
    Three(char, usize),
}

impl Scan {
    /// Whether the character closes the parentheses.
    fn ends(&mut self, c: char) -> bool {
        if std::mem::take(&mut self.is_escaped) {
            return false;
        }
        let was = self.quotes;
        self.is_escaped = c == '\\' && !matches!(was, Quotes::None | Quotes::Begun(_, 2));
        self.quotes = match was {
            Quotes::Begun(quote, 1) if c == quote => Quotes::Begun(quote, 2),
            Quotes::Begun(quote, 2) if c == quote => Quotes::Three(quote, 0),
            Quotes::Begun(quote, 1) => Quotes::One(quote),
            Quotes::One(quote) if c == quote => Quotes::None,
            Quotes::Three(quote, 2) if c == quote => Quotes::None,
            Quotes::Three(quote, num) if c == quote => Quotes::Three(quote, num + 1),
            Quotes::Three(quote, _) => Quotes::Three(quote, 0),
            Quotes::One(quote) => Quotes::One(quote),
            Quotes::None | Quotes::Begun(..) => return self.outside(c),
        };
        false
    }

    fn outside(&mut self, c: char) -> bool {
        self.quotes = Quotes::None;
        match c {
            '"' | '\'' => self.quotes = Quotes::Begun(c, 1),
            '(' | '[' | '{' => self.depth += 1,
            ')' if self.depth == 0 => return true,
            ')' | ']' | '}' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        false
    }
}

/// Reads text with such calls.
#[derive(Debug, Clone)]
pub(super) struct Pythonic {
    offered: Offered,
    state: State,
    marks: Marks,
    /// What was read since the last certain call.
    raw: String,
    has_mark: bool,
    queue: VecDeque<char>,
}

impl Pythonic {
    /// Where no tools are known, every name counts at the beginning of the answer, and none later.
    pub fn new(offered: Offered) -> Self {
        Self {
            offered,
            state: State::Content,
            marks: Marks::default(),
            raw: String::new(),
            has_mark: false,
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
            State::Content => self.content(c, out),
            State::Opened if is_space(c) => self.raw.push(c),
            State::Opened if c == '[' => {
                self.raw.push(c);
                self.state = State::Name(String::new());
            }
            State::Opened => self.fail(c, out),
            State::Name(name) => match c {
                _ if name.is_empty() && is_space(c) => self.raw.push(c),
                // A comma too many.
                ']' if name.is_empty() && self.raw.trim_start().starts_with(',') => {
                    self.raw.clear();
                    self.state = State::Closing(Tag::default());
                }
                _ if c.is_alphanumeric() || "_.-".contains(c) => {
                    name.push(c);
                    self.raw.push(c);
                    let may_be = self.has_mark || self.offered.may_begin(name);
                    if !may_be {
                        self.raw.pop();
                        self.fail(c, out);
                    }
                }
                '(' if is_name(name) && (self.has_mark || self.offered.has(name)) => {
                    self.raw.push(c);
                    self.state = State::Arguments {
                        name: std::mem::take(name),
                        text: String::new(),
                        scan: Scan::default(),
                    };
                }
                _ => self.fail(c, out),
            },
            State::Arguments { name, text, scan } => {
                self.raw.push(c);
                if !scan.ends(c) {
                    text.push(c);
                    return;
                }
                match python::keywords(text, false) {
                    Some(arguments) => {
                        out.call(name);
                        out.arguments(&arguments);
                        self.raw.clear();
                        self.state = State::Next;
                    }
                    None => {
                        self.raw.pop();
                        self.fail(c, out);
                    }
                }
            }
            State::Next => match c {
                ',' => {
                    self.raw.push(c);
                    self.state = State::Name(String::new());
                }
                ']' => {
                    self.raw.clear();
                    self.state = State::Closing(Tag::default());
                }
                _ if is_space(c) => self.raw.push(c),
                _ => self.fail(c, out),
            },
            State::Closing(_) => self.closing(c),
        }
    }

    fn content(&mut self, c: char, out: &mut Out) {
        let mut plain = String::new();
        let found = self.marks.push(&STARTS, c, &mut plain);
        out.content(&plain);
        let Some(found) = found else {
            return;
        };
        let may_begin = match self.offered.is_known() {
            true => out.is_at_line_start(),
            false => out.is_at_start(),
        };
        self.has_mark = found == 1;
        match found {
            0 if !may_begin => out.content(STARTS[0]),
            0 => {
                self.raw.push_str(STARTS[0]);
                self.state = State::Name(String::new());
            }
            _ => {
                self.raw.push_str(STARTS[1]);
                self.state = State::Opened;
            }
        }
    }

    fn closing(&mut self, c: char) {
        let State::Closing(tag) = &mut self.state else {
            return;
        };
        if tag.is_empty() && is_space(c) {
            self.raw.push(c);
            return;
        }
        match tag.push(&[END], c) {
            Read::Part => {}
            Read::Whole(_) => {
                self.raw.clear();
                self.state = State::Content;
            }
            Read::No => {
                let rest = format!("{}{}", std::mem::take(&mut self.raw), tag.take());
                self.replay(&rest);
            }
        }
    }

    /// What was read is no call.
    fn fail(&mut self, c: char, out: &mut Out) {
        out.content(&std::mem::take(&mut self.raw));
        self.replay(c.encode_utf8(&mut [0; 4]));
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
        let held = self.marks.take();
        match std::mem::replace(&mut self.state, State::Content) {
            State::Content => out.content(&held),
            State::Name(_) if self.raw.trim() == "," => {}
            State::Opened | State::Name(_) => out.content(&self.raw),
            State::Arguments { name, text, .. } => match python::keywords(&text, true) {
                Some(arguments) => {
                    out.call(&name);
                    out.arguments(&arguments);
                }
                None => out.content(&self.raw),
            },
            State::Next | State::Closing(_) => {}
        }
        self.raw.clear();
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_alphabetic() || c == '_')
}
