//! Against the `tokenizers` crate, whose results are the definition.

use std::collections::HashMap;

use proptest::prelude::*;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
};
use tokenizers::{PreTokenizerWrapper, normalizers::NFC};

use super::words::{GPT2_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN};
use super::*;
use crate::text::tokenizer::vocabulary;

const KINDS: [(Isolated, Pattern); 6] = [
    (Isolated::Nothing, Pattern::Whole),
    (Isolated::Nothing, Pattern::Gpt2),
    (Isolated::Nothing, Pattern::Llama3),
    (Isolated::Nothing, Pattern::Qwen2),
    (Isolated::Numbers, Pattern::Gpt2),
    (Isolated::Numeric, Pattern::Gpt2),
];

/// Of each class, and what patterns name: contractions, both line breaks, the long s, marks that compose.
const CHARACTERS: [char; 26] = [
    ' ', '\n', '\r', '\t', '\'', 's', 'l', 'L', 'e', 'r', 'ſ', 'a', '1', '²', '٣', '.', '漢', '가',
    '\u{301}', '\u{3000}', '\u{85}', '🙂', '\u{1161}', '\u{1100}', '½', '_',
];

fn split(source: &str) -> PreTokenizerWrapper {
    let pattern = SplitPattern::Regex(source.to_owned());
    Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        .unwrap()
        .into()
}

fn steps((isolated, pattern): (Isolated, Pattern)) -> Vec<PreTokenizerWrapper> {
    let first = match isolated {
        Isolated::Nothing => None,
        Isolated::Numbers => Some(split(r"\p{N}")),
        Isolated::Numeric => Some(Digits::new(true).into()),
    };
    let second = match pattern {
        Pattern::Gpt2 => Some(GPT2_PATTERN),
        Pattern::Llama3 => Some(LLAMA3_PATTERN),
        Pattern::Qwen2 => Some(QWEN2_PATTERN),
        Pattern::Whole => None,
    };
    first.into_iter().chain(second.map(split)).collect()
}

fn reference_words(steps: &Sequence, text: &str) -> Vec<String> {
    let mut pieces = PreTokenizedString::from(text);
    steps.pre_tokenize(&mut pieces).unwrap();
    let pieces = pieces.get_splits(OffsetReferential::Normalized, OffsetType::None);
    pieces.into_iter().map(|piece| piece.0.to_owned()).collect()
}

/// Every text of up to three characters.
#[test]
fn words_of_short_texts_are_those_of_the_patterns() {
    for kind in KINDS {
        let steps = Sequence::new(steps(kind));
        let one = CHARACTERS.map(String::from);
        let two = one
            .iter()
            .flat_map(|a| one.each_ref().map(|b| format!("{a}{b}")));
        let two: Vec<String> = two.collect();
        let three = two
            .iter()
            .flat_map(|a| one.each_ref().map(|b| format!("{a}{b}")));
        for text in three.chain(two.iter().cloned()) {
            let words: Vec<&str> = Words::new(kind.1, kind.0, &text).collect();
            assert_eq!(words, reference_words(&steps, &text), "{kind:?} {text:?}");
        }
    }
}

/// A vocabulary of the bytes and of merges of them.
struct Vocabulary {
    ids: HashMap<String, u32>,
    merges: Vec<(String, String)>,
}

fn vocabulary() -> Vocabulary {
    let mut characters: Vec<(char, u8)> = byte_level::alphabet().iter().collect();
    characters.sort_by_key(|(_, byte)| *byte);
    let spelled = |text: &str| -> Vec<String> {
        let character = |byte: u8| characters[usize::from(byte)].0.to_string();
        text.bytes().map(character).collect()
    };
    let mut ids: HashMap<String, u32> = HashMap::new();
    for (character, byte) in &characters {
        ids.insert(character.to_string(), u32::from(*byte));
    }
    let mut merges = Vec::new();
    for text in [
        "aa", "aaaa", "aL", "le", " a", "  ", "    ", "\n\n", "11", "漢", "가", "🙂", "...", " l",
        "'s", "ea", "aea", "é", "11111", "\n ", "٣",
    ] {
        let mut parts = spelled(text);
        while parts.len() > 1 {
            let (left, right) = (parts.remove(0), parts.remove(0));
            let merged = format!("{left}{right}");
            let next = ids.len() as u32;
            if !ids.contains_key(&merged) {
                ids.insert(merged.clone(), next);
                merges.push((left, right));
            }
            parts.insert(0, merged);
        }
    }
    Vocabulary { ids, merges }
}

fn model(kind: (Isolated, Pattern), ignores_merges: bool, composes: bool) -> ByteBpe {
    let vocabulary = vocabulary();
    let merges: Vec<(&str, &str)> = vocabulary
        .merges
        .iter()
        .map(|(left, right)| (left.as_str(), right.as_str()))
        .collect();
    ByteBpe::new(Parts {
        vocabulary: &vocabulary::Vocabulary::from(&vocabulary.ids),
        merges: &merges,
        cut: Cut::ByHand(kind.0, kind.1),
        ignores_merges,
        composes,
    })
    .unwrap()
}

fn reference(
    kind: (Isolated, Pattern),
    ignores_merges: bool,
    composes: bool,
) -> tokenizers::Tokenizer {
    let vocabulary = vocabulary();
    let bpe = BPE::builder()
        .vocab_and_merges(
            vocabulary
                .ids
                .into_iter()
                .collect::<tokenizers::models::bpe::Vocab>(),
            vocabulary.merges,
        )
        .ignore_merges(ignores_merges)
        .build()
        .unwrap();
    let mut steps = steps(kind);
    steps.push(ByteLevel::new(false, false, false).into());
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    if composes {
        tokenizer.with_normalizer(Some(NFC));
    }
    tokenizer
}

fn texts() -> impl Strategy<Value = String> {
    let character = prop_oneof![
        8 => prop::sample::select(CHARACTERS.to_vec()),
        1 => any::<char>(),
    ];
    // Runs, since limits and pieces matter in long words.
    let run = (character, 1..40_usize).prop_map(|(character, count)| {
        std::iter::repeat_n(character, if count > 30 { count } else { 1 }).collect::<String>()
    });
    prop::collection::vec(run, 0..80).prop_map(|runs| runs.concat())
}

fn encode(
    model: &ByteBpe,
    text: &str,
    max_tokens: usize,
    piece_bytes: usize,
) -> Result<Vec<u32>, TokenizerError> {
    let is_wanted = || true;
    let mut watch = Watch::new(text.len(), max_tokens, &is_wanted, piece_bytes);
    let mut ids = Vec::new();
    model.encode(text, &mut watch, &mut ids)?;
    Ok(ids)
}

#[test]
fn streams_of_words_become_the_tokens_of_the_whole() {
    for kind in KINDS {
        for (ignores_merges, composes) in [(false, false), (true, false), (false, true)] {
            let ours = model(kind, ignores_merges, composes);
            let reference = reference(kind, ignores_merges, composes);
            let mut runner = proptest::test_runner::TestRunner::deterministic();
            runner
                .run(&(texts(), 1..64_usize), |(text, piece_bytes)| {
                    let expected = reference.encode_fast(text.as_str(), false).unwrap();
                    let num = expected.len();
                    let ids = encode(&ours, &text, num, piece_bytes).unwrap();
                    prop_assert_eq!(&ids, expected.get_ids());
                    // One token less is refused, wherever that shows.
                    if num > 0 {
                        let refused = encode(&ours, &text, num - 1, piece_bytes);
                        let is_too_long = matches!(refused, Err(TokenizerError::TooLong { .. }));
                        prop_assert!(is_too_long);
                    }
                    Ok(())
                })
                .unwrap();
        }
    }
}

/// What costs seconds and gigabytes in one piece: digits, one word, whitespace that a backtracking engine gives up on.
#[test]
fn long_texts_are_refused_or_encoded_within_the_limit() {
    let ours = model((Isolated::Nothing, Pattern::Qwen2), false, false);
    let digits = "7".repeat(15 << 20);
    let refused = encode(&ours, &digits, 32_768, PIECE_BYTES).unwrap_err();
    assert!(
        matches!(refused, TokenizerError::TooLong { max_tokens: 32_768, num_bytes } if num_bytes == digits.len())
    );
    // A word of pairs: `aa` goes before `aaa`.
    let word = "a".repeat(1 << 18);
    let ids = encode(&ours, &word, 1 << 17, PIECE_BYTES).unwrap();
    assert_eq!(ids.len(), 1 << 17);
    assert!(encode(&ours, &word, (1 << 17) - 1, PIECE_BYTES).is_err());
    let spaces = format!("{}x", " ".repeat(1 << 18));
    assert!(encode(&ours, &spaces, (1 << 17) + 16, PIECE_BYTES).is_ok());
}

#[test]
fn nobody_waiting_ends_the_work_within_a_piece() {
    let ours = model((Isolated::Nothing, Pattern::Gpt2), false, false);
    for text in ["a".repeat(1 << 20), "a 1\n".repeat(1 << 18)] {
        let num_asked = std::cell::Cell::new(0);
        let is_wanted = || {
            num_asked.set(num_asked.get() + 1);
            num_asked.get() < 3
        };
        let mut watch = Watch::new(text.len(), usize::MAX, &is_wanted, PIECE_BYTES);
        let mut ids = Vec::new();
        let stopped = ours.encode(&text, &mut watch, &mut ids).unwrap_err();
        assert!(matches!(stopped, TokenizerError::Stopped));
        assert!(num_asked.get() == 3 && ids.len() <= 3 * PIECE_BYTES);
    }
}

#[test]
fn bytes_without_a_token_are_left_out_and_weigh_nothing() {
    let ids = HashMap::from([
        ("a".to_owned(), 0),
        ("b".to_owned(), 1),
        ("ab".to_owned(), 2),
    ]);
    let ids = vocabulary::Vocabulary::from(&ids);
    let ours = ByteBpe::new(Parts {
        vocabulary: &ids,
        merges: &[("a", "b")],
        cut: Cut::ByHand(Isolated::Nothing, Pattern::Gpt2),
        ignores_merges: false,
        composes: false,
    })
    .unwrap();
    assert_eq!(encode(&ours, "xxxxabxxxx", 1, 16).unwrap(), [2]);
    let unknown = Parts {
        vocabulary: &ids,
        merges: &[("a", "c")],
        cut: Cut::ByHand(Isolated::Nothing, Pattern::Gpt2),
        ignores_merges: false,
        composes: false,
    };
    assert!(matches!(
        ByteBpe::new(unknown),
        Err(TokenizerError::Invalid(_))
    ));
}
