//! Whole tokenizers with special tokens, of `tokenizer.json` and of SentencePiece's scores.

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A byte-level `tokenizer.json`; `digits` and `word` are merged, `<|a|>` is special, `<b>` is not.
pub(in crate::text) fn byte_level_json() -> Value {
    let mut vocabulary = serde_json::Map::new();
    let mut characters: Vec<(char, u8)> = byte_level::alphabet().iter().collect();
    characters.sort_by_key(|(_, byte)| *byte);
    for (character, byte) in characters {
        vocabulary.insert(character.to_string(), byte.into());
    }
    let merges = [("a", "b"), ("ab", "ab"), ("1", "2"), ("\u{120}", "ab")];
    for (left, right) in merges {
        let id = vocabulary.len();
        vocabulary.insert(format!("{left}{right}"), id.into());
    }
    let added = |id: usize, content: &str, special: bool| {
        json!({"id": id, "content": content, "special": special, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": !special})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(260, "<|a|>", true), added(261, "<b>", false)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges.map(|(left, right)| format!("{left} {right}"))}
    })
}

fn load(json: &Value) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_json(json.to_string().as_bytes())
}

/// The same tokenizer, run by the crate as a whole.
fn foreign(json: &Value) -> Tokenizer {
    let mut json = json.clone();
    json["model"]["unk_token"] = json!("a");
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Sequence", "pretokenizers": [json["pre_tokenizer"].clone()]}]});
    let tokenizer = load(&json).unwrap();
    assert!(matches!(tokenizer.inner.encoder, Encoder::Foreign(_)));
    tokenizer
}

fn within(
    tokenizer: &Tokenizer,
    text: &str,
    parse_special: bool,
    max_tokens: usize,
) -> Result<Vec<u32>, TokenizerError> {
    tokenizer.encode_within(text, true, parse_special, max_tokens, &|| true)
}

fn texts() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "ab",
        " ab",
        "12",
        "7",
        "<|a|>",
        "<b>",
        "<",
        "|",
        "\n",
        "  ",
        "漢字",
        "e\u{301}",
        "\u{301}",
        "🙂",
        "'s",
        "\u{1100}\u{1161}",
    ]);
    prop::collection::vec(part, 0..60).prop_map(|parts| parts.concat())
}

#[test]
fn a_known_pipeline_and_the_crate_agree_about_special_tokens_too() {
    let json = byte_level_json();
    let (ours, foreign) = (load(&json).unwrap(), foreign(&json));
    assert!(matches!(ours.inner.encoder, Encoder::ByteBpe(_)));
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    runner
        .run(&(texts(), any::<bool>()), |(text, parse_special)| {
            let expected = foreign.encode(&text, true, parse_special).unwrap();
            prop_assert_eq!(&ours.encode(&text, true, parse_special).unwrap(), &expected);
            for tokenizer in [&ours, &foreign] {
                let all = within(tokenizer, &text, parse_special, expected.len()).unwrap();
                prop_assert_eq!(&all, &expected);
                if let Some(less) = expected.len().checked_sub(1) {
                    let refused = within(tokenizer, &text, parse_special, less);
                    let is_too_long = matches!(refused, Err(TokenizerError::TooLong { .. }));
                    prop_assert!(is_too_long);
                }
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(ours.encode("<|a|>ab", false, true).unwrap(), [260, 256]);
}

/// Sequences of patterns that are known, and one that is not.
#[test]
fn known_patterns_of_a_file_are_run_in_linear_time() {
    let split = |(source, behavior): (&str, &str)| {
        json!({"type": "Split", "pattern": {"Regex": source}, "behavior": behavior,
            "invert": behavior == "Removed"})
    };
    let o200k = pre_tokenizers::sources("gpt-4o")[0];
    let deepseek = pre_tokenizers::sources("deepseek-v3");
    let isolated: Vec<(&str, &str)> = deepseek.iter().map(|one| (*one, "Isolated")).collect();
    let cases = [
        (vec![(o200k, "Isolated")], true),
        (vec![(o200k, "Removed")], true),
        (isolated.clone(), true),
        (isolated[1..].to_vec(), false),
        (vec![(deepseek[0], "Removed")], false),
        (vec![(r"\p{L}+", "Isolated")], false),
    ];
    for (steps, is_ours) in cases {
        let mut json = byte_level_json();
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": false});
        let steps: Vec<Value> = steps.into_iter().map(split).chain([level]).collect();
        json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps});
        let (ours, foreign) = (load(&json).unwrap(), foreign(&json));
        assert_eq!(matches!(ours.inner.encoder, Encoder::ByteBpe(_)), is_ours);
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        runner
            .run(&texts(), |text| {
                let expected = foreign.encode(&text, true, true).unwrap();
                prop_assert_eq!(&ours.encode(&text, true, true).unwrap(), &expected);
                Ok(())
            })
            .unwrap();
        let long = "=".repeat(100_000);
        assert_eq!(ours.encode(&long, true, true).is_ok(), is_ours);
    }
}

/// As `lstrip` and `rstrip` of added tokens say.
#[test]
fn special_tokens_take_whitespace_beside_them_along() {
    let mut json = byte_level_json();
    json["added_tokens"][0]["rstrip"] = json!(true);
    json["added_tokens"][1]["lstrip"] = json!(true);
    let tokenizer = load(&json).unwrap();
    let ids = |text: &str| tokenizer.encode(text, false, true).unwrap();
    assert_eq!(ids("<|a|> \n\u{3000}ab"), [260, 256]);
    assert_eq!(ids("ab <|a|>"), [256, 32, 260]);
    assert_eq!(ids("ab \t<b> "), [256, 261, 32]);
    assert_eq!(ids("<|a|>  <b>  <|a|><|a|> "), [260, 261, 32, 32, 260, 260]);
    // Without control tokens, no whitespace belongs to one.
    assert_eq!(tokenizer.encode("> ", false, false).unwrap(), [62, 32]);
}

#[test]
fn texts_of_special_tokens_alone_are_limited_too() {
    let tokenizer = load(&byte_level_json()).unwrap();
    let text = "<|a|>".repeat(100_000);
    assert_eq!(
        within(&tokenizer, &text, true, 100_000).unwrap().len(),
        100_000
    );
    assert!(within(&tokenizer, &text, true, 99_999).is_err());
    let stopped = tokenizer.encode_within(&text, true, true, usize::MAX, &|| false);
    assert!(matches!(stopped, Err(TokenizerError::Stopped)));
}

#[test]
fn a_foreign_pipeline_refuses_by_bytes_before_any_work() {
    let tokenizer = foreign(&byte_level_json());
    let text = "7".repeat(4 << 20);
    let refused = within(&tokenizer, &text, false, 10_000);
    assert!(matches!(refused, Err(TokenizerError::TooLong { .. })));
    let stopped = tokenizer.encode_within("7", true, true, 9, &|| false);
    assert!(matches!(stopped, Err(TokenizerError::Stopped)));
}

#[test]
fn ids_and_merges_that_do_not_fit_are_refused() {
    let good = byte_level_json();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut json = good.clone();
        change(&mut json);
        load(&json)
    };
    assert!(with(&|_| {}).is_ok());
    let bad: [&dyn Fn(&mut Value); 6] = [
        &|json| json["model"]["vocab"]["ab"] = json!(1_000_000_000),
        &|json| json["model"]["vocab"]["ab"] = json!(u64::MAX),
        &|json| json["model"]["vocab"]["ab"] = json!(-1),
        &|json| json["model"]["vocab"]["ab"] = json!(97),
        &|json| json["model"]["merges"] = json!(["a missing"]),
        &|json| json["model"]["merges"] = json!([["a", "b", "c"]]),
    ];
    for (index, change) in bad.into_iter().enumerate() {
        let result = with(change);
        assert!(
            matches!(result, Err(TokenizerError::Invalid(_))),
            "number {index}: {result:?}"
        );
    }
    let many: Vec<Value> = (0..70_000)
        .map(|index| {
            json!({"id": 260 + index, "content": format!("<{index}>"), "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect();
    let refused = with(&|json| json["added_tokens"] = json!(many));
    assert!(matches!(refused, Err(TokenizerError::Invalid(_))));
}

/// A pattern that looks at each space of a run from each of it, and one that the regex engine gives up on.
#[test]
fn patterns_of_a_file_cannot_take_for_ever() {
    let with = |pattern: &str| {
        let mut json = byte_level_json();
        json["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": pattern},
            "behavior": "Isolated", "invert": false});
        load(&json).unwrap()
    };
    let spaces = format!("{}x", " ".repeat(1 << 20));
    let refused = with(r"\s+$").encode(&spaces, false, false);
    assert!(matches!(refused, Err(TokenizerError::Encode(_))));
    let text = format!("{}acbc", "ab".repeat(60));
    let powers = with(r"(a|b|ab)*bc").encode(&text, false, false);
    assert!(matches!(powers, Err(TokenizerError::Encode(_))));
    assert!(with(r"\s+$").encode("a  b ", false, false).is_ok());
}

/// The plain definition: the best pair first, the leftmost of equals, over and over.
fn merged_plainly(model: &SentencePiece, text: &str) -> Vec<u32> {
    let mut symbols: Vec<String> = text
        .replace(' ', "\u{2581}")
        .chars()
        .map(String::from)
        .collect();
    loop {
        let score = |index: usize| {
            let id = model
                .ids
                .get(format!("{}{}", symbols[index], symbols[index + 1]))?;
            Some((model.scores[id as usize], index))
        };
        let pairs = (0..symbols.len().saturating_sub(1)).filter_map(score);
        let best = pairs.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        let Some((_, index)) = best else { break };
        let right = symbols.remove(index + 1);
        symbols[index].push_str(&right);
    }
    let mut ids = Vec::new();
    for symbol in symbols {
        match model.ids.get(&symbol) {
            Some(id) => ids.push(id),
            None => ids.extend(
                symbol
                    .bytes()
                    .map(|byte| model.byte_ids[usize::from(byte)].unwrap()),
            ),
        }
    }
    ids
}

fn sentencepiece() -> SentencePiece {
    let mut ids: HashMap<String, u32> = (0..256)
        .map(|byte| (format!("<0x{byte:02X}>"), byte))
        .collect();
    let mut scores = vec![0.0; 256];
    let tokens = [
        "\u{2581}",
        "a",
        "b",
        "1",
        "漢",
        "\u{2581}a",
        "ab",
        "\u{2581}\u{2581}",
        "\u{2581}ab",
        "aa",
        "abab",
    ];
    for (index, token) in tokens.into_iter().enumerate() {
        ids.insert(token.to_owned(), ids.len() as u32);
        scores.push(-((index * 7 % 11) as f32));
    }
    let ids = Arc::new(Vocabulary::from(&ids));
    let byte_ids = std::array::from_fn(|byte| Some(byte as u32));
    SentencePiece {
        weights: SentencePiece::weights(&ids, &byte_ids, None),
        ids,
        scores,
        byte_ids,
        unknown_id: None,
        add_space_prefix: false,
    }
}

#[test]
fn sentencepiece_merges_as_defined_within_its_limit() {
    let model = sentencepiece();
    let text = prop::collection::vec(
        prop::sample::select(vec![" ", "a", "b", "ab", "1", "漢", "\u{2581}", "é"]),
        0..80,
    );
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    runner
        .run(
            &(text.prop_map(|parts| parts.concat()), 1..64_usize),
            |(text, piece)| {
                let encode = |max_tokens| {
                    let is_wanted = || true;
                    let mut watch = Watch::new(text.len(), max_tokens, &is_wanted, piece);
                    let mut ids = Vec::new();
                    let result = model.encode(&text, true, &mut watch, &mut ids);
                    result.map(|()| ids)
                };
                let expected = merged_plainly(&model, &text);
                prop_assert_eq!(&encode(expected.len()).unwrap(), &expected);
                prop_assert!(expected.is_empty() || encode(expected.len() - 1).is_err());
                Ok(())
            },
        )
        .unwrap();
    let long = "ab ".repeat(1 << 20);
    let is_wanted = || false;
    let mut watch = Watch::new(long.len(), usize::MAX, &is_wanted, PIECE_BYTES);
    let stopped = model.encode(&long, true, &mut watch, &mut Vec::new());
    assert!(matches!(stopped, Err(TokenizerError::Stopped)));
}

/// Texts that users wrote hold no control tokens, whatever stands around them.
#[test]
fn guarded_texts_are_text() {
    let marker = '\u{fdd0}';
    for tokenizer in [
        load(&byte_level_json()).unwrap(),
        foreign(&byte_level_json()),
    ] {
        let plain = |text: &str| tokenizer.encode(text, false, false).unwrap();
        let guarded = |text: &str| {
            tokenizer
                .encode_guarded(text, marker, usize::MAX, &|| true)
                .unwrap()
        };
        for text in [
            "",
            "a",
            "<|a|>",
            "x<|a|>y",
            "<|a|><|a|>",
            "<<|a|>>",
            "é<|a|>😀",
            "<b>",
            "<|",
            "abab<",
        ] {
            let safe = tokenizer.guard(text, marker);
            assert_eq!(safe.replace(marker, ""), text);
            assert_eq!(guarded(&safe), plain(text), "{text}");
        }
        let special = tokenizer.encode("<|a|>", false, true).unwrap();
        assert_eq!(
            guarded("<|a|>"),
            special,
            "what the template writes is read"
        );
        // A text cannot begin what the template, or another text, ends.
        for (start, end) in [("<", "|a|>"), ("x<|", "a|>"), ("<|a|", ">"), ("<<|a", "|>")] {
            let text = format!("{}{end}", tokenizer.guard(start, marker));
            let ids = guarded(&text);
            assert!(!ids.contains(&special[0]), "{start}{end}: {ids:?}");
            assert_eq!(tokenizer.decode(&ids, false), format!("{start}{end}"));
        }
        assert_eq!(tokenizer.guard("plain text", marker), "plain text");
    }
}
