//! Encoders against sentence-transformers, and their thread. `tests/goldens/encoders/make.py` made
//! the goldens.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::FutureExt;
use ponder::encoding::{
    EncoderKind, EncoderOptions, EncodingError, Limit, Sequence, ServedEncoder, WorkerOptions,
};
use ponder::model::Pooling;
use ponder::model::catalogue::{Entry, Source, pull};
use ponder::model::encoder::normalise;
use ponder::text::TokenizerError;
use serde::Deserialize;

use crate::support::{Silent, golden};

const OPTIONS: EncoderOptions = EncoderOptions {
    num_threads: 2,
    pooling: None,
    worker: WorkerOptions {
        max_queued: 4096,
        is_shared: false,
    },
};

pub fn folder(name: &str) -> PathBuf {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/encoders");
    goldens.join(name)
}

/// A tiny random encoder or cross-encoder.
pub fn tiny(name: &str) -> ServedEncoder {
    ServedEncoder::load(name, &folder(name), OPTIONS).unwrap()
}

#[derive(Deserialize)]
struct Embedded {
    texts: Vec<String>,
    num_tokens: Vec<usize>,
    vectors: Vec<Vec<f32>>,
}

fn run(encoder: &ServedEncoder, sequences: Vec<Sequence>) -> Vec<Vec<f32>> {
    let answer = encoder.handle.run(sequences, 0, None);
    futures::executor::block_on(answer).unwrap()
}

fn cut(encoder: &ServedEncoder, text: &str) -> Sequence {
    let limit = Limit::Cut(encoder.max_len);
    encoder
        .tokenizer
        .encode(text, true, limit, &|| true)
        .unwrap()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
    products.sum()
}

/// Tokens, and the vectors of all texts in one batch and of each alone.
fn check(encoder: &ServedEncoder, expected: &Embedded) {
    let texts = expected.texts.iter();
    let sequences: Vec<Sequence> = texts.map(|text| cut(encoder, text)).collect();
    let lens: Vec<usize> = sequences.iter().map(|it| it.token_ids.len()).collect();
    assert_eq!(lens, expected.num_tokens);
    let together = run(encoder, sequences.clone());
    for (index, sequence) in sequences.into_iter().enumerate() {
        let mut vector = run(encoder, vec![sequence]).remove(0);
        assert_eq!(vector, together[index], "the batch changes a vector");
        normalise(&mut vector);
        let wanted = &expected.vectors[index];
        let cosine = dot(&vector, wanted) / (dot(&vector, &vector) * dot(wanted, wanted)).sqrt();
        assert!(cosine > 0.99999, "{}: {cosine}", expected.texts[index]);
        for (actual, wanted) in vector.iter().zip(wanted) {
            assert!((actual - wanted).abs() < 1e-5, "{actual} is not {wanted}");
        }
    }
}

#[test]
fn a_tiny_encoder_makes_the_vectors_of_sentence_transformers() {
    let encoder = tiny("embedder");
    assert_eq!(encoder.kind, EncoderKind::Embedder(Pooling::Cls));
    assert_eq!(encoder.max_len, 24);
    check(
        &encoder,
        &serde_json::from_str(&golden("encoders/embedder/golden.json")).unwrap(),
    );
}

#[test]
fn minilm_makes_the_vectors_of_sentence_transformers() {
    let entry = Entry::find("all-minilm-l6-v2").unwrap();
    let path = pull(&Source::Catalogue(entry), &Silent).expect("the model can be fetched");
    assert!(entry.is_cached());
    let encoder = ServedEncoder::load(entry.name, &path, OPTIONS).unwrap();
    assert_eq!(encoder.kind, EncoderKind::Embedder(Pooling::Mean));
    assert_eq!(encoder.max_len, entry.context);
    let expected = golden("encoders/all-minilm-l6-v2.json");
    check(&encoder, &serde_json::from_str(&expected).unwrap());
}

#[test]
fn a_cross_encoder_gives_the_logits_of_transformers() {
    #[derive(Deserialize)]
    struct Golden {
        pairs: Vec<[String; 2]>,
        logits: Vec<f32>,
    }
    let encoder = tiny("cross-encoder");
    assert_eq!(encoder.kind, EncoderKind::CrossEncoder);
    let expected: Golden =
        serde_json::from_str(&golden("encoders/cross-encoder/golden.json")).unwrap();
    let encode = |pair: &[String; 2]| {
        let texts = pair.each_ref().map(String::as_str);
        let limit = Limit::Cut(encoder.max_len);
        encoder
            .tokenizer
            .encode_pair(texts, limit, &|| true)
            .unwrap()
    };
    let logits = run(&encoder, expected.pairs.iter().map(encode).collect());
    for (logits, wanted) in logits.iter().zip(&expected.logits) {
        assert_eq!(logits.len(), 1);
        assert!((logits[0] - wanted).abs() < 2e-5, "{logits:?} {wanted}");
    }
}

#[test]
fn long_texts_are_refused_or_cut_piece_by_piece() {
    let encoder = tiny("embedder");
    let long = "the capital of France ".repeat(20_000);
    let encode = |limit, may_go_on: &dyn Fn() -> bool| {
        let sequence = encoder.tokenizer.encode(&long, true, limit, may_go_on);
        sequence.map(|sequence| sequence.token_ids)
    };
    let refused = encode(Limit::Refuse(24), &|| true).unwrap_err();
    assert!(matches!(
        refused,
        TokenizerError::TooLong { max_tokens: 24, .. }
    ));
    let kept = encode(Limit::Cut(24), &|| true).unwrap();
    assert_eq!(kept.len(), 24);
    let stopped = encode(Limit::Cut(24), &|| false).unwrap_err();
    assert!(matches!(stopped, TokenizerError::Stopped));
    // Pieces change nothing: they end between words.
    let many = encode(Limit::Cut(usize::MAX), &|| true).unwrap();
    let short = encoder
        .tokenizer
        .encode("the capital of France ", false, Limit::Cut(99), &|| true);
    assert_eq!(many.len(), short.unwrap().token_ids.len() * 20_000 + 2);
}

fn sequence(len: usize) -> Sequence {
    Sequence {
        token_ids: vec![7; len],
        second_from: len,
    }
}

#[test]
fn a_full_queue_refuses_and_the_shared_one_earlier() {
    let options = EncoderOptions {
        worker: WorkerOptions {
            max_queued: 10,
            is_shared: true,
        },
        ..OPTIONS
    };
    let encoder = ServedEncoder::load("e", &folder("embedder"), options).unwrap();
    let run = |count: usize| {
        let sequences = vec![sequence(3); count];
        futures::executor::block_on(encoder.handle.run(sequences, 1, None))
    };
    let full = |waiting, limit| EncodingError::Full { waiting, limit };
    assert_eq!(run(11), Err(full(0, 10)));
    assert_eq!(run(6), Err(full(0, 5)));
    assert_eq!(run(5).unwrap().len(), 5);
    assert_eq!(run(0).unwrap().len(), 0);
}

#[test]
fn who_leaves_takes_nothing_of_the_queue_along() {
    let encoder = tiny("embedder");
    let past = Instant::now();
    let late = encoder.handle.run(vec![sequence(24); 2000], 1, Some(past));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    assert_eq!(runtime.block_on(late), Err(EncodingError::Deadline));
    // Asked once and dropped.
    let mut left = Box::pin(encoder.handle.run(vec![sequence(24); 2000], 1, None));
    assert!(left.as_mut().now_or_never().is_none());
    drop(left);
    assert_eq!(encoder.handle.stats().num_waiting, 0);
    let answered = encoder.handle.run(vec![sequence(24)], 2, None);
    assert_eq!(futures::executor::block_on(answered).unwrap().len(), 1);
    let until = Instant::now() + Duration::from_secs(30);
    while encoder.handle.stats().num_texts == 0 {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    let stats = encoder.handle.stats();
    assert!(stats.num_texts < 4001 && stats.num_batches > 0, "{stats:?}");
}

#[test]
fn what_the_model_cannot_read_ends_its_own_request() {
    let encoder = tiny("embedder");
    for wrong in [
        sequence(0),
        sequence(33),
        Sequence {
            token_ids: vec![u32::MAX],
            second_from: 1,
        },
    ] {
        let answer = futures::executor::block_on(encoder.handle.run(vec![wrong], 0, None));
        assert!(matches!(answer, Err(EncodingError::Input(_))), "{answer:?}");
    }
    assert_eq!(run(&encoder, vec![sequence(32)]).len(), 1);
    assert!(encoder.handle.is_healthy());
}

#[test]
fn folders_that_are_no_encoders_are_told_apart() {
    let copy = tempfile::tempdir().unwrap();
    for file in [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "modules.json",
    ] {
        std::fs::copy(folder("embedder").join(file), copy.path().join(file)).unwrap();
    }
    let refusal = |file: &str, from: &str, to: &str| {
        let path = copy.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let loaded = ServedEncoder::load("e", copy.path(), OPTIONS);
        std::fs::write(&path, text).unwrap();
        loaded.map(drop).unwrap_err().to_string()
    };
    // The module of its pooling was not copied.
    let missing = ServedEncoder::load("e", copy.path(), OPTIONS).map(drop);
    assert!(missing.unwrap_err().to_string().contains("pooling"));
    std::fs::remove_file(copy.path().join("modules.json")).unwrap();
    let loaded = ServedEncoder::load("e", copy.path(), OPTIONS).unwrap();
    assert_eq!(loaded.kind, EncoderKind::Embedder(Pooling::Mean));
    for (file, from, to, told) in [
        ("config.json", "\"bert\"", "\"deberta\"", "deberta"),
        (
            "config.json",
            "\"vocab_size\": 137",
            "\"vocab_size\": 100",
            "word_embeddings",
        ),
        (
            "config.json",
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 3",
            "layer.2",
        ),
        ("tokenizer.json", "[CLS]", "[cls]", "[CLS]"),
    ] {
        let message = refusal(file, from, to);
        assert!(message.contains(told), "{message}");
    }
}
