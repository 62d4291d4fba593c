//! Calls as JSON: one object, several behind each other, or an array of them.

use super::call::{Call, Rules, Step};
use crate::text::output::out::{Out, is_space};

#[derive(Debug, Clone)]
enum State {
    Start,
    /// An object must follow, in an array.
    Item,
    Call(Box<Call>),
    /// A call was read.
    Next,
}

/// What a character did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::text::output) enum Took {
    More,
    /// The calls end with this character.
    Done,
    /// The calls ended before what [`CallList::take_raw`] gives.
    Over,
    /// What [`CallList::take_raw`] gives is no call.
    Failed,
}

/// Reads calls.
#[derive(Debug, Clone)]
pub(in crate::text::output) struct CallList {
    state: State,
    rules: Rules,
    is_array: bool,
    /// What was read since the last certain call.
    raw: String,
}

impl CallList {
    /// `raw`: what stands before the calls and is content if there are none.
    pub fn new(raw: String, rules: Rules) -> Self {
        Self {
            state: State::Start,
            rules,
            is_array: false,
            raw,
        }
    }

    /// What was read and is no call, or not yet.
    pub fn take_raw(&mut self) -> String {
        std::mem::take(&mut self.raw)
    }

    /// The same, but nothing while calls go on.
    pub fn take_raw_unless(&mut self, goes_on: bool) -> String {
        match goes_on {
            true => String::new(),
            false => self.take_raw(),
        }
    }

    /// Whether no mark can begin here.
    pub fn is_in_string(&self) -> bool {
        match &self.state {
            State::Call(call) => call.is_in_string(),
            _ => false,
        }
    }

    /// Takes a character. [`Took::Over`] and [`Took::Failed`] add it to what is raw.
    pub fn step(&mut self, c: char, out: &mut Out) -> Took {
        match (&mut self.state, c) {
            (State::Call(call), _) => {
                if !call.is_told() {
                    self.raw.push(c);
                }
                let step = call.step(c, &self.rules, out);
                let is_told = call.is_told();
                if is_told && step != Step::Failed {
                    self.raw.clear();
                }
                return match step {
                    Step::More => Took::More,
                    Step::Done => {
                        self.state = State::Next;
                        Took::More
                    }
                    Step::Failed if is_told => {
                        call.close(out);
                        self.raw.clear();
                        self.raw.push(c);
                        Took::Over
                    }
                    Step::Failed | Step::NoCall => Took::Failed,
                };
            }
            (State::Start | State::Item, '{') => self.state = State::Call(Box::new(Call::new())),
            (State::Next, '{') if !self.is_array => self.state = State::Call(Box::new(Call::new())),
            (State::Start, '[') => (self.state, self.is_array) = (State::Item, true),
            (State::Next, ',') if self.is_array => self.state = State::Item,
            (State::Next, ']') if self.is_array => {
                self.raw.clear();
                return Took::Done;
            }
            (State::Next, ',' | ';') => {}
            _ if is_space(c) => {}
            (State::Next, _) => {
                self.raw.push(c);
                return Took::Over;
            }
            _ => {
                self.raw.push(c);
                return Took::Failed;
            }
        }
        self.raw.push(c);
        Took::More
    }

    /// A mark says that the calls are over. False when the last thing read is no call.
    pub fn close(&mut self, out: &mut Out) -> bool {
        match &mut self.state {
            State::Call(call) => call.close(out),
            State::Next => {
                self.raw.clear();
                true
            }
            State::Item | State::Start => false,
        }
    }

    /// The text ends here, with a `held` part of a mark.
    pub fn cut(&mut self, held: &str, out: &mut Out) {
        let is_call = match &mut self.state {
            State::Call(call) => call.cut(out),
            State::Next => true,
            State::Item | State::Start => false,
        };
        if !is_call {
            out.content(&self.raw);
            out.content(held);
        }
        self.raw.clear();
    }
}
