//! Calls as JSON between marks (Hermes), behind one (Llama 3), or without any.

use std::collections::VecDeque;

use super::json::{CallList, Rules, Took};
use super::marks::{Marks, Read, Tag};
use super::offered::Offered;
use super::out::{Out, is_space};

/// A mark before calls and the one behind them.
#[derive(Debug, Clone, Copy)]
struct Opener {
    start: &'static str,
    /// Empty where nothing closes the calls.
    end: &'static str,
    /// Models write the mark only for calls: whatever name follows is a call.
    is_sure: bool,
}

const fn sure(start: &'static str, end: &'static str) -> Opener {
    Opener {
        start,
        end,
        is_sure: true,
    }
}

const fn loose(start: &'static str, end: &'static str) -> Opener {
    Opener {
        start,
        end,
        is_sure: false,
    }
}

/// The first is Hermes' own. Small models write the others, too.
const HERMES: [Opener; 9] = [
    sure("<tool_call>", "</tool_call>"),
    loose("<tool_calls>", "</tool_calls>"),
    loose("<tools>", "</tools>"),
    loose("<tool>", "</tool>"),
    loose("<function_call>", "</function_call>"),
    loose("<function>", "</function>"),
    loose("<response>", "</response>"),
    loose("<json>", "</json>"),
    loose("<xml>", "</xml>"),
];
const LLAMA: [Opener; 1] = [sure("<|python_tag|>", "")];
const FENCE: &str = "```";
/// Letters of the language behind a fence.
const MAX_LANGUAGE: usize = 16;

#[derive(Debug, Clone)]
enum State {
    Content,
    /// Behind a fence that may hold a call.
    Fence {
        raw: String,
        tag: Tag,
    },
    Calls(Box<Calls>),
    /// Behind calls, before the marks that close them.
    Closing(Closing),
}

#[derive(Debug, Clone)]
struct Calls {
    list: CallList,
    /// Of what may close the calls.
    marks: Marks,
    end: &'static str,
    is_fenced: bool,
}

#[derive(Debug, Clone)]
struct Closing {
    raw: String,
    tag: Tag,
    end: &'static str,
    is_fenced: bool,
}

/// Reads text with such calls.
#[derive(Debug, Clone)]
pub(super) struct JsonCalls {
    openers: Vec<Opener>,
    /// Starts of `openers`, and what may stand before a call without a mark.
    starts: Vec<&'static str>,
    offered: Offered,
    state: State,
    marks: Marks,
    /// Whether the content is within a fence.
    is_in_code: bool,
    queue: VecDeque<char>,
}

impl JsonCalls {
    /// `<tool_call>{…}</tool_call>`. Where the tools are known, their calls count without marks,
    /// too, and in fences.
    pub fn hermes(offered: Offered) -> Self {
        let has_bare = offered.is_known();
        let openers = HERMES
            .into_iter()
            .filter(|opener| opener.is_sure || has_bare);
        Self::new(openers.collect(), has_bare, offered)
    }

    /// `{…}`, or behind `<|python_tag|>`. Where no tools are known, every name counts at the
    /// beginning of the answer, and none later.
    pub fn llama(offered: Offered) -> Self {
        Self::new(LLAMA.to_vec(), true, offered)
    }

    fn new(openers: Vec<Opener>, has_bare: bool, offered: Offered) -> Self {
        let mut starts: Vec<&str> = openers.iter().map(|opener| opener.start).collect();
        if has_bare {
            starts.extend(["{", "["]);
        }
        if has_bare && offered.is_known() {
            starts.push(FENCE);
        }
        Self {
            openers,
            starts,
            offered,
            state: State::Content,
            marks: Marks::default(),
            is_in_code: false,
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
            State::Fence { .. } => self.fence(c, out),
            State::Calls(_) => self.call(c, out),
            State::Closing(_) => self.closing(c),
        }
    }

    fn content(&mut self, c: char, out: &mut Out) {
        let mut plain = String::new();
        let found = self.marks.push(&self.starts, c, &mut plain);
        out.content(&plain);
        let Some(found) = found else {
            return;
        };
        let start = self.starts[found];
        if let Some(opener) = self.openers.get(found) {
            self.open(start.to_owned(), Some(*opener), false);
        } else if self.is_in_code {
            self.is_in_code = start != FENCE;
            out.content(start);
        } else if start == FENCE {
            let (raw, tag) = (FENCE.to_owned(), Tag::default());
            self.state = State::Fence { raw, tag };
        } else if self.offered.is_known() || out.is_at_start() {
            self.open(String::new(), None, false);
            self.queue.push_front(c);
        } else {
            out.content(start);
        }
    }

    /// Begins to read calls behind `raw`.
    fn open(&mut self, raw: String, opener: Option<Opener>, is_fenced: bool) {
        let rules = Rules {
            is_strict: opener.is_none_or(|opener| !opener.is_sure),
            offered: self.offered.clone(),
        };
        self.state = State::Calls(Box::new(Calls {
            list: CallList::new(raw, rules),
            marks: Marks::default(),
            end: opener.unwrap_or(self.openers[0]).end,
            is_fenced,
        }));
    }

    fn fence(&mut self, c: char, out: &mut Out) {
        let State::Fence { raw, tag } = &mut self.state else {
            return;
        };
        let is_first_line = raw.len() < FENCE.len() + MAX_LANGUAGE && !raw.ends_with(is_space);
        if tag.is_empty() && (is_space(c) || is_first_line && (c.is_alphanumeric() || c == '_')) {
            raw.push(c);
            return;
        }
        let mut raw = std::mem::take(raw);
        if tag.is_empty() && matches!(c, '{' | '[') {
            self.open(raw, None, true);
            self.queue.push_front(c);
            return;
        }
        let starts: Vec<&str> = self.openers.iter().map(|opener| opener.start).collect();
        match tag.push(&starts, c) {
            Read::Whole(found) => {
                raw.push_str(starts[found]);
                let opener = self.openers[found];
                self.open(raw, Some(opener), true);
            }
            Read::Part => {
                let tag = std::mem::take(tag);
                self.state = State::Fence { raw, tag };
            }
            Read::No => {
                out.content(&raw);
                self.is_in_code = true;
                let rest = tag.take();
                self.replay(&rest);
            }
        }
    }

    fn call(&mut self, c: char, out: &mut Out) {
        let State::Calls(calls) = &mut self.state else {
            return;
        };
        let mut plain = String::new();
        let may_end = !calls.end.is_empty() && !calls.list.is_in_string();
        let end: &[&str] = if may_end { &[calls.end] } else { &[] };
        let is_ended = calls.marks.push(end, c, &mut plain).is_some();
        let mut plain = plain.chars();
        while let Some(c) = plain.next() {
            let took = calls.list.step(c, out);
            if took == Took::More {
                continue;
            }
            let rest = format!("{}{}", plain.as_str(), calls.marks.take());
            return self.leave(took, &rest, out);
        }
        if !is_ended {
            return;
        }
        let is_fenced = calls.is_fenced;
        match calls.list.close(out) {
            true => self.close("", is_fenced),
            false => {
                let raw = format!("{}{}", calls.list.take_raw(), calls.end);
                out.content(&raw);
                self.is_in_code |= is_fenced;
                self.state = State::Content;
            }
        }
    }

    /// Behind the calls, or what looked like calls. `rest` comes after what the list has read.
    fn leave(&mut self, took: Took, rest: &str, out: &mut Out) {
        let State::Calls(calls) = &mut self.state else {
            return;
        };
        let (raw, end, is_fenced) = (calls.list.take_raw(), calls.end, calls.is_fenced);
        match took {
            Took::More => {}
            Took::Done | Took::Over => {
                self.close(end, is_fenced);
                for c in raw.chars().chain(rest.chars()).rev() {
                    self.queue.push_front(c);
                }
            }
            Took::Failed => {
                // The last character may begin something else; `[{` and `{{` do.
                let last = raw.chars().next_back().filter(|_| raw.len() > 1);
                let kept = raw.len() - last.map_or(0, char::len_utf8);
                out.content(&raw[..kept]);
                self.is_in_code |= is_fenced;
                let rest: String = last.into_iter().chain(rest.chars()).collect();
                self.replay(&rest);
            }
        }
    }

    fn close(&mut self, end: &'static str, is_fenced: bool) {
        self.state = State::Closing(Closing {
            raw: String::new(),
            tag: Tag::default(),
            end,
            is_fenced,
        });
    }

    fn closing(&mut self, c: char) {
        let State::Closing(closing) = &mut self.state else {
            return;
        };
        if closing.tag.is_empty() && (is_space(c) || c == '}') {
            closing.raw.push(c);
            return;
        }
        let fence = if closing.is_fenced { FENCE } else { "" };
        let marks = [closing.end, fence].map(|mark| if mark.is_empty() { "\0" } else { mark });
        match closing.tag.push(&marks, c) {
            Read::Part => {}
            Read::Whole(0) => {
                closing.raw.clear();
                closing.end = "";
            }
            Read::Whole(_) => self.state = State::Content,
            Read::No => {
                let rest = format!("{}{}", closing.raw, closing.tag.take());
                // A fence that is not closed here is closed later.
                self.is_in_code |= closing.is_fenced;
                self.replay(&rest);
            }
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
            State::Fence { raw, tag } => {
                let raw = format!("{raw}{}", tag.take());
                out.content(&raw);
            }
            // Part of a closing mark, and brackets too many.
            State::Closing(_) => {}
            State::Calls(calls) => {
                let held = calls.marks.take();
                calls.list.cut(&held, out);
            }
        }
        self.state = State::Content;
    }
}
