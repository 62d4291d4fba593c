//! Patterns of clients: they find what the `regex` crate finds, whole or piece by piece, and end
//! their search when they may not go on. An input is a pattern and the pieces of a text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ponder::search::StepRule;
use ponder::text::{Automaton, Pattern};
use ponder_fuzz::parts;
use regex_syntax::hir::Hir;

/// Looks at a budget, of the longest search.
const MAX_LOOKS: usize = 64;
const MAX_STEP_TOKENS: usize = 9;

/// What the `regex` crate says, where both mean the same: word boundaries of Unicode are ours of
/// ASCII.
fn reference(pattern: &str) -> Option<regex::bytes::Regex> {
    let hir: Hir = regex_syntax::parse(pattern).ok()?;
    let has_words = hir.properties().look_set().contains_word_unicode();
    let same = (!has_words).then_some(pattern)?;
    regex::bytes::Regex::new(same).ok()
}

fuzz_target!(|data: &[u8]| {
    let mut texts = parts::split(data).map(String::from_utf8_lossy);
    let pattern = texts.next().unwrap_or_default();
    let pieces: Vec<_> = texts.collect();
    let whole = pieces.concat();
    let expected = reference(&pattern);
    if let Ok(searched) = Pattern::new(&pattern) {
        let mut looks = 0;
        let found = searched.is_in(&whole, || {
            looks += 1;
            looks < MAX_LOOKS
        });
        assert_eq!(
            found.is_none(),
            looks == MAX_LOOKS,
            "a search ends when it may not go on"
        );
        if let (Some(found), Some(expected)) = (found, &expected) {
            assert_eq!(
                found,
                expected.is_match(whole.as_bytes()),
                "{pattern:?} in {whole:?}"
            );
        }
    }
    let Ok(automaton) = Automaton::new(&pattern) else {
        return;
    };
    let (mut place, mut text) = (automaton.start(), String::new());
    for piece in &pieces {
        text.push_str(piece);
        let found = automaton.push(&mut place, piece);
        if let Some(expected) = &expected {
            assert_eq!(
                found,
                expected.is_match(text.as_bytes()),
                "{pattern:?} in {text:?}"
            );
        }
        if found {
            break;
        }
    }
    let rule = StepRule::regex(&pattern, MAX_STEP_TOKENS).expect("the automaton was built");
    let _ = rule.is_complete(&whole);
});
