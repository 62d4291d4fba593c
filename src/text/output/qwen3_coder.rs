//! Qwen3-Coder's calls: `<function=NAME>` with a `<parameter=KEY>` for each argument.

use std::collections::VecDeque;

use super::json::{Arguments, Scan};
use super::marks::{Marks, Read, Tag};
use super::out::{Out, is_space};
use super::parameters::{Kind, Parameters, quoted, value_text};

const STARTS: [&str; 2] = ["<tool_call>", "<function="];
/// What stands within a function.
const INSIDE: [&str; 3] = ["<parameter=", "</function>", "</tool_call>"];
/// What ends a value, with the line break that does not belong to the value. The first two are
/// right. Models forget them.
const VALUE_ENDS: [&str; 5] = [
    "\n</parameter>",
    "</parameter>",
    "\n<parameter=",
    "\n</function>",
    "\n</tool_call>",
];

#[derive(Debug, Clone)]
enum State {
    Content,
    /// Behind `<tool_call>`.
    Opened {
        raw: String,
        tag: Tag,
    },
    Name {
        raw: String,
        name: String,
    },
    /// Within a function, between parameters.
    Function(Tag),
    Key(String),
    Value(Value),
    /// Arguments as JSON, where the model takes this for another format.
    Json(Arguments),
    /// Behind the function.
    Closing {
        raw: String,
        tag: Tag,
    },
}

#[derive(Debug, Clone)]
struct Value {
    kind: Kind,
    marks: Marks,
    /// The text of a value that is no string for sure.
    held: String,
    has_begun: bool,
}

/// Reads text with such calls.
#[derive(Debug, Clone)]
pub(super) struct Qwen3Coder {
    parameters: Parameters,
    state: State,
    marks: Marks,
    queue: VecDeque<char>,
    name: String,
    written: Written,
}

/// What was given of a call's arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Nothing,
    Parameters,
    /// All of them, as an object.
    Object,
}

impl Qwen3Coder {
    pub fn new(parameters: Parameters) -> Self {
        Self {
            parameters,
            state: State::Content,
            marks: Marks::default(),
            queue: VecDeque::new(),
            name: String::new(),
            written: Written::Nothing,
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
                self.state = match found {
                    None => return,
                    Some(0) => State::Opened {
                        raw: STARTS[0].to_owned(),
                        tag: Tag::default(),
                    },
                    Some(_) => name(STARTS[1].to_owned()),
                };
            }
            State::Opened { raw, tag } => match c {
                _ if tag.is_empty() && is_space(c) => raw.push(c),
                _ => match tag.push(&STARTS[1..], c) {
                    Read::Part => {}
                    Read::Whole(_) => self.state = name(format!("{raw}{}", STARTS[1])),
                    Read::No => {
                        out.content(raw);
                        let rest = tag.take();
                        self.replay(&rest);
                    }
                },
            },
            State::Name { raw, name } => match c {
                '>' if !name.trim().is_empty() => {
                    self.name = name.trim().trim_matches('"').to_owned();
                    self.written = Written::Nothing;
                    out.call(&self.name);
                    self.state = State::Function(Tag::default());
                }
                '>' | '<' | '\n' => {
                    out.content(&format!("{raw}{name}"));
                    self.replay(c.encode_utf8(&mut [0; 4]));
                }
                _ => name.push(c),
            },
            State::Function(_) => self.inside(c, out),
            State::Key(key) => match c {
                '>' => {
                    let key = key.trim().trim_matches('"').to_owned();
                    self.begin_value(&key, out);
                }
                _ => key.push(c),
            },
            State::Value(_) => self.value(c, out),
            State::Json(_) => self.json(c, out),
            State::Closing { raw, tag } => match c {
                _ if tag.is_empty() && is_space(c) => raw.push(c),
                _ => match tag.push(&INSIDE[2..], c) {
                    Read::Part => {}
                    Read::Whole(_) => self.state = State::Content,
                    Read::No => {
                        let rest = format!("{raw}{}", tag.take());
                        self.replay(&rest);
                    }
                },
            },
        }
    }

    fn inside(&mut self, c: char, out: &mut Out) {
        let State::Function(tag) = &mut self.state else {
            return;
        };
        match c {
            _ if tag.is_empty() && is_space(c) => {}
            '{' if tag.is_empty() && self.written == Written::Nothing => {
                self.state = State::Json(Arguments::default());
                self.queue.push_front(c);
            }
            _ => match tag.push(&INSIDE, c) {
                Read::Part => {}
                Read::Whole(0) if self.written != Written::Object => {
                    self.state = State::Key(String::new());
                }
                Read::Whole(0) => {
                    self.end(false, out);
                    self.replay(INSIDE[0]);
                }
                Read::Whole(1) => self.end(false, out),
                Read::Whole(_) => self.end(true, out),
                Read::No => {
                    let rest = tag.take();
                    self.end(false, out);
                    self.replay(&rest);
                }
            },
        }
    }

    fn begin_value(&mut self, key: &str, out: &mut Out) {
        let before = match self.written {
            Written::Nothing => "{",
            _ => ", ",
        };
        self.written = Written::Parameters;
        let kind = self.parameters.kind(&self.name, key);
        out.arguments(&format!("{before}\"{}\": ", quoted(key)));
        if kind == Kind::String {
            out.arguments("\"");
        }
        self.state = State::Value(Value {
            kind,
            marks: Marks::default(),
            held: String::new(),
            has_begun: false,
        });
    }

    fn value(&mut self, c: char, out: &mut Out) {
        let State::Value(value) = &mut self.state else {
            return;
        };
        let mut plain = String::new();
        let found = value.marks.push(&VALUE_ENDS, c, &mut plain);
        value.take(&plain, out);
        let Some(found) = found else {
            return;
        };
        match value.kind {
            Kind::String => out.arguments("\""),
            kind => out.arguments(&value_text(&value.held, kind)),
        }
        match found {
            0 | 1 => self.state = State::Function(Tag::default()),
            2 => self.state = State::Key(String::new()),
            _ => self.end(found == 4, out),
        }
    }

    fn json(&mut self, c: char, out: &mut Out) {
        let State::Json(arguments) = &mut self.state else {
            return;
        };
        let mut text = String::new();
        let is_lost = !arguments.is_in_string() && c == '<';
        let scan = match is_lost {
            true => {
                arguments.close(&mut text);
                self.queue.push_front(c);
                Scan::Last
            }
            false => arguments.step(c, &mut text),
        };
        out.arguments(&text);
        if scan == Scan::Last {
            self.written = Written::Object;
            self.state = State::Function(Tag::default());
        }
    }

    /// The function is over; `is_closed`: the mark around it, too.
    fn end(&mut self, is_closed: bool, out: &mut Out) {
        match self.written {
            Written::Nothing => out.arguments("{}"),
            Written::Object => {}
            Written::Parameters => out.arguments("}"),
        }
        self.state = match is_closed {
            true => State::Content,
            false => State::Closing {
                raw: String::new(),
                tag: Tag::default(),
            },
        };
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
            State::Opened { raw, tag } => {
                let raw = format!("{raw}{}", tag.take());
                out.content(&raw);
            }
            State::Name { raw, name } => out.content(&format!("{raw}{name}")),
            State::Function(_) | State::Key(_) | State::Closing { .. } => {}
            State::Value(value) => {
                let rest = value.marks.take();
                // Part of a mark is more likely than such a text.
                if !rest.starts_with('<') && !rest.starts_with('\n') {
                    value.take(&rest, out);
                }
                let held = value.held.trim();
                let is_json = held.starts_with(|c: char| c.is_ascii_digit() || "{[-".contains(c));
                match is_json {
                    true => out.arguments(held),
                    false if held.is_empty() => {}
                    false => out.arguments(&format!("\"{}", quoted(held))),
                }
            }
            State::Json(arguments) => {
                let mut text = String::new();
                arguments.cut(&mut text);
                out.arguments(&text);
            }
        }
        self.state = State::Content;
    }
}

impl Value {
    /// More of the value's text, without the line break before it.
    fn take(&mut self, text: &str, out: &mut Out) {
        let mut text = text;
        if !text.is_empty() && !std::mem::replace(&mut self.has_begun, true) {
            text = text.strip_prefix('\n').unwrap_or(text);
        }
        match self.kind {
            Kind::String => out.arguments(&quoted(text)),
            _ => self.held.push_str(text),
        }
    }
}

fn name(raw: String) -> State {
    let name = String::new();
    State::Name { raw, name }
}
