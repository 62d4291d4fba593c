//! Python's literals, as JSON.

use super::parameters::quoted;

/// Lists in lists.
const MAX_DEPTH: usize = 64;

/// Why a text is not read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The text ends within a literal.
    End,
    Wrong,
}

/// A whole literal as JSON.
pub(super) fn literal(text: &str) -> Option<String> {
    let mut reader = Reader::new(text);
    reader.value(0).ok()?;
    reader.space();
    reader.rest().is_empty().then_some(reader.json)
}

/// What stands between the parentheses of a call with keywords, as an object. With `is_cut` the
/// text may end anywhere, and its JSON does, too.
pub(super) fn keywords(text: &str, is_cut: bool) -> Option<String> {
    let mut reader = Reader::new(text);
    match reader.keywords() {
        Ok(()) if is_cut => Some(reader.json),
        Ok(()) => {
            let is_empty = reader.json.is_empty();
            reader.json.push_str(if is_empty { "{}" } else { "}" });
            Some(reader.json)
        }
        Err(Stop::End) if is_cut => Some(reader.json),
        Err(_) => None,
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    json: String,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            json: String::new(),
        }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    /// The next character that is no space.
    fn next(&mut self) -> Result<char, Stop> {
        self.space();
        self.peek().ok_or(Stop::End)
    }

    fn skip(&mut self, c: char) -> bool {
        let is_there = self.peek() == Some(c);
        self.at += if is_there { c.len_utf8() } else { 0 };
        is_there
    }

    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        let word = &rest[..end.unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    /// All but the last bracket.
    fn keywords(&mut self) -> Result<(), Stop> {
        let mut before = "{";
        loop {
            self.space();
            if self.rest().is_empty() {
                return Ok(());
            }
            let key = self.word();
            let first = key.chars().next().ok_or(Stop::Wrong)?;
            if first.is_numeric() {
                return Err(Stop::Wrong);
            }
            if self.next()? != '=' {
                return Err(Stop::Wrong);
            }
            self.skip('=');
            let key = quoted(key);
            self.json.push_str(&format!("{before}\"{key}\": "));
            before = ", ";
            self.value(0)?;
            self.space();
            if !self.skip(',') && !self.rest().is_empty() {
                return Err(Stop::Wrong);
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<(), Stop> {
        if depth > MAX_DEPTH {
            return Err(Stop::Wrong);
        }
        match self.next()? {
            '[' => self.list(']', depth),
            '(' => self.list(')', depth),
            '{' => self.map(depth),
            '"' | '\'' => self.strings(),
            '0'..='9' | '-' | '+' | '.' => self.number(),
            c if c.is_alphabetic() => self.named(),
            _ => Err(Stop::Wrong),
        }
    }

    fn named(&mut self) -> Result<(), Stop> {
        let start = self.at;
        let word = self.word();
        let is_quote_next = matches!(self.peek(), Some('"' | '\''));
        if is_quote_next && matches!(word, "r" | "u" | "R" | "U" | "b") {
            self.at = start;
            return self.strings();
        }
        let json = match word {
            "True" | "true" => "true",
            "False" | "false" => "false",
            "None" | "null" => "null",
            _ if self.rest().is_empty() => return Err(Stop::End),
            _ => return Err(Stop::Wrong),
        };
        self.json.push_str(json);
        Ok(())
    }

    /// A list or tuple; a value in parentheses is itself.
    fn list(&mut self, end: char, depth: usize) -> Result<(), Stop> {
        self.at += 1;
        let start = self.json.len();
        self.json.push('[');
        let mut num_items = 0;
        let mut is_tuple = end == ']';
        loop {
            if self.next()? == end {
                self.skip(end);
                break;
            }
            if num_items > 0 {
                self.json.push_str(", ");
            }
            self.value(depth + 1)?;
            num_items += 1;
            match self.next()? {
                ',' => is_tuple = self.skip(','),
                c if c == end => {}
                _ => return Err(Stop::Wrong),
            }
        }
        match is_tuple || num_items == 0 {
            true => self.json.push(']'),
            false => {
                self.json.remove(start);
            }
        }
        Ok(())
    }

    /// A dictionary, or a set, which becomes a list.
    fn map(&mut self, depth: usize) -> Result<(), Stop> {
        self.at += 1;
        let start = self.json.len();
        self.json.push('{');
        let mut is_set = false;
        let mut is_first = true;
        loop {
            if self.next()? == '}' {
                self.skip('}');
                break;
            }
            if !is_first {
                self.json.push_str(", ");
            }
            let key_start = self.json.len();
            self.value(depth + 1)?;
            match self.next()? {
                ':' if is_first || !is_set => {
                    self.skip(':');
                    let key = self.json.split_off(key_start);
                    let key = match key.starts_with(['"', '[', '{']) {
                        true => key,
                        false => format!("\"{key}\""),
                    };
                    if !key.starts_with('"') {
                        return Err(Stop::Wrong);
                    }
                    self.json.push_str(&key);
                    self.json.push_str(": ");
                    self.value(depth + 1)?;
                }
                ',' | '}' if is_first || is_set => is_set = true,
                _ => return Err(Stop::Wrong),
            }
            is_first = false;
            if !matches!(self.next()?, ',' | '}') {
                return Err(Stop::Wrong);
            }
            self.skip(',');
        }
        if is_set {
            self.json.replace_range(start..=start, "[");
        }
        self.json.push(if is_set { ']' } else { '}' });
        Ok(())
    }

    fn number(&mut self) -> Result<(), Stop> {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"+-._".contains(c));
        let text = &rest[..end.unwrap_or(rest.len())];
        self.at += text.len();
        let text = text.strip_prefix('+').unwrap_or(text).replace('_', "");
        if serde_json::from_str::<serde_json::Number>(&text).is_ok() {
            self.json.push_str(&text);
            return Ok(());
        }
        let is_decimal = text
            .chars()
            .all(|c| c.is_ascii_digit() || "+-.eE".contains(c));
        let number = text.parse::<f64>().ok().filter(|_| is_decimal);
        let number = number.and_then(serde_json::Number::from_f64);
        match number {
            Some(number) => self.json.push_str(&number.to_string()),
            None if self.rest().is_empty() => return Err(Stop::End),
            None => return Err(Stop::Wrong),
        }
        Ok(())
    }

    /// Strings beside each other are one.
    fn strings(&mut self) -> Result<(), Stop> {
        self.json.push('"');
        loop {
            let start = self.at;
            let prefix = self.word();
            let Some(quote @ ('"' | '\'')) = self.peek() else {
                self.at = start;
                break;
            };
            if !matches!(prefix, "" | "r" | "u" | "R" | "U" | "b") {
                return Err(Stop::Wrong);
            }
            self.string(quote, matches!(prefix, "r" | "R"))?;
            let end = self.at;
            self.space();
            if !matches!(self.peek(), Some('"' | '\'')) {
                self.at = end;
                break;
            }
        }
        self.json.push('"');
        Ok(())
    }

    fn string(&mut self, quote: char, is_raw: bool) -> Result<(), Stop> {
        let triple = String::from(quote).repeat(3);
        let mark = match self.rest().starts_with(&triple) {
            true => triple,
            false => String::from(quote),
        };
        self.at += mark.len();
        loop {
            let rest = self.rest();
            let plain = rest.find([quote, '\\']).unwrap_or(rest.len());
            self.json.push_str(&quoted(&rest[..plain]));
            self.at += plain;
            let rest = self.rest();
            if rest.is_empty() {
                return Err(Stop::End);
            }
            if rest.starts_with(&mark) {
                self.at += mark.len();
                return Ok(());
            }
            if self.skip(quote) {
                self.json.push_str(&quoted(quote.encode_utf8(&mut [0; 4])));
            } else if is_raw {
                let two = rest.chars().take(2).map(char::len_utf8).sum();
                self.json.push_str(&quoted(&rest[..two]));
                self.at += two;
            } else {
                self.escape()?;
            }
        }
    }

    fn escape(&mut self) -> Result<(), Stop> {
        let rest = &self.rest()[1..];
        let c = rest.chars().next().ok_or(Stop::End)?;
        let radix_16 = |num: usize| {
            let digits = rest.get(1..=num).ok_or(Stop::End)?;
            let code = u32::from_str_radix(digits, 16).map_err(|_| Stop::Wrong)?;
            Ok((code, 1 + num))
        };
        let (code, len) = match c {
            'n' => (0x0a, 1),
            't' => (0x09, 1),
            'r' => (0x0d, 1),
            'a' => (0x07, 1),
            'b' => (0x08, 1),
            'f' => (0x0c, 1),
            'v' => (0x0b, 1),
            'x' => radix_16(2)?,
            'u' => radix_16(4)?,
            'U' => radix_16(8)?,
            '\n' => {
                self.at += 2;
                return Ok(());
            }
            '\\' | '\'' | '"' => (u32::from(c), 1),
            '0'..='7' => {
                let digits = rest
                    .bytes()
                    .take(3)
                    .take_while(|b| matches!(b, b'0'..=b'7'));
                digits.fold((0, 0), |(code, len), b| {
                    (code * 8 + u32::from(b - b'0'), len + 1)
                })
            }
            _ => {
                // Python keeps the backslash.
                self.json.push_str("\\\\");
                self.at += 1;
                return Ok(());
            }
        };
        self.at += 1 + len;
        let character = self.character(code);
        self.json.push_str(&quoted(&character));
        Ok(())
    }

    /// The character of an escape; a pair of surrogates is one.
    fn character(&mut self, code: u32) -> String {
        if (0xd800..0xdc00).contains(&code) {
            let low = self
                .rest()
                .strip_prefix("\\u")
                .and_then(|rest| rest.get(..4));
            let low = low.and_then(|low| u32::from_str_radix(low, 16).ok());
            let low = low.filter(|low| (0xdc00..0xe000).contains(low));
            if let Some(low) = low {
                self.at += 6;
                let code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                return char::from_u32(code).unwrap_or('\u{fffd}').to_string();
            }
        }
        char::from_u32(code).unwrap_or('\u{fffd}').to_string()
    }
}
