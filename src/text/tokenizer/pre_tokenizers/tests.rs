//! Against the regex engine of the `tokenizers` crate, which the models' vocabularies were made
//! with.

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;
use tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, SplitDelimiterBehavior,
};

use super::*;

/// Of each class that patterns ask for: cases within ASCII and beyond, titles, marks, letters
/// without case, scripts, decimal and other numbers, connectors, punctuation, symbols and kinds of
/// whitespace.
const CHARACTERS: [char; 40] = [
    ' ', '\n', '\r', '\t', '\u{a0}', '\u{3000}', '\u{85}', 'a', 's', 'l', 'L', 'S', 'ſ', 'é', 'É',
    'ǅ', 'ʰ', 'ß', 'न', '\u{94d}', '\u{301}', '漢', 'ひ', 'カ', '가', 'ㄅ', '1', '2', '٣', '²',
    'Ⅷ', '_', '\'', '.', '/', '-', '$', '。', '…', '🙂',
];

/// The patterns as they are written, and what the one that llama.cpp has a function for does.
fn reference(sources: &[&str]) -> Sequence {
    let step = |source: &&str| -> PreTokenizerWrapper {
        let source = match *source {
            IN_THREES => r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|\z))",
            source => source,
        };
        let pattern = SplitPattern::Regex(source.to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        split.unwrap().into()
    };
    Sequence::new(sources.iter().map(step).collect())
}

fn reference_words(steps: &Sequence, text: &str) -> Vec<String> {
    let mut pieces = PreTokenizedString::from(text);
    steps.pre_tokenize(&mut pieces).unwrap();
    let pieces = pieces.get_splits(OffsetReferential::Normalized, OffsetType::None);
    let words = pieces.into_iter().map(|piece| piece.0.to_owned());
    words.filter(|word| !word.is_empty()).collect()
}

fn texts() -> impl Strategy<Value = String> {
    let run = prop_oneof![
        8 => select(CHARACTERS.to_vec()).prop_map(String::from),
        2 => (select(CHARACTERS.to_vec()), 2..9_usize)
            .prop_map(|(character, count)| String::from(character).repeat(count)),
        1 => (1..700_usize).prop_map(|count| " ".repeat(count)),
        1 => select(vec!["IMGIMGABIZ", "<sentinel:12>", "'ll", "'RE", "Hello", "012345678"])
            .prop_map(str::to_owned),
    ];
    prop::collection::vec(run, 0..24).prop_map(|runs| runs.concat())
}

/// The two engines may have been built with different versions of Unicode.
#[test]
fn both_engines_have_the_same_classes() {
    // What has letters, marks, numbers, spaces and punctuation beyond these planes is unassigned.
    let everything: String = (0..0x4_0000).filter_map(char::from_u32).collect();
    for class in [
        r"\p{L}", r"\p{M}", r"\p{N}", r"\p{P}", r"\p{S}", r"\p{Lu}", r"\p{Ll}", r"\p{Lt}",
        r"\p{Lm}", r"\p{Lo}", r"\p{Han}", r"\d", r"\s",
    ] {
        let regex = regex::Regex::new(&format!("{class}+")).unwrap();
        let own: Vec<&str> = regex
            .find_iter(&everything)
            .map(|run| run.as_str())
            .collect();
        let pattern = SplitPattern::Regex(format!("{class}+"));
        let split = Split::new(pattern, SplitDelimiterBehavior::Removed, true).unwrap();
        let expected = reference_words(&Sequence::new(vec![split.into()]), &everything);
        assert_eq!(own.concat(), expected.concat(), "{class}");
    }
}

#[test]
fn steps_are_those_of_the_engine_that_the_models_were_made_with() {
    for (names, words, _) in GROUPS {
        let Words::Steps(sources) = words else {
            continue;
        };
        let reference = reference(sources);
        let cut = Cut::of_sources(sources).unwrap();
        let check = |text: &str| {
            let expected = reference_words(&reference, text);
            assert_eq!(cut.words(text), expected, "{names:?} {text:?}");
        };
        for first in CHARACTERS {
            check(&first.to_string());
            for second in CHARACTERS {
                check(&format!("{first}{second}"));
            }
        }
        let mut runner = TestRunner::deterministic();
        runner
            .run(&texts(), |text| {
                check(&text);
                Ok(())
            })
            .unwrap();
    }
}

/// The words of a text, by hand from the patterns.
#[test]
fn families_cut_as_their_patterns_say() {
    let check = |name: &str, text: &str, expected: &[&str]| {
        let cut = by_name(name).unwrap().cut().unwrap();
        assert_eq!(cut.words(text), expected, "{name} {text:?}");
    };
    // Cases, and contractions that stay with their word.
    check("gpt-4o", "fooBar's I'll", &["foo", "Bar's", " I'll"]);
    check("gpt-4o", "ÉCOLEétÉ", &["ÉCOLEét", "É"]);
    check("tekken", "fooBar's", &["foo", "Bar", "'s"]);
    // Threes from the first, from the last, and single digits.
    check("gpt-4o", "1234567", &["123", "456", "7"]);
    check("deepseek-v3", "x1234567", &["x", "123", "456", "7"]);
    check("tekken", "123", &["1", "2", "3"]);
    check(
        "tiny_aya",
        "1234567 1234ab",
        &["1", "234", "567", " ", "123", "4", "ab"],
    );
    check("superbpe", "n=1234567!", &["n=", "1", "234", "567", "!"]);
    check("afmoe", "a  1234", &["a", "  ", "1", "234"]);
    check("falcon", "12345", &["123", "45"]);
    // Marks are of the word, or not.
    check("gpt-4o", "नमस्ते", &["नमस्ते"]);
    check("qwen35", "नमस्ते", &["नमस्ते"]);
    check("qwen2", "नमस्", &["नमस", "\u{94d}"]);
    // Scripts.
    check("deepseek-v3", "漢字kana", &["漢字", "kana"]);
    check("kimi-k2", "漢字abc", &["漢字", "abc"]);
    check("gpt-4o", "漢字Abc", &["漢字Abc"]);
    check("youtu", "가나다abc", &["가나다", "abc"]);
    // Whitespace and line breaks.
    check(
        "gpt-4o",
        "a   b\n\n  c",
        &["a", "  ", " b", "\n\n", " ", " c"],
    );
    check("gpt-4o", "://\n\nx", &["://\n\n", "x"]);
    check("seed-coder", "://\n\nx", &["://", "\n\n", "x"]);
    check("bailingmoe", "a\n\nb", &["a", "\n\n", "b"]);
    check("deepseek-llm", "a\n\nb  ", &["a", "\n", "\n", "b", "  "]);
    check("laguna", "a \n\n b", &["a", " ", "\n\n", " b"]);
    check(
        "jais-2",
        &format!("{}x", " ".repeat(9)),
        &["        ", " x"],
    );
    check("default", "a, 12345", &["a", ",", " ", "123", "45"]);
}

#[test]
fn names_have_the_settings_of_their_models() {
    let all: Vec<&str> = names().collect();
    let mut unique = all.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), all.len(), "a name is of one group");
    assert!(ADDING_BOS.iter().all(|name| all.contains(name)));
    let settings = |name: &str| {
        let found = by_name(name).unwrap();
        (found.ignores_merges, found.adds_bos)
    };
    assert_eq!(settings("llama-bpe"), (true, true));
    assert_eq!(settings("glm4"), (true, false));
    assert_eq!(settings("dbrx"), (false, false));
    assert_eq!(settings("tekken"), (true, true));
    assert_eq!(settings("chameleon"), (false, true));
    // Not of bytes.
    for name in ["gemma4", "whitespace", "mmbert", "sarvam-moe", "", "GPT-2"] {
        assert_eq!(by_name(name), None);
    }
}

/// What takes an engine that backtracks the square of the length, or more.
#[test]
fn long_runs_take_linear_time() {
    for (names, words, _) in GROUPS {
        let Words::Steps(sources) = words else {
            continue;
        };
        let cut = Cut::of_sources(sources).unwrap();
        for run in ["A", " ", "7", "-", "漢", "a ", " \n", "'"] {
            let text = run.repeat(20_000);
            assert_eq!(cut.words(&text).concat(), text, "{names:?} {run:?}");
        }
    }
}
