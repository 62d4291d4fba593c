//! Small vocabularies in GGUF metadata.

use super::super::byte_level;
use super::super::pre_tokenizers::names;
use crate::model::ModelFiles;
use crate::model::gguf;
use crate::model::testing::GgufWriter;
use crate::text::{Tokenizer, TokenizerError};

/// A token of each byte, and then `more`; `merges` as a file has them.
fn vocabulary(
    pre: Option<&str>,
    more: &[&str],
    merges: &[&str],
) -> Result<Tokenizer, TokenizerError> {
    let mut characters: Vec<(char, u8)> = byte_level::alphabet().iter().collect();
    characters.sort_by_key(|(_, byte)| *byte);
    let bytes: Vec<String> = characters.iter().map(|(one, _)| one.to_string()).collect();
    let tokens = bytes.iter().map(String::as_str).chain(more.iter().copied());
    let tokens: Vec<&str> = tokens.collect();
    let mut writer = GgufWriter::new();
    writer.string("tokenizer.ggml.model", "gpt2");
    if let Some(pre) = pre {
        writer.string("tokenizer.ggml.pre", pre);
    }
    writer.strings("tokenizer.ggml.tokens", &tokens);
    writer.strings("tokenizer.ggml.merges", merges);
    writer.u32("tokenizer.ggml.bos_token_id", 0);
    writer.u32("tokenizer.ggml.eos_token_id", 1);
    let (metadata, _) = gguf::parse(&writer.finish()).unwrap();
    Tokenizer::from_metadata(&metadata)
}

/// Found by the fuzz target: an unknown character became a token that is none.
#[test]
fn ids_outside_of_the_vocabulary_are_nobodys() {
    let read = |unknown_id: u32| {
        let mut writer = GgufWriter::new();
        writer.string("tokenizer.ggml.model", "llama");
        writer.strings("tokenizer.ggml.tokens", &["<unk>", "a", "\u{2581}"]);
        writer.f32s("tokenizer.ggml.scores", &[0.0; 3]);
        writer.u32("tokenizer.ggml.unknown_token_id", unknown_id);
        writer.u32("tokenizer.ggml.bos_token_id", 63_232);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, writer.finish()).unwrap();
        let files = ModelFiles::open(&path).unwrap();
        let tokenizer = Tokenizer::from_files(&files).unwrap();
        tokenizer.encode("aé", true, false)
    };
    // Two bytes that no token stands for.
    assert_eq!(read(0).unwrap(), [2, 1, 0, 0]);
    assert_eq!(read(63_232).unwrap(), [2, 1]);
}

#[test]
fn every_pre_tokenizer_reads_and_keeps_texts() {
    let text = "Don't: 12345 fooBÀr\r\n\n   नमस्ते 漢字かな 가나 <x>…  \t🙂\u{85}e\u{301} ";
    for name in names() {
        let tokenizer = vocabulary(Some(name), &["aa"], &["a a"]).unwrap();
        let ids = tokenizer.encode(text, false, true).unwrap();
        assert_eq!(tokenizer.decode(&ids, false), text, "{name}");
        let limited = tokenizer.encode_within(text, false, true, ids.len() - 1, &|| true);
        assert!(matches!(limited, Err(TokenizerError::TooLong { .. })));
    }
}

/// Ids of merges tell where the words of a text end.
#[test]
fn merges_stay_within_words() {
    let more = [
        "12",
        "123",
        "1234",
        "oB",
        "s'",
        "'s",
        "\u{120}a",
        "\u{120}\u{120}",
        "ab",
    ];
    let merges = [
        "1 2",
        "12 3",
        "123 4",
        "o B",
        "s '",
        "' s",
        "\u{120} a",
        "\u{120} \u{120}",
        "a b",
    ];
    let ids = |pre: Option<&str>, text: &str| {
        let tokenizer = vocabulary(pre, &more, &merges).unwrap();
        tokenizer.encode(text, false, false).unwrap()
    };
    let (space, one, two, three, four) = (32, 49, 50, 51, 52);
    let first = 256;
    assert_eq!(ids(Some("gpt-2"), "1234"), [first + 2]);
    assert_eq!(ids(Some("gpt-4o"), "1234"), [first + 1, four]);
    assert_eq!(ids(Some("tekken"), "1234"), [one, two, three, four]);
    assert_eq!(ids(Some("tiny_aya"), "12123"), [first, first + 1]);
    assert_eq!(ids(Some("gpt-4o"), "oB"), [111, 66]);
    assert_eq!(ids(Some("dbrx"), "oB"), [first + 3]);
    // A contraction is of its word, or one of its own.
    assert_eq!(ids(Some("gpt-4o"), "s's"), [first + 4, 115]);
    assert_eq!(ids(Some("dbrx"), "s's"), [115, first + 5]);
    assert_eq!(ids(Some("dbrx"), "  a"), [space, first + 6]);
    assert_eq!(ids(Some("dbrx"), "   a"), [first + 7, first + 6]);
    // Without a name, numbers come in threes and spaces apart.
    assert_eq!(ids(None, " 1234"), [space, first + 1, four]);
}

/// `ab` is a token that no merge makes.
#[test]
fn words_that_are_tokens_need_no_merges_where_the_model_says_so() {
    let ids = |pre: &str| {
        let tokenizer = vocabulary(Some(pre), &["ab"], &[]).unwrap();
        tokenizer.encode("ab", true, false).unwrap()
    };
    assert_eq!(ids("glm4"), [256]);
    assert_eq!(ids("chatglm-bpe"), [97, 98]);
    assert_eq!(ids("llama-bpe"), [0, 256]);
    assert_eq!(ids("tekken"), [0, 256]);
    assert_eq!(ids("gpt-4o"), [97, 98]);
}

#[test]
fn odd_merges_are_read_or_refused() {
    // The first of a pair may be a space.
    let spaces = vocabulary(Some("gpt-4o"), &[" ", " a", "漢", "漢a"], &["  a", "漢 a"]);
    assert_eq!(spaces.unwrap().encode("a", false, false).unwrap(), [97]);
    for merge in ["", " ", "a", "é", "a b", " a", "a ", "a  b"] {
        let refused = vocabulary(Some("gpt-4o"), &[], &[merge]);
        assert!(
            matches!(refused, Err(TokenizerError::Invalid(_))),
            "{merge:?}"
        );
    }
}

#[test]
fn what_is_not_supported_names_what_is() {
    let refused = vocabulary(Some("gemma4"), &[], &[])
        .unwrap_err()
        .to_string();
    assert!(refused.contains("\"gemma4\"") && refused.contains("gpt-4o, "));
    for model in ["gemma4", "bert", "t5", "rwkv", "plamo2", "hybriddna"] {
        let mut writer = GgufWriter::new();
        writer.string("tokenizer.ggml.model", model);
        writer.strings("tokenizer.ggml.tokens", &["a"]);
        let (metadata, _) = gguf::parse(&writer.finish()).unwrap();
        let refused = Tokenizer::from_metadata(&metadata).unwrap_err().to_string();
        assert!(refused.contains(model) && refused.contains("byte-level BPE"));
    }
}

#[test]
fn ends_of_answers_are_found_by_name() {
    let tokens = [
        "<|return|>",
        "<|end|>",
        "<|call|>",
        "<|channel|>",
        "<|endoftext|>",
    ];
    let tokenizer = vocabulary(Some("gpt-4o"), &tokens, &[]).unwrap();
    assert_eq!(tokenizer.end_of_generation_ids(), [1, 256, 258, 260]);
    // They are read as control tokens, on request alone.
    assert_eq!(tokenizer.encode("<|call|>", false, true).unwrap(), [258]);
    assert!(tokenizer.encode("<|call|>", false, false).unwrap().len() > 1);
    let tokenizer = vocabulary(Some("dbrx"), &["<|end|>", "<｜end▁of▁sentence｜>"], &[]).unwrap();
    assert_eq!(tokenizer.end_of_generation_ids(), [1, 256, 257]);
}

/// As the `rstrip` of Phi-3's `tokenizer.json`, which its GGUF files do not have.
#[test]
fn marks_of_phi3_take_the_whitespace_behind_them_along() {
    let ids = |architecture: &str, text: &str| {
        let mut writer = GgufWriter::new();
        writer.string("general.architecture", architecture);
        writer.string("tokenizer.ggml.model", "llama");
        let tokens = ["<unk>", "<s>", "<|user|>", "a", "\u{2581}", "<0x0A>"];
        writer.strings("tokenizer.ggml.tokens", &tokens);
        writer.f32s("tokenizer.ggml.scores", &[0.0; 6]);
        writer.i32s("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1, 6]);
        let (metadata, _) = gguf::parse(&writer.finish()).unwrap();
        let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
        tokenizer.encode(text, false, true).unwrap()
    };
    // A text begins with a space, and so does what is behind a mark.
    assert_eq!(ids("phi3", "a <|user|>\n a"), [4, 3, 4, 2, 4, 3]);
    assert_eq!(ids("phi3", "<s>\na"), [1, 4, 5, 3]);
    assert_eq!(ids("llama", "a <|user|>\n a"), [4, 3, 4, 2, 4, 5, 4, 3]);
}
