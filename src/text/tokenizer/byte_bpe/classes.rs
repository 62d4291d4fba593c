//! The classes of characters that pre-tokenisers ask for.
//!
//! They are read once from the regex engine of the `tokenizers` crate, which the models'
//! vocabularies were made with: another library's version of Unicode would put a few characters
//! elsewhere.

use std::sync::OnceLock;

use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
};

/// `\p{L}`
pub(super) const LETTER: u8 = 1;
/// `\p{N}`
pub(super) const NUMBER: u8 = 2;
/// `\s`
pub(super) const SPACE: u8 = 3;
/// Everything else.
pub(super) const OTHER: u8 = 0;

/// Unicode has letters, numbers and spaces in its first four planes alone.
const END: u32 = 0x4_0000;
/// Characters that the engine is asked about at once: it needs hundreds of bytes for each.
const AT_ONCE: u32 = 0x1000;

struct Classes {
    ascii: [u8; 128],
    /// `(first, last, class)`, ascending and apart.
    ranges: Vec<(u32, u32, u8)>,
}

/// The class of a character.
pub(super) fn class_of(character: char) -> u8 {
    static CLASSES: OnceLock<Classes> = OnceLock::new();
    let classes = CLASSES.get_or_init(Classes::read);
    match classes.ascii.get(character as usize) {
        Some(class) => *class,
        None => classes.find(character as u32),
    }
}

impl Classes {
    fn read() -> Self {
        let mut ranges = Vec::new();
        for (pattern, class) in [(r"\p{L}+", LETTER), (r"\p{N}+", NUMBER), (r"\s+", SPACE)] {
            for first in (0..END).step_by(AT_ONCE as usize) {
                let codes = first..first + AT_ONCE;
                let text: String = codes.filter_map(char::from_u32).collect();
                for run in runs(&text, pattern) {
                    ranges.extend(ranges_of(&run).map(|(first, last)| (first, last, class)));
                }
            }
        }
        ranges.sort_unstable();
        let mut classes = Self {
            ascii: [OTHER; 128],
            ranges,
        };
        classes.ascii = std::array::from_fn(|byte| classes.find(byte as u32));
        classes
    }

    fn find(&self, character: u32) -> u8 {
        let after = self
            .ranges
            .partition_point(|(first, _, _)| *first <= character);
        match after.checked_sub(1).map(|index| self.ranges[index]) {
            Some((_, last, class)) if character <= last => class,
            _ => OTHER,
        }
    }
}

/// What matches `pattern` in `text`.
fn runs(text: &str, pattern: &str) -> Vec<String> {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Removed, true)
        .expect("the patterns of character classes are valid; this is a bug");
    let mut pieces = PreTokenizedString::from(text);
    split
        .pre_tokenize(&mut pieces)
        .expect("splitting a text cannot fail; this is a bug");
    let pieces = pieces.get_splits(OffsetReferential::Normalized, OffsetType::None);
    pieces.into_iter().map(|piece| piece.0.to_owned()).collect()
}

/// The unbroken ranges of a run's characters (surrogates are no characters and break one).
fn ranges_of(run: &str) -> impl Iterator<Item = (u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for character in run.chars().map(u32::from) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == character => *last = character,
            _ => ranges.push((character, character)),
        }
    }
    ranges.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of Unicode, against the regex engine asked in another way.
    #[test]
    fn every_character_has_the_class_of_the_regex_engine() {
        let everything: String = (0..=0x10_FFFF).filter_map(char::from_u32).collect();
        let mut expected = vec![OTHER; 0x11_0000];
        for (pattern, class) in [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)] {
            for character in runs(&everything, pattern).concat().chars() {
                assert_eq!(expected[character as usize], OTHER, "{character:?}");
                expected[character as usize] = class;
            }
        }
        for character in everything.chars() {
            assert_eq!(class_of(character), expected[character as usize]);
        }
        assert_eq!(class_of('é'), LETTER);
        assert_eq!(class_of('\u{3000}'), SPACE);
    }
}
