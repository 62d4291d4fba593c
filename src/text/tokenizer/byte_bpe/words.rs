//! The pre-tokenisers of byte-level vocabularies, by hand: in one pass, without a stack, and word
//! after word.
//!
//! A regex engine that backtracks keeps a place for each character of a run, and gives up (the
//! `onig` crate: panics) after ten million steps.

use super::classes::{LETTER, NUMBER, OTHER, SPACE, class_of};

pub(in super::super) const GPT2_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
pub(in super::super) const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(in super::super) const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Which words a text has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Pattern {
    /// [`GPT2_PATTERN`]
    Gpt2,
    /// [`LLAMA3_PATTERN`]
    Llama3,
    /// [`QWEN2_PATTERN`]
    Qwen2,
    /// The whole text is a word.
    Whole,
}

impl Pattern {
    /// The pattern whose source this is.
    pub(in super::super) fn of_source(source: &str) -> Option<Self> {
        match source {
            GPT2_PATTERN => Some(Self::Gpt2),
            LLAMA3_PATTERN => Some(Self::Llama3),
            QWEN2_PATTERN => Some(Self::Qwen2),
            _ => None,
        }
    }
}

/// Characters that are words of their own before the pattern is applied to what is between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Isolated {
    Nothing,
    /// `\p{N}`
    Numbers,
    /// What the standard library calls numeric, as `Digits` of the `tokenizers` crate does.
    Numeric,
}

impl Isolated {
    fn has(self, character: char) -> bool {
        match self {
            Self::Nothing => false,
            Self::Numbers => class_of(character) == NUMBER,
            Self::Numeric => character.is_numeric(),
        }
    }
}

/// The words of a text, one after the other. Each step looks at the characters of its word, and twice at most at
/// those of the whitespace behind it.
pub(super) struct Words<'a> {
    pattern: Pattern,
    isolated: Isolated,
    rest: &'a str,
    /// Bytes of `rest` before the next isolated character; the pattern sees no further.
    segment_len: usize,
}

impl<'a> Words<'a> {
    pub(super) fn new(pattern: Pattern, isolated: Isolated, text: &'a str) -> Self {
        Self {
            pattern,
            isolated,
            rest: text,
            segment_len: 0,
        }
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let first = self.rest.chars().next()?;
        if self.segment_len == 0 {
            self.segment_len = match self.isolated {
                Isolated::Nothing => self.rest.len(),
                isolated => self
                    .rest
                    .find(|character| isolated.has(character))
                    .unwrap_or(self.rest.len()),
            };
        }
        let len = match self.segment_len {
            0 => first.len_utf8(),
            segment if self.pattern == Pattern::Whole => segment,
            segment => word_len(self.pattern, first, &self.rest[..segment]),
        };
        let (word, rest) = self.rest.split_at(len);
        self.segment_len = self.segment_len.saturating_sub(len);
        self.rest = rest;
        Some(word)
    }
}

/// Bytes of the first word of `text`, whose first character is `first`.
fn word_len(pattern: Pattern, first: char, text: &str) -> usize {
    let is_gpt2 = pattern == Pattern::Gpt2;
    if let Some(len) = contraction_len(text, !is_gpt2) {
        return len;
    }
    let after = &text[first.len_utf8()..];
    let second = after.chars().next().map_or(SPACE, class_of);
    let with_first = |len: usize| first.len_utf8() + len;
    match class_of(first) {
        LETTER => with_first(run_len(after, LETTER)),
        // Words of letters take one character before them: a space, or any but a line break and a number.
        OTHER if !is_gpt2 && second == LETTER => with_first(run_len(after, LETTER)),
        SPACE if second == LETTER && takes_letters(is_gpt2, first) => {
            with_first(run_len(after, LETTER))
        }
        NUMBER => match pattern {
            Pattern::Gpt2 => with_first(run_len(after, NUMBER)),
            Pattern::Qwen2 | Pattern::Whole => first.len_utf8(),
            Pattern::Llama3 => text
                .chars()
                .take(3)
                .take_while(|character| class_of(*character) == NUMBER)
                .map(char::len_utf8)
                .sum(),
        },
        SPACE if first == ' ' && second == NUMBER && is_gpt2 => with_first(run_len(after, NUMBER)),
        OTHER => symbols_len(is_gpt2, text, 0),
        SPACE if first == ' ' && second == OTHER => symbols_len(is_gpt2, text, 1),
        _ => whitespace_len(is_gpt2, text),
    }
}

fn takes_letters(is_gpt2: bool, space: char) -> bool {
    match is_gpt2 {
        true => space == ' ',
        false => !matches!(space, '\r' | '\n'),
    }
}

/// Bytes of the characters of one class that `text` begins with.
fn run_len(text: &str, class: u8) -> usize {
    text.find(|character| class_of(character) != class)
        .unwrap_or(text.len())
}

/// Symbols from byte `at` on, and for all but GPT-2 the line breaks after them.
fn symbols_len(is_gpt2: bool, text: &str, at: usize) -> usize {
    let end = at + run_len(&text[at..], OTHER);
    match is_gpt2 {
        true => end,
        false => {
            let after = &text[end..];
            end + (after.len() - after.trim_start_matches(['\r', '\n']).len())
        }
    }
}

/// Whitespace up to its last line break (not for GPT-2), or else all of it but the last character, which
/// belongs to what follows if something follows.
fn whitespace_len(is_gpt2: bool, text: &str) -> usize {
    let run = &text[..run_len(text, SPACE)];
    if !is_gpt2 && let Some(line_break) = run.rfind(['\r', '\n']) {
        return line_break + 1;
    }
    if run.len() == text.len() {
        return run.len();
    }
    match run.char_indices().next_back() {
        None | Some((0, _)) => run.len(),
        Some((last, _)) => last,
    }
}

/// `'s`, `'ll` and so on. Without regard to case, a long s is an s too.
fn contraction_len(text: &str, ignores_case: bool) -> Option<usize> {
    let rest = text.strip_prefix('\'')?;
    let fold = |character: char| match (ignores_case, character) {
        (true, 'ſ') => 's',
        (true, character) => character.to_ascii_lowercase(),
        (false, character) => character,
    };
    let mut characters = rest.chars();
    let first = characters.next()?;
    let second = characters.next().map(fold);
    match (fold(first), second) {
        ('s' | 't' | 'm' | 'd', _) => Some(1 + first.len_utf8()),
        ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(3),
        _ => None,
    }
}
