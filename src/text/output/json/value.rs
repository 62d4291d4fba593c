//! Where a JSON value ends. The text may be wrong inside: only strings and brackets count.

use crate::text::output::out::is_space;

/// What a character is to a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::text::output) enum Scan {
    /// White space before the value.
    Before,
    Inside,
    /// The value's last character.
    Last,
    /// The value was over before this character.
    Over,
    /// No value begins so.
    Bad,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    None,
    Scalar,
    String,
    Container,
}

/// Reads one value.
#[derive(Debug, Clone, Default)]
pub(super) struct Value {
    kind: Kind,
    is_in_string: bool,
    is_escaped: bool,
    /// The brackets that close what is open.
    closers: Vec<char>,
}

impl Value {
    pub fn step(&mut self, c: char) -> Scan {
        match self.kind {
            Kind::None => self.begin(c),
            Kind::Scalar if c.is_alphanumeric() || matches!(c, '+' | '-' | '.') => Scan::Inside,
            Kind::Scalar => Scan::Over,
            Kind::String | Kind::Container if self.is_in_string => self.string(c),
            Kind::String | Kind::Container => self.container(c),
        }
    }

    /// Whether what follows is the text of a string.
    pub fn is_in_string(&self) -> bool {
        self.is_in_string
    }

    /// The brackets that are missing at the end.
    pub fn missing(&self) -> String {
        self.closers.iter().rev().collect()
    }

    fn begin(&mut self, c: char) -> Scan {
        self.kind = match c {
            _ if is_space(c) => return Scan::Before,
            '{' | '[' => Kind::Container,
            '"' => Kind::String,
            _ if c.is_ascii_alphanumeric() || c == '-' => Kind::Scalar,
            _ => return Scan::Bad,
        };
        if self.kind != Kind::Scalar {
            self.container(c);
        }
        Scan::Inside
    }

    fn string(&mut self, c: char) -> Scan {
        match c {
            _ if self.is_escaped => self.is_escaped = false,
            '\\' => self.is_escaped = true,
            '"' => {
                self.is_in_string = false;
                if self.closers.is_empty() {
                    return Scan::Last;
                }
            }
            _ => {}
        }
        Scan::Inside
    }

    fn container(&mut self, c: char) -> Scan {
        match c {
            '"' => self.is_in_string = true,
            '{' => self.closers.push('}'),
            '[' => self.closers.push(']'),
            '}' | ']' => {
                self.closers.pop();
                if self.closers.is_empty() {
                    return Scan::Last;
                }
            }
            _ => {}
        }
        Scan::Inside
    }
}
