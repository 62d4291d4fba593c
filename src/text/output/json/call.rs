//! One call as a JSON object: a name, arguments, and what else models write beside them.

use super::arguments::Arguments;
use super::value::{Scan, Value};
use crate::text::output::offered::Offered;
use crate::text::output::out::{Out, is_space};

/// What counts as a call.
#[derive(Debug, Clone, Default)]
pub(in crate::text::output) struct Rules {
    /// No mark stands before the call. Only an offered name counts then, with no other keys than
    /// those of calls.
    pub is_strict: bool,
    pub offered: Offered,
}

#[derive(Debug, Clone)]
enum State {
    /// A key or the end must follow.
    Key,
    InKey(String),
    Colon(Field),
    /// The name follows.
    Name(Field),
    InName(String),
    Arguments,
    Other(Value),
    /// A comma or the end must follow.
    Next,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    /// A name, or an object with the name and the arguments.
    Function,
    Arguments,
    Other,
}

/// Keys that may stand in a call without a mark.
const KEYS: [(&str, Field); 7] = [
    ("name", Field::Name),
    ("function", Field::Function),
    ("arguments", Field::Arguments),
    ("parameters", Field::Arguments),
    ("type", Field::Other),
    ("id", Field::Other),
    ("tool_call_id", Field::Other),
];

/// What a character did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    More,
    Done,
    /// The character does not belong to a call.
    Failed,
    /// The object is whole and no call.
    NoCall,
}

/// Reads an object behind its first bracket.
#[derive(Debug, Clone)]
pub(super) struct Call {
    state: State,
    /// Objects around the place inside of the call.
    depth: usize,
    name: Option<String>,
    arguments: Option<Arguments>,
    are_arguments_whole: bool,
    /// Arguments that came before it was clear that this is a call.
    held: String,
    is_told: bool,
}

impl Call {
    pub fn new() -> Self {
        Self {
            state: State::Key,
            depth: 0,
            name: None,
            arguments: None,
            are_arguments_whole: false,
            held: String::new(),
            is_told: false,
        }
    }

    /// Whether the call was given to `Out`.
    pub fn is_told(&self) -> bool {
        self.is_told
    }

    pub fn is_in_string(&self) -> bool {
        match &self.state {
            State::InKey(_) | State::InName(_) => true,
            State::Arguments => self.arguments.as_ref().is_some_and(Arguments::is_in_string),
            State::Other(value) => value.is_in_string(),
            _ => false,
        }
    }

    pub fn step(&mut self, c: char, rules: &Rules, out: &mut Out) -> Step {
        match &mut self.state {
            State::InKey(raw) => {
                let is_wrong = !push_string(raw, c)
                    || rules.is_strict && !KEYS.iter().any(|(key, _)| begins(raw, key));
                if is_wrong {
                    return Step::Failed;
                }
                if !is_whole(raw) {
                    return Step::More;
                }
                let Ok(key) = serde_json::from_str::<String>(raw) else {
                    return Step::Failed;
                };
                let field = KEYS.iter().find(|(name, _)| *name == key);
                if field.is_none() && rules.is_strict {
                    return Step::Failed;
                }
                self.state = State::Colon(field.map_or(Field::Other, |(_, field)| *field));
                Step::More
            }
            State::InName(raw) => {
                let is_wrong = !push_string(raw, c)
                    || rules.is_strict
                        && !raw.contains('\\')
                        && !rules.offered.may_begin(raw[1..].trim_end_matches('"'));
                if is_wrong {
                    return Step::Failed;
                }
                if !is_whole(raw) {
                    return Step::More;
                }
                match serde_json::from_str(raw) {
                    Ok(name) => self.named(name, rules, out),
                    Err(_) => Step::Failed,
                }
            }
            State::Arguments => self.argument(c, out),
            State::Other(value) => match value.step(c) {
                Scan::Last => {
                    self.state = State::Next;
                    Step::More
                }
                Scan::Over => {
                    self.state = State::Next;
                    self.between(c, out)
                }
                Scan::Bad => Step::Failed,
                Scan::Before | Scan::Inside => Step::More,
            },
            _ if is_space(c) => Step::More,
            _ => self.between(c, out),
        }
    }

    /// A mark says that the call is over. False when it is none.
    pub fn close(&mut self, out: &mut Out) -> bool {
        if self.name.is_none() {
            return false;
        }
        self.tell(out);
        if !self.are_arguments_whole {
            let mut text = String::new();
            self.arguments.get_or_insert_default().close(&mut text);
            out.arguments(&text);
        }
        true
    }

    /// The text ends here. False when nothing is known of a call.
    pub fn cut(&mut self, out: &mut Out) -> bool {
        if self.name.is_none() {
            return false;
        }
        self.tell(out);
        if !self.are_arguments_whole {
            let mut text = String::new();
            if let Some(arguments) = &mut self.arguments {
                arguments.cut(&mut text);
            }
            out.arguments(&text);
        }
        true
    }

    /// A character between strings and values.
    fn between(&mut self, c: char, out: &mut Out) -> Step {
        let next = match (&self.state, c) {
            (State::Key, '"') => State::InKey("\"".to_owned()),
            (State::Key | State::Next, '}') if self.depth > 0 => {
                self.depth -= 1;
                State::Next
            }
            (State::Key | State::Next, '}') => {
                return match self.close(out) {
                    true => Step::Done,
                    false => Step::NoCall,
                };
            }
            (State::Next, ',') => State::Key,
            (State::Colon(Field::Arguments), ':') if self.arguments.is_none() => {
                self.arguments = Some(Arguments::default());
                State::Arguments
            }
            (State::Colon(field @ (Field::Name | Field::Function)), ':') if self.name.is_none() => {
                State::Name(*field)
            }
            (State::Colon(_), ':') => State::Other(Value::default()),
            (State::Name(_), '"') => State::InName("\"".to_owned()),
            (State::Name(Field::Function), '{') => {
                self.depth += 1;
                State::Key
            }
            _ => return Step::Failed,
        };
        self.state = next;
        Step::More
    }

    fn named(&mut self, name: String, rules: &Rules, out: &mut Out) -> Step {
        if name.is_empty() || rules.is_strict && !rules.offered.has(&name) {
            return Step::Failed;
        }
        self.name = Some(name);
        if !rules.is_strict || self.arguments.is_some() {
            self.tell(out);
        }
        self.state = State::Next;
        Step::More
    }

    fn argument(&mut self, c: char, out: &mut Out) -> Step {
        let Some(arguments) = &mut self.arguments else {
            return Step::Failed;
        };
        let mut text = String::new();
        let scan = arguments.step(c, &mut text);
        if arguments.has_begun() && self.name.is_some() {
            self.tell(out);
        }
        match self.is_told {
            true => out.arguments(&text),
            false => self.held.push_str(&text),
        }
        match scan {
            Scan::Before | Scan::Inside => return Step::More,
            Scan::Bad => return Step::Failed,
            Scan::Last | Scan::Over => {}
        }
        self.are_arguments_whole = true;
        self.state = State::Next;
        match scan {
            Scan::Over if !is_space(c) => self.between(c, out),
            _ => Step::More,
        }
    }

    fn tell(&mut self, out: &mut Out) {
        if let (false, Some(name)) = (self.is_told, &self.name) {
            out.call(name);
            out.arguments(&std::mem::take(&mut self.held));
            self.is_told = true;
        }
    }
}

/// Adds a character to a string with its quotes; false when it may not stand there.
fn push_string(raw: &mut String, c: char) -> bool {
    raw.push(c);
    !c.is_control()
}

/// Whether a string that has begun may become `word`.
fn begins(raw: &str, word: &str) -> bool {
    let text = &raw[1..];
    word.starts_with(text) || text.strip_suffix('"') == Some(word)
}

/// Whether a string has its second quote, one that is not escaped.
fn is_whole(raw: &str) -> bool {
    match raw[1..].strip_suffix('"') {
        Some(text) => (text.len() - text.trim_end_matches('\\').len()) % 2 == 0,
        None => false,
    }
}
