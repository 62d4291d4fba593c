//! Pre-tokenisers that are a sequence of regular expressions: each cuts the pieces that the one
//! before it left into its matches and what is between them.
//!
//! They run on an engine whose time is linear in the text. It has no look-ahead, which these
//! patterns use in few ways, each done by hand here.

use regex::Regex;

use super::super::TokenizerError;
use super::classes::{SPACE, class_of};

/// How most patterns end: whitespace before something else leaves that its last character.
const LEAVES_LAST: &str = r"|\s+(?!\S)|\s+";
/// As [`LEAVES_LAST`], in lengths that are powers of two (`jais-2`).
const IN_POWERS: &str = r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const POWERS: [usize; 8] = [512, 256, 128, 64, 32, 16, 8, 4];

/// Digits in threes from the last one, where a word ends with them (`tiny_aya`).
pub(in super::super) const WORD_IN_THREES: &str = r"\d{1,3}(?=(?:\d{3})*\b)";
/// A cut before each three digits from the last one (`superbpe`).
pub(in super::super) const BEFORE_THREES: &str = r"(?=(\d{3})+(?!\d))";
/// Numbers in threes from the last character. llama.cpp's name, for what its source has a function
/// for (`afmoe`).
pub(in super::super) const IN_THREES: &str = r"\p{AFMoE_digits}";

/// One regular expression of a pre-tokeniser.
pub(in super::super) enum Step {
    Matches {
        regex: Regex,
        spaces: Spaces,
    },
    /// Runs of digits become their threes; where `in_words`, only those that nothing of a word
    /// follows.
    Threes {
        digits: Regex,
        in_words: bool,
    },
    /// The text is cut within runs of digits alone.
    BeforeThrees {
        digits: Regex,
    },
}

/// What becomes of the whitespace that something follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Spaces {
    Stay,
    /// See [`LEAVES_LAST`]. Where the pattern `ends_lines`, whitespace up to a line break is
    /// another match.
    LeaveLast {
        ends_lines: bool,
    },
    /// See [`IN_POWERS`].
    Powers,
}

impl Step {
    /// A pattern as `tokenizer.json` writes it.
    ///
    /// # Errors
    /// [`TokenizerError::Invalid`] for what the engine cannot run.
    pub(in super::super) fn new(source: &str) -> Result<Self, TokenizerError> {
        let regex = |source: &str| {
            Regex::new(source)
                .map_err(|error| TokenizerError::Invalid(format!("pattern {source}: {error}")))
        };
        match source {
            WORD_IN_THREES => {
                return Ok(Self::Threes {
                    digits: regex(r"\d+")?,
                    in_words: true,
                });
            }
            IN_THREES => {
                return Ok(Self::Threes {
                    digits: regex(r"\p{N}+")?,
                    in_words: false,
                });
            }
            BEFORE_THREES => {
                return Ok(Self::BeforeThrees {
                    digits: regex(r"\d+")?,
                });
            }
            _ => {}
        }
        let ends_lines = source.contains(r"\s*[\r\n]");
        let (start, spaces) = if let Some(start) = source.strip_suffix(LEAVES_LAST) {
            (Some(start), Spaces::LeaveLast { ends_lines })
        } else if let Some(start) = source.strip_suffix(IN_POWERS) {
            (Some(start), Spaces::Powers)
        } else {
            (None, Spaces::Stay)
        };
        let source = start.map_or_else(|| source.to_owned(), |start| format!(r"{start}|\s+"));
        let regex = regex(&source)?;
        Ok(Self::Matches { regex, spaces })
    }

    /// Pushes the pieces of `piece` in reverse, each with the number of the step that it is for:
    /// what is behind the first match for this one (`index`), the others for the next.
    fn cut<'a>(&self, index: usize, piece: &'a str, stack: &mut Vec<(usize, &'a str)>) {
        let next = index + 1;
        match self {
            Self::Matches { regex, spaces } => {
                let Some(found) = regex.find(piece).filter(|found| !found.is_empty()) else {
                    return stack.push((next, piece));
                };
                let (before, rest) = piece.split_at(found.start());
                let is_followed = found.end() < piece.len();
                let ends = spaces.ends(found.as_str(), is_followed);
                let (len, powers) = match ends {
                    Ends::At(len) => (len, None),
                    Ends::Powers(ends) => (ends.last().copied().unwrap_or(0), Some(ends)),
                };
                stack.push((index, &rest[len..]));
                let starts = powers.iter().flatten().rev().skip(1).copied();
                let first = push_before(starts, &rest[..len], next, stack);
                stack.push((next, first));
                stack.push((next, before));
            }
            Self::Threes { digits, in_words } => {
                let mut runs = digits.find_iter(piece);
                let found = runs.find(|run| !(*in_words && begins_in_word(&piece[run.end()..])));
                let Some(run) = found else {
                    return stack.push((next, piece));
                };
                stack.push((index, &piece[run.end()..]));
                let first = push_before(starts_of_threes(run.as_str()), run.as_str(), next, stack);
                stack.push((next, first));
                stack.push((next, &piece[..run.start()]));
            }
            Self::BeforeThrees { digits } => {
                let runs: Vec<_> = digits.find_iter(piece).collect();
                let starts = runs.into_iter().rev().flat_map(|run| {
                    starts_of_threes(run.as_str()).map(move |start| run.start() + start)
                });
                let first = push_before(starts, piece, next, stack);
                stack.push((next, first));
            }
        }
    }
}

/// How many words a match is.
enum Ends {
    /// One, of so many bytes.
    At(usize),
    /// One to each of these bytes.
    Powers(Vec<usize>),
}

impl Spaces {
    /// Where the words of a match end, which something follows or nothing.
    fn ends(self, matched: &str, is_followed: bool) -> Ends {
        let is_space = |character: char| class_of(character) == SPACE;
        let mut characters = matched.chars();
        let last = characters.next_back().filter(|last| is_space(*last));
        let (Some(last), false) = (last, self == Self::Stay) else {
            return Ends::At(matched.len());
        };
        if !characters.all(is_space) {
            return Ends::At(matched.len());
        }
        let is_line_break = matches!(last, '\r' | '\n');
        match self {
            Self::LeaveLast { ends_lines } => {
                let left = matched.len() - last.len_utf8();
                let is_whole = !is_followed || left == 0 || ends_lines && is_line_break;
                Ends::At(if is_whole { matched.len() } else { left })
            }
            Self::Powers if !is_line_break => Ends::Powers(powers(matched, is_followed)),
            Self::Powers | Self::Stay => Ends::At(matched.len()),
        }
    }
}

/// Where the words of a run of whitespace end; the last character of one that something follows is
/// left.
fn powers(run: &str, is_followed: bool) -> Vec<usize> {
    let starts: Vec<usize> = run.char_indices().map(|(start, _)| start).skip(1).collect();
    // Characters, the last of a followed run apart.
    let num = starts.len() + usize::from(!is_followed);
    let mut ends = Vec::new();
    let mut at = 0;
    while at < num || ends.is_empty() {
        let left = num - at;
        let power = POWERS.into_iter().chain([2]).find(|power| left >= *power);
        at += power.unwrap_or(1);
        ends.push(starts.get(at - 1).copied().unwrap_or(run.len()));
    }
    ends
}

/// Whether what follows a digit is of its word: `\w` of the engine that the models were made with.
fn begins_in_word(text: &str) -> bool {
    static WORD: std::sync::LazyLock<Regex> = std::sync::LazyLock::new(|| {
        Regex::new(r"^[\p{L}\p{M}\p{N}\p{Pc}]").expect("the pattern is valid; this is a bug")
    });
    WORD.is_match(text)
}

/// Where each three characters from the end of a run begin, from the last on.
fn starts_of_threes(run: &str) -> impl Iterator<Item = usize> {
    let starts = run.char_indices().rev().map(|(start, _)| start);
    starts.skip(2).step_by(3)
}

/// Pushes what begins at each of `starts`, which descend. What is before all of them is left.
fn push_before<'a>(
    starts: impl Iterator<Item = usize>,
    text: &'a str,
    step: usize,
    stack: &mut Vec<(usize, &'a str)>,
) -> &'a str {
    let mut end = text.len();
    for start in starts {
        stack.push((step, &text[start..end]));
        end = start;
    }
    &text[..end]
}

/// The words of a text, one after the other.
pub(super) struct StepWords<'s, 'a> {
    steps: &'s [Step],
    /// Pieces with the number of the step that is next to cut them, the first of the text on top.
    /// Each step has three at most, and where a run of digits or whitespace is several words, one
    /// for each.
    stack: Vec<(usize, &'a str)>,
}

impl<'s, 'a> StepWords<'s, 'a> {
    pub(super) fn new(steps: &'s [Step], text: &'a str) -> Self {
        Self {
            steps,
            stack: vec![(0, text)],
        }
    }
}

impl<'a> Iterator for StepWords<'_, 'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        while let Some((index, piece)) = self.stack.pop() {
            if piece.is_empty() {
                continue;
            }
            match self.steps.get(index) {
                Some(step) => step.cut(index, piece, &mut self.stack),
                None => return Some(piece),
            }
        }
        None
    }
}
