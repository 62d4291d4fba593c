//! Bounds on the digits of numbers in JSON.
//!
//! JSON has no longest number, so a model that repeats itself may write digits until its budget is
//! spent. A number has at most [`MAX_DIGITS`] digits in a row, and its exponent at most
//! [`MAX_EXPONENT_DIGITS`]. Digits inside of strings are not counted.

use super::limits::{MAX_DIGITS, MAX_EXPONENT_DIGITS};

/// Where a text has JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NumberScope {
    /// Nowhere.
    None,
    Whole,
    /// Behind one of `begins`, up to one of `ends`.
    Between {
        begins: Vec<Vec<u8>>,
        ends: Vec<Vec<u8>>,
    },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    /// Text that is no JSON.
    #[default]
    Free,
    Json,
    String,
    /// Behind a backslash in a string.
    Escape,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct State {
    mode: Mode,
    /// Digits just before here.
    num_digits: usize,
    /// Those are of an exponent.
    is_exponent: bool,
}

/// Follows a text token by token.
#[derive(Debug, Clone)]
pub(super) struct NumberLimit {
    scope: std::sync::Arc<NumberScope>,
    /// The last bytes of the text: as many as a mark may have.
    tail: Vec<u8>,
    max_mark: usize,
    now: State,
    /// Before each accepted token: the state, and what the tail was.
    before: Vec<(State, Vec<u8>)>,
}

impl NumberLimit {
    pub(super) fn new(scope: std::sync::Arc<NumberScope>) -> Self {
        let max_mark = match &*scope {
            NumberScope::Between { begins, ends } => {
                let lengths = begins.iter().chain(ends).map(Vec::len);
                lengths.max().unwrap_or(0)
            }
            _ => 0,
        };
        let mode = match &*scope {
            NumberScope::Whole => Mode::Json,
            _ => Mode::Free,
        };
        Self {
            scope,
            tail: Vec::new(),
            max_mark,
            now: State {
                mode,
                ..State::default()
            },
            before: Vec::new(),
        }
    }

    /// How many more digits may come now; none is a number that may not grow.
    pub(super) fn room(&self) -> Option<usize> {
        match self.now.mode {
            Mode::Json => Some(max_digits(self.now).saturating_sub(self.now.num_digits)),
            _ => None,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.before.push((self.now, self.tail.clone()));
        for byte in bytes {
            self.step(*byte);
        }
    }

    pub(super) fn rollback(&mut self, num_tokens: usize) {
        let len = self.before.len().saturating_sub(num_tokens);
        if let Some((state, tail)) = self.before.drain(len..).next() {
            self.now = state;
            self.tail = tail;
        }
    }

    fn step(&mut self, byte: u8) {
        let State {
            mode,
            num_digits,
            is_exponent,
        } = self.now;
        let mode = match (mode, byte) {
            (Mode::Json, b'"') => Mode::String,
            (Mode::String, b'"') => Mode::Json,
            (Mode::String, b'\\') => Mode::Escape,
            (Mode::Escape, _) => Mode::String,
            (mode, _) => mode,
        };
        self.now = match byte {
            b'0'..=b'9' => State {
                mode,
                num_digits: num_digits + 1,
                is_exponent,
            },
            b'e' | b'E' => State {
                mode,
                num_digits: 0,
                is_exponent: true,
            },
            // The sign of an exponent.
            b'+' | b'-' if num_digits == 0 => State {
                mode,
                num_digits: 0,
                is_exponent,
            },
            _ => State {
                mode,
                ..State::default()
            },
        };
        self.find_mark(byte);
    }

    fn find_mark(&mut self, byte: u8) {
        let NumberScope::Between { begins, ends } = &*self.scope else {
            return;
        };
        self.tail.push(byte);
        let is_at = |mark: &Vec<u8>| self.tail.ends_with(mark);
        let mode = match self.now.mode {
            Mode::Free if begins.iter().any(is_at) => Some(Mode::Json),
            // A mark inside of a string is text.
            Mode::Json if ends.iter().any(is_at) => Some(Mode::Free),
            _ => None,
        };
        if let Some(mode) = mode {
            self.now = State {
                mode,
                ..State::default()
            };
        }
        if self.tail.len() > 2 * self.max_mark {
            self.tail.drain(..self.tail.len() - self.max_mark);
        }
    }
}

fn max_digits(state: State) -> usize {
    match state.is_exponent {
        true => MAX_EXPONENT_DIGITS,
        false => MAX_DIGITS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(scope: NumberScope, text: &str) -> Option<usize> {
        let mut limit = NumberLimit::new(scope.into());
        for byte in text.as_bytes() {
            limit.push(&[*byte]);
        }
        let room = limit.room();
        limit.rollback(text.len());
        let mut whole = NumberLimit::new(limit.scope.clone());
        assert_eq!(limit.now, whole.now, "rolled back");
        whole.push(text.as_bytes());
        assert_eq!(whole.room(), room, "tokens do not matter");
        room
    }

    #[test]
    fn digits_count_outside_of_strings() {
        let json = |text| after(NumberScope::Whole, text);
        assert_eq!(json("[123"), Some(MAX_DIGITS - 3));
        assert_eq!(json("[123."), Some(MAX_DIGITS));
        assert_eq!(json("[1e"), Some(MAX_EXPONENT_DIGITS));
        assert_eq!(json("[1E-1"), Some(MAX_EXPONENT_DIGITS - 1));
        assert_eq!(json("[1e1, -7"), Some(MAX_DIGITS - 1));
        assert_eq!(json(r#"["\"12"#), None);
        assert_eq!(json(r#"["\\", 12"#), Some(MAX_DIGITS - 2));
        // Words with an e are no exponents for the numbers after them.
        assert_eq!(json("[true, 1"), Some(MAX_DIGITS - 1));
    }

    #[test]
    fn free_text_has_as_many_digits_as_it_likes() {
        let scope = || NumberScope::Between {
            begins: vec![b"<call>".to_vec()],
            ends: vec![b"</call>".to_vec()],
        };
        assert_eq!(after(scope(), "pi is 3.14159"), None);
        assert_eq!(after(scope(), "<call>{\"a\": 12"), Some(MAX_DIGITS - 2));
        assert_eq!(after(scope(), "<call>{\"a\": \"</call>12"), None);
        assert_eq!(after(scope(), "<call>{\"a\": 1}</call>123"), None);
        assert_eq!(
            after(scope(), "<call>1</call><call>2"),
            Some(MAX_DIGITS - 1)
        );
    }
}
