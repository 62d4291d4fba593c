//! Unicode's composed form (NFC), piece by piece.

use std::borrow::Cow;

use tokenizers::normalizers::NFC;
use tokenizers::tokenizer::{NormalizedString, Normalizer};

use super::super::TokenizerError;
use super::super::watch::{PIECE_BYTES, Watch};
use super::classes::{LETTER, class_of};

/// Composing makes a text no shorter than one part in this many.
pub(super) const SHRINKS_BY: usize = 3;

/// Consonants, vowels and finals of Korean, of which syllables are composed.
const JAMO: [std::ops::RangeInclusive<char>; 3] = [
    '\u{1100}'..='\u{11FF}',
    '\u{A960}'..='\u{A97F}',
    '\u{D7B0}'..='\u{D7FF}',
];

/// `text` in NFC.
pub(super) fn composed<'a>(
    text: &'a str,
    watch: &mut Watch<'_>,
) -> Result<Cow<'a, str>, TokenizerError> {
    if text.is_ascii() {
        return Ok(Cow::Borrowed(text));
    }
    composed_by(text, PIECE_BYTES, watch).map(Cow::Owned)
}

fn composed_by(
    text: &str,
    piece_bytes: usize,
    watch: &mut Watch<'_>,
) -> Result<String, TokenizerError> {
    let mut whole = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(cut(rest, piece_bytes));
        watch.spend(piece.len())?;
        if piece.is_ascii() {
            whole.push_str(piece);
        } else {
            let mut normalized = NormalizedString::from(piece);
            NFC.normalize(&mut normalized)
                .map_err(|error| TokenizerError::Encode(error.to_string()))?;
            whole.push_str(normalized.get());
        }
        rest = after;
    }
    Ok(whole)
}

/// Where to cut `text` at `at_least` bytes or behind, so that both parts compose on their own.
fn cut(text: &str, at_least: usize) -> usize {
    let Some(mut at) = (at_least.max(1)..text.len()).find(|at| text.is_char_boundary(*at)) else {
        return text.len();
    };
    for character in text[at..].chars() {
        if stands_alone(character) {
            return at;
        }
        at += character.len_utf8();
    }
    text.len()
}

/// Whether a character never composes with, nor moves before, what is in front of it. ASCII never does. Letters
/// have combining class zero, and those of the first plane never come second in a composition, but for Korean's
/// parts.
fn stands_alone(character: char) -> bool {
    character.is_ascii()
        || (character <= '\u{FFFF}'
            && class_of(character) == LETTER
            && !JAMO.iter().any(|range| range.contains(&character)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> String {
        let mut normalized = NormalizedString::from(text);
        NFC.normalize(&mut normalized).unwrap();
        normalized.get().to_owned()
    }

    /// Each character that may begin a piece, behind characters that compose with much.
    #[test]
    fn what_stands_alone_changes_nothing_before_it() {
        let second: Vec<char> = ('\0'..='\u{FFFF}').filter(|c| stands_alone(*c)).collect();
        assert!(second.len() > 40_000);
        for before in [
            "a",
            "e\u{323}",
            "α\u{313}",
            "\u{1100}",
            "가",
            "か",
            "\u{915}",
            "\u{9c7}",
        ] {
            let pairs: String = second.iter().map(|c| format!("{before}{c}\n")).collect();
            let apart: String = second
                .iter()
                .map(|c| format!("{}{}\n", whole(before), whole(&c.to_string())))
                .collect();
            assert!(whole(&pairs) == apart, "behind {before:?}");
        }
    }

    #[test]
    fn pieces_compose_as_the_whole_does() {
        let text = "e\u{301}\u{323} \u{1112}\u{1161}\u{11ab}か\u{3099}x漢字e\u{301}\u{323}\u{301}\u{915}\u{93c}Å"
            .repeat(7);
        for piece_bytes in 1..text.len() {
            let is_wanted = || true;
            let mut watch = Watch::new(text.len(), usize::MAX, &is_wanted, 16);
            let pieces = composed_by(&text, piece_bytes, &mut watch).unwrap();
            assert_eq!(pieces, whole(&text));
        }
    }
}
