//! Regular expressions that clients send, with bounded cost.
//!
//! The `regex` crate promises time linear in pattern times text, and a client chooses both: five
//! thousand states over a long answer are minutes. A [`Pattern`] is therefore matched by an
//! automaton that can be stopped between bytes, and an [`Automaton`] is small and complete before
//! it is used, so that each byte costs one look at a table.
//!
//! Word boundaries (`\b`) are those of ASCII: the ones of Unicode need more than an automaton.

use std::sync::Arc;

use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::hybrid::dfa as lazy;
use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};
use regex_syntax::hir::{Capture, Hir, HirKind, Look, Repetition};

/// Longest pattern.
pub const MAX_PATTERN_BYTES: usize = 16 << 10;
/// Of a compiled pattern.
const MAX_NFA_BYTES: usize = 1 << 20;
/// Of a complete automaton, and again of what is needed to build it.
const MAX_AUTOMATON_BYTES: usize = 4 << 20;
/// Of the states that a search keeps.
const CACHE_BYTES: usize = 2 << 20;
/// Bytes between two looks at a budget: a byte costs up to some hundred microseconds.
const STRIDE: usize = 16;

/// Parses a pattern and makes it an automaton without determinism. The error is the pattern's.
fn compile(pattern: &str) -> Result<thompson::NFA, String> {
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(format!(
            "the pattern is longer than {MAX_PATTERN_BYTES} bytes"
        ));
    }
    let hir = regex_syntax::parse(pattern).map_err(|error| error.to_string())?;
    let config = thompson::Config::new()
        .nfa_size_limit(Some(MAX_NFA_BYTES))
        .which_captures(thompson::WhichCaptures::None);
    let mut compiler = thompson::Compiler::new();
    compiler.configure(config);
    let nfa = compiler.build_from_hir(&with_ascii_words(&hir));
    nfa.map_err(|_| format!("the pattern needs more than {MAX_NFA_BYTES} bytes compiled"))
}

/// The same expression with ASCII's word boundaries. The parser bounds the depth.
fn with_ascii_words(hir: &Hir) -> Hir {
    let all = |parts: &[Hir]| parts.iter().map(with_ascii_words).collect();
    match hir.kind() {
        HirKind::Look(look) => Hir::look(match look {
            Look::WordUnicode => Look::WordAscii,
            Look::WordUnicodeNegate => Look::WordAsciiNegate,
            Look::WordStartUnicode => Look::WordStartAscii,
            Look::WordEndUnicode => Look::WordEndAscii,
            Look::WordStartHalfUnicode => Look::WordStartHalfAscii,
            Look::WordEndHalfUnicode => Look::WordEndHalfAscii,
            other => *other,
        }),
        HirKind::Repetition(repetition) => Hir::repetition(Repetition {
            sub: Box::new(with_ascii_words(&repetition.sub)),
            ..repetition.clone()
        }),
        HirKind::Capture(capture) => Hir::capture(Capture {
            sub: Box::new(with_ascii_words(&capture.sub)),
            ..capture.clone()
        }),
        HirKind::Concat(parts) => Hir::concat(all(parts)),
        HirKind::Alternation(parts) => Hir::alternation(all(parts)),
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) => hir.clone(),
    }
}

/// A pattern whose search can be stopped.
#[derive(Debug, Clone)]
pub struct Pattern {
    dfa: Arc<lazy::DFA>,
}

impl Pattern {
    /// The error is the pattern's.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let config = lazy::Config::new()
            .match_kind(MatchKind::All)
            .cache_capacity(CACHE_BYTES)
            .skip_cache_capacity_check(true);
        let mut builder = lazy::Builder::new();
        builder.configure(config);
        let dfa = builder.build_from_nfa(compile(pattern)?);
        let dfa = Arc::new(dfa.map_err(|error| error.to_string())?);
        Ok(Self { dfa })
    }

    /// A measure of what a byte costs.
    pub fn num_states(&self) -> usize {
        self.dfa.get_nfa().states().len()
    }

    /// Whether the pattern is found in `text`; `None` when `may_go_on` said no before that was known.
    pub fn is_in(&self, text: &str, mut may_go_on: impl FnMut() -> bool) -> Option<bool> {
        let dfa = &*self.dfa;
        let mut cache = dfa.create_cache();
        let start = start::Config::new().anchored(Anchored::No);
        // Without look-around of Unicode no byte makes such an automaton give up.
        let mut state = dfa.start_state(&mut cache, &start).ok()?;
        for bytes in text.as_bytes().chunks(STRIDE) {
            if !may_go_on() {
                return None;
            }
            for byte in bytes {
                state = dfa.next_state(&mut cache, state, *byte).ok()?;
                if state.is_match() {
                    return Some(true);
                }
                if state.is_dead() {
                    return Some(false);
                }
            }
        }
        let end = dfa.next_eoi_state(&mut cache, state).ok()?;
        Some(end.is_match())
    }
}

/// A pattern that is followed byte by byte, for one look at a table each.
#[derive(Debug, Clone)]
pub struct Automaton {
    dfa: Arc<dense::DFA<Vec<u32>>>,
}

/// Where a text has brought an [`Automaton`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(StateID);

impl Automaton {
    /// The error is the pattern's. Takes a fraction of a second at most.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let config = dense::Config::new()
            .match_kind(MatchKind::All)
            .start_kind(StartKind::Unanchored)
            .accelerate(false)
            .determinize_size_limit(Some(MAX_AUTOMATON_BYTES))
            .dfa_size_limit(Some(MAX_AUTOMATON_BYTES));
        let nfa = compile(pattern)?;
        let mut builder = dense::Builder::new();
        let dfa = builder.configure(config).build_from_nfa(&nfa);
        let dfa = Arc::new(dfa.map_err(|_| {
            format!(
                "the pattern is too complex to follow token by token: its automaton needs more than {} MiB; \
                 use smaller repetitions or classes, such as [0-9] for \\d",
                MAX_AUTOMATON_BYTES >> 20
            )
        })?);
        let automaton = Self { dfa };
        match automaton.begin() {
            Some(_) => Ok(automaton),
            None => Err("the pattern has no start".to_owned()),
        }
    }

    /// The place before any text.
    fn begin(&self) -> Option<StateID> {
        let start = start::Config::new().anchored(Anchored::No);
        self.dfa.start_state(&start).ok()
    }

    /// Before any text.
    pub fn start(&self) -> Place {
        // The constructor has seen that there is one.
        Place(self.begin().unwrap_or(StateID::ZERO))
    }

    /// Where `text` leads from a place, and whether the pattern is found in all the text so far.
    pub fn push(&self, place: &mut Place, text: &str) -> bool {
        for byte in text.as_bytes() {
            place.0 = self.dfa.next_state(place.0, *byte);
            if self.dfa.is_match_state(place.0) {
                return true;
            }
        }
        self.dfa.is_match_state(self.dfa.next_eoi_state(place.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    /// The issue's: a step that is matched again at each token.
    const HOSTILE: &str = r"(?:[ -~\n]?){5000}[\x00\x01]";

    #[test]
    fn patterns_people_use_are_small() {
        for pattern in [
            r"Step \d+:",
            r"(?i)\bstep\b",
            r"\n\n|\n(?=x)?",
            r"[.!?]\s",
            r"^#{1,3} .*$",
            r"(?m)^\d+\.\s",
            r"\w+:$",
            r"</?step>",
            r"\p{L}+\n",
            r".",
        ] {
            let automaton = Automaton::new(pattern);
            let bytes = automaton.map(|automaton| automaton.dfa.memory_usage());
            match pattern.contains("(?=") {
                true => assert!(bytes.is_err(), "{pattern}"),
                false => assert!(bytes.unwrap() < MAX_AUTOMATON_BYTES, "{pattern}"),
            }
        }
    }

    #[test]
    fn what_is_too_complex_is_refused() {
        let message = Automaton::new(HOSTILE).unwrap_err();
        assert!(message.contains("too complex"), "{message}");
        for pattern in [r"\w{1000}\d{1000}", "((a{100}){100}){100}", "(", "[b-a]"] {
            assert!(Automaton::new(pattern).is_err(), "{pattern}");
        }
        let long = "a".repeat(MAX_PATTERN_BYTES + 1);
        assert!(Pattern::new(&long).is_err() && Automaton::new(&long).is_err());
        assert!(Pattern::new("((a{100}){100}){100}").is_err());
        assert!(Pattern::new(&"(".repeat(5000)).is_err());
    }

    #[test]
    fn a_search_stops_when_it_may_not_go_on() {
        let pattern = Pattern::new(HOSTILE).unwrap();
        let text = "a".repeat(1 << 20);
        let mut looks = 0;
        let found = pattern.is_in(&text, || {
            looks += 1;
            looks < 100
        });
        assert_eq!((found, looks), (None, 100));
        assert_eq!(pattern.is_in("a\u{1}", || true), Some(true));
    }

    #[test]
    fn word_boundaries_are_of_ascii() {
        let pattern = Pattern::new(r"\bs\b").unwrap();
        assert_eq!(pattern.is_in("a s b", || true), Some(true));
        assert_eq!(pattern.is_in("asb", || true), Some(false));
        assert_eq!(pattern.is_in("ésé", || true), Some(true));
    }

    const PATTERNS: [&str; 14] = [
        "ab",
        "a+b?$",
        "^a",
        "(?m)^b$",
        r"\d\s",
        "[^a]b",
        "é|b{2}",
        r"\bb",
        "a.b",
        "(?s)a.b",
        "a*",
        r"\z",
        "b(a|é)*b",
        r"\B\n",
    ];

    proptest! {
        /// Both find what the `regex` crate finds, and pieces change nothing.
        #[test]
        fn they_agree_with_the_regex_crate(
            pieces in prop::collection::vec("[abé1 \n]{0,4}", 0..8),
            which in 0..PATTERNS.len(),
        ) {
            let pattern = PATTERNS[which];
            let ascii = pattern.replace(r"\b", r"(?-u:\b)").replace(r"\B", r"(?-u:\B)");
            // The bytes' engine knows ASCII's boundaries inside of characters.
            let expected = regex::bytes::Regex::new(&ascii).unwrap();
            prop_assert!(Regex::new(pattern).is_ok());
            let whole = pieces.concat();
            let found = Pattern::new(pattern).unwrap().is_in(&whole, || true);
            prop_assert_eq!(found, Some(expected.is_match(whole.as_bytes())));
            let automaton = Automaton::new(pattern).unwrap();
            let (mut place, mut text) = (automaton.start(), String::new());
            for piece in pieces {
                text.push_str(&piece);
                let is_found = automaton.push(&mut place, &piece);
                prop_assert_eq!(is_found, expected.is_match(text.as_bytes()), "{:?}", text);
                if is_found {
                    break;
                }
            }
        }
    }
}
