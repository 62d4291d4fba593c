//! gpt-oss' messages ("harmony"): each has a header, which names a channel and perhaps a tool, and
//! a body. An answer is one or several of them.
//!
//! Source: <https://developers.openai.com/cookbook/articles/openai-harmony>.

use std::collections::VecDeque;

use super::json::{Arguments, Scan};
use super::marks::{Marks, Read, Tag};
use super::out::{Out, is_space};

/// The special tokens of a message.
pub(super) const MARKS: [&str; 7] = [
    START,
    CHANNEL,
    "<|constrain|>",
    MESSAGE,
    END,
    "<|call|>",
    "<|return|>",
];
pub(super) const END: &str = "<|end|>";
/// Begins a thought.
pub(super) const THOUGHT: &str = "<|channel|>analysis<|message|>";
/// Begins what is for the user.
pub(super) const ANSWER: &str = "<|channel|>final<|message|>";
/// Begins another message of the model's.
pub(super) const NEXT: &str = "<|start|>assistant";
/// What only a call has.
pub(super) const CALL: &str = "to=functions.";
const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
/// What a header names the tool behind.
const RECIPIENT: &str = "to=";
/// What the names of the request's tools begin with in a header.
const TOOLS: &str = "functions.";
/// What a header may begin with. The prompt holds the role of the first message, so that its header
/// begins behind it.
const HEADERS: [&str; 3] = [START, CHANNEL, RECIPIENT];
/// What is behind a body, the last two where the model forgot the end.
const BEHIND_BODY: [&str; 5] = [END, "<|call|>", "<|return|>", START, CHANNEL];
/// Bytes of a header.
const MAX_HEADER: usize = 1024;
/// Between two messages that become one text.
const BREAK: &str = "\n\n";

#[derive(Debug, Clone)]
enum State {
    /// Before a header: white space, and the beginning of a mark.
    Between {
        space: String,
        tag: Tag,
    },
    Header {
        raw: String,
        marks: Marks,
    },
    Thought(Marks),
    Content(Marks),
    /// Before the arguments of a call.
    Called(Tag),
    Arguments(Arguments),
    /// Arguments that are no JSON, as they stand.
    Text(Marks),
    /// Behind the arguments.
    Tail(Tag),
}

/// Reads text of such messages. Text outside of messages is content.
#[derive(Debug, Clone)]
pub(super) struct Harmony {
    state: State,
    /// What is thought is told as such; otherwise it is content.
    tells_thoughts: bool,
    /// Messages to tools are calls; otherwise their text is content.
    reads_calls: bool,
    /// White space of a thought that may be its end.
    space: String,
    /// Whether the thought has no text yet.
    is_empty: bool,
    has_thought: bool,
    has_content: bool,
    queue: VecDeque<char>,
}

impl Harmony {
    /// `is_thinking`: the prompt's end has opened a thought.
    pub fn new(tells_thoughts: bool, reads_calls: bool, is_thinking: bool) -> Self {
        let state = match is_thinking {
            true => State::Thought(Marks::default()),
            false => between(),
        };
        Self {
            state,
            tells_thoughts,
            reads_calls,
            space: String::new(),
            is_empty: true,
            has_thought: false,
            has_content: false,
            queue: VecDeque::new(),
        }
    }

    /// Whether the text so far ends inside a thought.
    pub fn is_thinking(&self) -> bool {
        matches!(self.state, State::Thought(_))
    }

    pub fn push(&mut self, text: &str, out: &mut Out) {
        self.queue.extend(text.chars());
        while let Some(c) = self.queue.pop_front() {
            self.step(c, out);
        }
    }

    fn step(&mut self, c: char, out: &mut Out) {
        match &mut self.state {
            State::Between { .. } => self.between(c, out),
            State::Header { .. } => self.header(c, out),
            State::Thought(marks) | State::Content(marks) | State::Text(marks) => {
                let mut plain = String::new();
                let found = marks.push(&BEHIND_BODY, c, &mut plain);
                self.body(&plain, out);
                if let Some(found) = found {
                    self.end_body(out);
                    self.behind_body(BEHIND_BODY[found]);
                }
            }
            State::Called(tag) if tag.is_empty() && is_space(c) => {}
            State::Called(tag) => match tag.push(&BEHIND_BODY, c) {
                Read::Part => {}
                Read::Whole(found) => {
                    out.arguments("{}");
                    self.behind_body(BEHIND_BODY[found]);
                }
                Read::No => {
                    let rest = tag.take();
                    self.state = match rest.starts_with('{') {
                        true => State::Arguments(Arguments::default()),
                        false => State::Text(Marks::default()),
                    };
                    self.replay(&rest);
                }
            },
            State::Arguments(arguments) => {
                let mut text = String::new();
                // Outside of strings this begins the mark behind the call: a bracket was lost.
                let is_mark = c == '<' && !arguments.is_in_string();
                let is_over = is_mark || arguments.step(c, &mut text) == Scan::Last;
                if is_mark {
                    arguments.close(&mut text);
                    self.queue.push_front(c);
                }
                out.arguments(&text);
                if is_over {
                    self.state = State::Tail(Tag::default());
                }
            }
            State::Tail(tag) if tag.is_empty() && (is_space(c) || c == '}') => {}
            State::Tail(tag) => match tag.push(&BEHIND_BODY, c) {
                Read::Part => {}
                Read::Whole(found) => self.behind_body(BEHIND_BODY[found]),
                Read::No => {
                    let rest = tag.take();
                    self.begin_content(out);
                    self.replay(&rest);
                }
            },
        }
    }

    fn between(&mut self, c: char, out: &mut Out) {
        let State::Between { space, tag } = &mut self.state else {
            return;
        };
        if tag.is_empty() && is_space(c) {
            space.push(c);
            return;
        }
        match tag.push(&HEADERS, c) {
            Read::Part => {}
            Read::Whole(found) => {
                let raw = format!("{space}{}", HEADERS[found]);
                self.state = header(raw);
            }
            Read::No => {
                let rest = format!("{space}{}", tag.take());
                self.begin_content(out);
                self.replay(&rest);
            }
        }
    }

    fn header(&mut self, c: char, out: &mut Out) {
        let State::Header { raw, marks } = &mut self.state else {
            return;
        };
        let is_whole = marks.push(&[MESSAGE], c, raw).is_some();
        if !is_whole && c != '\n' && raw.len() <= MAX_HEADER {
            return;
        }
        let (raw, rest) = (std::mem::take(raw), marks.take());
        if !is_whole {
            self.begin_content(out);
            out.content(&raw);
            return self.replay(&rest);
        }
        match recipient(&raw) {
            Some(name) if self.reads_calls => {
                out.call(name);
                self.state = State::Called(Tag::default());
            }
            None if self.tells_thoughts && channel(&raw) == "analysis" => {
                self.space = if self.has_thought { BREAK } else { "" }.to_owned();
                self.is_empty = true;
                self.state = State::Thought(Marks::default());
            }
            _ => self.begin_content(out),
        }
    }

    fn begin_content(&mut self, out: &mut Out) {
        if std::mem::replace(&mut self.has_content, true) {
            out.content(BREAK);
        }
        self.state = State::Content(Marks::default());
    }

    /// More of a body.
    fn body(&mut self, text: &str, out: &mut Out) {
        match &self.state {
            State::Thought(_) => self.think(text, out),
            State::Text(_) => out.arguments(text),
            _ => out.content(text),
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
                    (self.is_empty, self.has_thought) = (false, true);
                }
            }
        }
    }

    fn end_body(&mut self, out: &mut Out) {
        if self.is_thinking() {
            self.space.clear();
            out.end_of_thought();
        }
    }

    fn behind_body(&mut self, mark: &str) {
        self.state = match mark {
            START | CHANNEL => header(mark.to_owned()),
            _ => between(),
        };
    }

    /// Reads again.
    fn replay(&mut self, text: &str) {
        for c in text.chars().rev() {
            self.queue.push_front(c);
        }
    }

    /// The text ends here.
    pub fn finish(&mut self, out: &mut Out) {
        match std::mem::replace(&mut self.state, between()) {
            State::Between { space, mut tag } => out.content(&format!("{space}{}", tag.take())),
            // Of a message that is cut before its text, nothing was said.
            State::Header { raw, .. } if is_marked(&raw) => {}
            State::Header { raw, mut marks } => {
                self.begin_content(out);
                out.content(&format!("{raw}{}", marks.take()));
            }
            State::Thought(mut marks) => self.think(&marks.take(), out),
            State::Content(mut marks) => out.content(&marks.take()),
            State::Called(mut tag) if !tag.is_empty() => out.arguments(&tag.take()),
            State::Called(_) => out.arguments("{}"),
            State::Arguments(mut arguments) => {
                let mut text = String::new();
                arguments.cut(&mut text);
                out.arguments(&text);
            }
            State::Text(mut marks) => out.arguments(&marks.take()),
            State::Tail(_) => {}
        }
    }
}

fn between() -> State {
    State::Between {
        space: String::new(),
        tag: Tag::default(),
    }
}

fn header(raw: String) -> State {
    State::Header {
        raw,
        marks: Marks::default(),
    }
}

/// Whether a header begins with a mark, and is not just a text that looks like one.
fn is_marked(header: &str) -> bool {
    let header = header.trim_start_matches(is_space);
    header.starts_with(START) || header.starts_with(CHANNEL)
}

/// The name of the tool that a message is for.
fn recipient(header: &str) -> Option<&str> {
    let (_, rest) = header.split_once(RECIPIENT)?;
    let end = rest.find(|c: char| is_space(c) || c == '<');
    let name = &rest[..end.unwrap_or(rest.len())];
    let name = name.strip_prefix(TOOLS).unwrap_or(name);
    (!name.is_empty()).then_some(name)
}

fn channel(header: &str) -> &str {
    let Some((_, rest)) = header.split_once(CHANNEL) else {
        return "";
    };
    let end = rest.find(|c: char| !c.is_alphanumeric());
    &rest[..end.unwrap_or(rest.len())]
}
