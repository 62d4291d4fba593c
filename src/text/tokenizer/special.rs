//! Finding special tokens in a text.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use regex::Regex;

use super::TokenizerError;

/// Special tokens of a model, and the bytes of all of them: a pattern is made of them. Gemma has 6,400.
const MAX_TOKENS: usize = 1 << 16;
const MAX_BYTES: usize = 2 << 20;

/// A piece of a text.
pub(super) enum Fragment<'a> {
    Text(&'a str),
    Token(u32),
}

/// Control tokens (read on request only) and user-defined ones (always read).
pub(super) struct SpecialTokens {
    all: Matcher,
    user_defined: Matcher,
    strips: Strips,
}

/// Tokens that take the whitespace beside them along.
#[derive(Default)]
pub(super) struct Strips {
    pub before: HashSet<u32>,
    pub after: HashSet<u32>,
}

impl Strips {
    /// A token's place with its whitespace.
    fn widened(&self, text: &str, place: Range<usize>, id: u32) -> Range<usize> {
        let (mut start, mut end) = (place.start, place.end);
        if self.before.contains(&id) {
            start = text[..start].trim_end().len();
        }
        if self.after.contains(&id) {
            end = text.len() - text[end..].trim_start().len();
        }
        start..end
    }
}

struct Matcher {
    regex: Option<Regex>,
    /// Sorted by text.
    tokens: Vec<(String, u32)>,
    /// Bytes of the longest text.
    longest: usize,
}

impl Matcher {
    fn new(mut tokens: Vec<(String, u32)>) -> Result<Self, TokenizerError> {
        tokens.retain(|(text, _)| !text.is_empty());
        let num_bytes: usize = tokens.iter().map(|(text, _)| text.len()).sum();
        if tokens.len() > MAX_TOKENS || num_bytes > MAX_BYTES {
            let message = format!("{} special tokens of {num_bytes} bytes", tokens.len());
            return Err(TokenizerError::Invalid(message));
        }
        // Alternatives are tried in order, so the longest spelling wins.
        tokens.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
        let pattern: Vec<String> = tokens.iter().map(|(text, _)| regex::escape(text)).collect();
        let regex = if tokens.is_empty() {
            None
        } else {
            let regex = regex::RegexBuilder::new(&pattern.join("|"))
                .size_limit(1 << 28)
                .build()
                .map_err(|error| TokenizerError::Invalid(error.to_string()))?;
            Some(regex)
        };
        tokens.sort();
        let longest = tokens.iter().map(|(text, _)| text.len()).max();
        Ok(Self {
            regex,
            tokens,
            longest: longest.unwrap_or(0),
        })
    }

    /// The pieces of `text` one after the other: a text of nothing but special tokens has many.
    fn split<'a>(
        &'a self,
        text: &'a str,
        strips: &'a Strips,
    ) -> impl Iterator<Item = Fragment<'a>> {
        let mut found = self
            .regex
            .iter()
            .flat_map(|regex| regex.find_iter(text))
            .filter_map(|found| Some((found.range(), self.id_of(found.as_str())?)))
            .map(|(place, id)| (strips.widened(text, place, id), id));
        let mut next = found.next();
        let mut start = 0;
        std::iter::from_fn(move || match next.take() {
            // A token before may have taken the whitespace between along.
            Some((range, id)) if range.start <= start => {
                start = range.end.max(start);
                next = found.next();
                Some(Fragment::Token(id))
            }
            Some((range, id)) => {
                let piece = &text[start..range.start];
                start = range.start;
                next = Some((range, id));
                Some(Fragment::Text(piece))
            }
            None if start < text.len() => {
                let piece = &text[start..];
                start = text.len();
                Some(Fragment::Text(piece))
            }
            None => None,
        })
    }

    /// Whether a token begins with `start` and has more.
    fn has_longer(&self, start: &str) -> bool {
        let next = self
            .tokens
            .partition_point(|(token, _)| token.as_str() <= start);
        let next = self.tokens.get(next);
        next.is_some_and(|(token, _)| token.starts_with(start))
    }

    fn id_of(&self, text: &str) -> Option<u32> {
        let at = self
            .tokens
            .binary_search_by(|(token, _)| token.as_str().cmp(text));
        at.ok().map(|at| self.tokens[at].1)
    }
}

impl SpecialTokens {
    pub(super) fn new(
        control: Vec<(String, u32)>,
        user_defined: Vec<(String, u32)>,
    ) -> Result<Self, TokenizerError> {
        let all = control
            .into_iter()
            .chain(user_defined.iter().cloned())
            .collect();
        Ok(Self {
            all: Matcher::new(all)?,
            user_defined: Matcher::new(user_defined)?,
            strips: Strips::default(),
        })
    }

    pub(super) fn with_strips(self, strips: Strips) -> Self {
        Self { strips, ..self }
    }

    pub(super) fn split<'a>(
        &'a self,
        text: &'a str,
        parse_special: bool,
    ) -> impl Iterator<Item = Fragment<'a>> {
        match parse_special {
            true => self.all.split(text, &self.strips),
            false => self.user_defined.split(text, &self.strips),
        }
    }

    /// A text in which `marker` breaks up every control token, and every end of the text that could
    /// begin one. Without the markers, it is the same text.
    pub(super) fn guard<'a>(&self, text: &'a str, marker: char) -> Cow<'a, str> {
        let mut at: Vec<usize> = Vec::new();
        let behind_first = |start: usize| {
            let first = text[start..].chars().next();
            start + first.map_or(0, char::len_utf8)
        };
        let mut start = 0;
        let regex = self.all.regex.as_ref();
        while let Some(found) = regex.and_then(|regex| regex.find_at(text, start)) {
            start = behind_first(found.start());
            if self.user_defined.id_of(found.as_str()).is_none() {
                at.push(start);
            }
        }
        let longest = self.all.longest;
        let from = text.len().saturating_sub(longest);
        let ends = (from..text.len()).filter(|start| text.is_char_boundary(*start));
        let ends = ends.filter(|start| self.all.has_longer(&text[*start..]));
        at.extend(ends.map(behind_first));
        if at.is_empty() {
            return Cow::Borrowed(text);
        }
        at.sort_unstable();
        at.dedup();
        let mut guarded = String::with_capacity(text.len() + at.len() * marker.len_utf8());
        let mut from = 0;
        for at in at {
            guarded.push_str(&text[from..at]);
            guarded.push(marker);
            from = at;
        }
        guarded.push_str(&text[from..]);
        Cow::Owned(guarded)
    }

    /// Whether composing (NFC) a text that was split already cannot make more special tokens appear.
    pub(super) fn have_only_ascii(&self) -> bool {
        let mut tokens = self.all.tokens.iter();
        tokens.all(|(token, _)| token.is_ascii())
    }
}
