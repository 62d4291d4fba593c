//! Prompt lookup: what followed the newest tokens when they occurred before is likely to follow
//! again.
//!
//! <https://github.com/apoorvumang/prompt-lookup-decoding>, with the longest match instead of a
//! fixed n-gram.

use crate::engine::request::TokenId;

/// Matches are not followed further back: this much agreement already means that a text is being repeated.
pub(super) const LONGEST_MATCH: usize = 32;

/// Where the newest tokens occurred before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Match {
    /// Tokens that agree, at most [`LONGEST_MATCH`].
    pub len: usize,
    /// Index of the token that followed.
    pub next: usize,
}

/// The longest run of tokens in `text` that ends like `recent` and that something follows; of equally long ones the last.
/// `text` may be what `recent` is the end of.
pub(super) fn longest_match(text: &[TokenId], recent: &[TokenId]) -> Option<Match> {
    let newest = recent.last()?;
    let mut best: Option<Match> = None;
    for end in (0..text.len().saturating_sub(1)).rev() {
        if text[end] != *newest {
            continue;
        }
        let pairs = text[..=end].iter().rev().zip(recent.iter().rev());
        let len = pairs
            .take(LONGEST_MATCH)
            .take_while(|(a, b)| a == b)
            .count();
        if best.is_none_or(|best| len > best.len) {
            best = Some(Match { len, next: end + 1 });
            if len == LONGEST_MATCH {
                break;
            }
        }
    }
    best
}

/// Where an `output` stands in the text that it was predicted to be: at the same place as long as it repeats it.
pub(super) fn predicted(text: &[TokenId], output: &[TokenId]) -> Option<Match> {
    if text.len() > output.len() && text.starts_with(output) {
        return Some(Match {
            len: LONGEST_MATCH,
            next: output.len(),
        });
    }
    longest_match(text, output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_wins_and_the_last_of_equals() {
        let text = [1, 2, 3, 9, 2, 3, 8, 1, 2, 3];
        let found = longest_match(&text, &text).unwrap();
        assert_eq!(found, Match { len: 3, next: 3 });
        let text = [2, 3, 9, 2, 3, 8, 7, 2, 3];
        let found = longest_match(&text, &text).unwrap();
        assert_eq!(found, Match { len: 2, next: 5 });
    }

    #[test]
    fn a_match_may_overlap_the_end_and_nothing_matches_itself() {
        let found = longest_match(&[5, 5, 5, 5], &[5, 5, 5, 5]).unwrap();
        assert_eq!(found, Match { len: 3, next: 3 });
        assert_eq!(longest_match(&[1, 2, 3], &[1, 2, 3]), None);
        assert_eq!(longest_match(&[], &[]), None);
    }

    #[test]
    fn a_prediction_is_followed_from_its_beginning() {
        let next = |output: &[TokenId]| predicted(&[1, 2, 1, 3, 4], output).map(|found| found.next);
        assert_eq!(next(&[1]), Some(1));
        assert_eq!(next(&[1, 2, 1, 3]), Some(4));
        assert_eq!(next(&[1, 2, 1, 3, 4]), None);
        assert_eq!(next(&[9, 1]), Some(3), "the last of equals");
    }

    #[test]
    fn another_text_is_looked_up_alike() {
        let found = longest_match(&[7, 8, 9, 10], &[1, 8, 9]).unwrap();
        assert_eq!(found, Match { len: 2, next: 3 });
        assert_eq!(longest_match(&[7, 8, 9], &[1, 8, 9]), None);
    }
}
