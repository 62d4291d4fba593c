//! Reading GBNF.

use std::collections::HashMap;

use super::Node;
use crate::grammar::GrammarError;
use crate::grammar::limits::{MAX_GROUP_DEPTH, MAX_REPETITIONS};

/// The rules; the first is `root`.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, GrammarError> {
    let mut parser = Parser {
        rest: text,
        line: 1,
        depth: 0,
        names: Names::default(),
    };
    parser.names.index("root", 1);
    let mut rules: HashMap<usize, Node> = HashMap::new();
    parser.skip_space();
    while !parser.rest.is_empty() {
        let line = parser.line;
        let Some(name) = parser.name() else {
            return Err(parser.error(format!(
                "a rule begins with its name, not {:?}",
                parser.shown()
            )));
        };
        parser.skip_space();
        if !parser.take("::=") {
            return Err(parser.error(format!(
                "{name:?} is followed by ::=, not {:?}",
                parser.shown()
            )));
        }
        let index = parser.names.index(name, line);
        let body = parser.choice()?;
        if rules.insert(index, body).is_some() {
            return Err(at(line, format!("the rule {name:?} is defined twice")));
        }
        parser.skip_space();
    }
    let names = parser.names;
    let rules = names
        .all
        .into_iter()
        .enumerate()
        .map(|(index, (name, line))| {
            let rule = rules.remove(&index);
            rule.ok_or_else(|| at(line, format!("there is no rule {name:?}")))
        });
    rules.collect()
}

fn at(line: usize, message: impl std::fmt::Display) -> GrammarError {
    GrammarError::Invalid(format!("the grammar, line {line}: {message}"))
}

/// Names of rules by index, with the line where each was seen first.
#[derive(Default)]
struct Names {
    all: Vec<(String, usize)>,
    indexes: HashMap<String, usize>,
}

impl Names {
    fn index(&mut self, name: &str, line: usize) -> usize {
        if let Some(index) = self.indexes.get(name) {
            return *index;
        }
        self.indexes.insert(name.to_owned(), self.all.len());
        self.all.push((name.to_owned(), line));
        self.all.len() - 1
    }
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
    depth: usize,
    names: Names,
}

impl<'a> Parser<'a> {
    fn error(&self, message: impl std::fmt::Display) -> GrammarError {
        at(self.line, message)
    }

    /// The beginning of what comes next, for errors.
    fn shown(&self) -> String {
        self.rest
            .chars()
            .take_while(|c| *c != '\n')
            .take(20)
            .collect()
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.rest = &self.rest[next.len_utf8()..];
        self.line += usize::from(next == '\n');
        Some(next)
    }

    fn take(&mut self, text: &str) -> bool {
        let is_next = self.rest.starts_with(text);
        if is_next {
            self.rest = &self.rest[text.len()..];
        }
        is_next
    }

    /// White space and comments. A rule ends where the next one begins, not where its line does.
    fn skip_space(&mut self) {
        while let Some(next) = self.peek() {
            match next {
                '#' => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.rest = &self.rest[end..];
                }
                next if next.is_whitespace() => {
                    self.next();
                }
                _ => return,
            }
        }
    }

    fn name(&mut self) -> Option<&'a str> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        (!name.is_empty()).then(|| {
            self.rest = rest;
            name
        })
    }

    /// Whether a rule begins here.
    fn is_rule(&self) -> bool {
        let mut ahead = Parser {
            rest: self.rest,
            line: 1,
            depth: 0,
            names: Names::default(),
        };
        if ahead.name().is_none() {
            return false;
        }
        ahead.skip_space();
        ahead.rest.starts_with("::=")
    }

    fn choice(&mut self) -> Result<Node, GrammarError> {
        let mut options = vec![self.sequence()?];
        while self.take("|") {
            options.push(self.sequence()?);
        }
        Ok(match options.len() {
            1 => options.swap_remove(0),
            _ => Node::Choice(options),
        })
    }

    fn sequence(&mut self) -> Result<Node, GrammarError> {
        let mut nodes = Vec::new();
        loop {
            self.skip_space();
            match self.peek() {
                None | Some('|' | ')') => break,
                Some(_) if self.is_rule() => break,
                Some(_) => {
                    let node = self.atom()?;
                    nodes.push(self.repeated(node)?);
                }
            }
        }
        Ok(match nodes.len() {
            0 => Node::Text(String::new()),
            1 => nodes.swap_remove(0),
            _ => Node::Sequence(nodes),
        })
    }

    fn atom(&mut self) -> Result<Node, GrammarError> {
        match self.peek() {
            Some('"') => self.text(),
            Some('[') => self.class(),
            Some('(') => self.group(),
            Some('<') => {
                let end = self.rest.find(['>', '\n', ' ']);
                let Some(end) = end.filter(|end| self.rest[*end..].starts_with('>')) else {
                    return Err(self.error("a token has no >"));
                };
                let (token, rest) = self.rest.split_at(end + 1);
                self.rest = rest;
                Ok(Node::Token(token.to_owned()))
            }
            Some('.') => {
                self.next();
                Ok(Node::Class("(?s:.)".to_owned()))
            }
            _ => {
                let line = self.line;
                match self.name() {
                    Some(name) => Ok(Node::Rule(self.names.index(name, line))),
                    None => Err(self.error(format!("{:?} is not expected", self.shown()))),
                }
            }
        }
    }

    fn group(&mut self) -> Result<Node, GrammarError> {
        let line = self.line;
        self.next();
        self.depth += 1;
        if self.depth > MAX_GROUP_DEPTH {
            return Err(self.error(format!("groups are more than {MAX_GROUP_DEPTH} deep")));
        }
        let node = self.choice()?;
        self.depth -= 1;
        match self.take(")") {
            true => Ok(node),
            false => Err(self.error(format!("the group of line {line} is not closed"))),
        }
    }

    fn text(&mut self) -> Result<Node, GrammarError> {
        self.next();
        let mut text = String::new();
        loop {
            match self.peek() {
                Some('"') => {
                    self.next();
                    return Ok(Node::Text(text));
                }
                None | Some('\n') => return Err(self.error("a text ends without its quote")),
                Some(_) => text.push(self.character()?),
            }
        }
    }

    fn class(&mut self) -> Result<Node, GrammarError> {
        self.next();
        let is_negated = self.take("^");
        let mut ranges = String::new();
        loop {
            match self.peek() {
                Some(']') => break,
                None | Some('\n') => return Err(self.error("a class is not closed with ]")),
                Some(_) => {}
            }
            let first = self.character()?;
            let mut last = first;
            let is_range = self.rest.starts_with('-') && !self.rest.starts_with("-]");
            if is_range {
                self.next();
                if matches!(self.peek(), None | Some('\n')) {
                    return Err(self.error("a class is not closed with ]"));
                }
                last = self.character()?;
            }
            if first > last {
                return Err(self.error(format!("the range {first:?} to {last:?} is empty")));
            }
            ranges += &match is_range {
                true => format!("\\u{{{:X}}}-\\u{{{:X}}}", first as u32, last as u32),
                false => format!("\\u{{{:X}}}", first as u32),
            };
        }
        self.next();
        match (ranges.as_str(), is_negated) {
            ("", true) => Ok(Node::Class("(?s:.)".to_owned())),
            ("", false) => Err(self.error("a class is empty")),
            (ranges, true) => Ok(Node::Class(format!("[^{ranges}]"))),
            (ranges, false) => Ok(Node::Class(format!("[{ranges}]"))),
        }
    }

    /// One character, maybe behind a backslash.
    fn character(&mut self) -> Result<char, GrammarError> {
        let next = self.next().unwrap_or_default();
        if next != '\\' {
            return Ok(next);
        }
        let escape = self.next();
        let num_digits = match escape {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some(same) if "\"'\\[]/-^?.$|(){}*+".contains(same) => return Ok(same),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            _ => {
                let shown: String = escape.into_iter().collect();
                return Err(self.error(format!("\\{shown} is not an escape")));
            }
        };
        let digits = self.rest.get(..num_digits);
        let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let Some(character) = code.and_then(char::from_u32) else {
            return Err(self.error(format!(
                "an escape has {num_digits} hexadecimal digits of a character, not {:?}",
                self.shown()
            )));
        };
        self.rest = &self.rest[num_digits..];
        Ok(character)
    }

    fn repeated(&mut self, mut node: Node) -> Result<Node, GrammarError> {
        loop {
            let (least, most) = match self.peek() {
                Some('?') => (0, Some(1)),
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('{') => self.counts()?,
                _ => return Ok(node),
            };
            self.next();
            node = Node::Repeat {
                node: Box::new(node),
                least,
                most,
            };
        }
    }

    /// `{m}`, `{m,}`, `{,n}` or `{m,n}`, up to the brace.
    fn counts(&mut self) -> Result<(u64, Option<u64>), GrammarError> {
        let end = self.rest.find(['}', '\n']).unwrap_or(self.rest.len());
        let inside = &self.rest[1..end];
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let counts = match inside.split_once(',') {
            None => number(inside).map(|count| (count, Some(count))),
            Some((least, "")) => number(least).map(|least| (least, None)),
            Some(("", most)) => number(most).map(|most| (0, Some(most))),
            Some((least, most)) => number(least).zip(number(most).map(Some)),
        };
        let Some((least, most)) = counts.filter(|_| self.rest[end..].starts_with('}')) else {
            return Err(self.error(format!("{:?} is not a repetition {{m,n}}", self.shown())));
        };
        if most.is_some_and(|most| most < least) {
            return Err(self.error(format!("a repetition has less than {least} as its most")));
        }
        if most.unwrap_or(least).max(least) > MAX_REPETITIONS {
            return Err(self.error(format!("a repetition has at most {MAX_REPETITIONS}")));
        }
        self.rest = &self.rest[end..];
        Ok((least, most))
    }
}
