//! Token ids and next-token distributions against llama.cpp (see `tests/goldens/make.py`).

use std::path::PathBuf;

use ponder::model::catalogue::{CATALOGUE, DEFAULT_MODEL, Entry, Progress, Source, pull};
use ponder::model::{CausalLm, ForwardBatch, LoadOptions, ModelFiles, SequenceRows, load};
use ponder::text::Tokenizer;
use serde::Deserialize;

/// Below this difference of logprobs the reference's first two tokens count as tied: both engines
/// quantise activations to 8 bits, each in its own block size.
const TIE_NATS: f32 = 0.25;
/// Bounds on KL(reference, ours) over the reference's 40 likeliest tokens and the rest as one.
const KL_MEAN_MAX: f64 = 0.01;
const KL_MAX: f64 = 0.15;
const BLOCK_SIZE: usize = 16;

struct Silent;

impl Progress for Silent {
    fn report(&self, _: u64, _: u64, _: &str) {}
}

fn golden(name: &str) -> Option<String> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    std::fs::read_to_string(folder.join(name)).ok()
}

/// The models to test: the default one (pulled when missing); with PONDER_TEST_ALL_MODELS=1 all that
/// are cached.
fn models() -> Vec<(&'static Entry, ModelFiles)> {
    let all = std::env::var_os("PONDER_TEST_ALL_MODELS").is_some();
    CATALOGUE
        .iter()
        .filter(|entry| entry.name == DEFAULT_MODEL || (all && entry.is_cached()))
        .map(|entry| {
            let path = pull(&Source::Catalogue(entry), &Silent).expect("the model can be fetched");
            (entry, ModelFiles::open(&path).expect("the model opens"))
        })
        .collect()
}

#[test]
fn token_ids_equal_the_reference() {
    let corpus: Vec<String> =
        serde_json::from_str(&golden("corpus.json").expect("the corpus is there")).unwrap();
    assert!(corpus.len() >= 2000);
    for (entry, files) in models() {
        let tokenizer = Tokenizer::from_files(&files).unwrap();
        let Some(text) = golden(&format!("{}.tokens.json", entry.name)) else {
            panic!("no golden for {}", entry.name);
        };
        let expected: Vec<Vec<u32>> = serde_json::from_str(&text).unwrap();
        assert_eq!(expected.len(), corpus.len());
        let mut wrong = Vec::new();
        for (text, expected) in corpus.iter().zip(&expected) {
            let actual = tokenizer.encode(text, false, true).unwrap();
            if actual != *expected {
                wrong.push(format!("{text:?}\n  {actual:?}\n  {expected:?}"));
            }
        }
        let count = wrong.len();
        wrong.truncate(8);
        assert!(
            count == 0,
            "{}: {count} strings differ:\n{}",
            entry.name,
            wrong.join("\n")
        );
    }
}

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    /// `(token id, logprob)`, descending.
    top: Vec<(u32, f32)>,
}

/// Logprobs of the token after `prompt`.
fn next_logprobs(model: &mut dyn CausalLm, prompt: &[u32]) -> Vec<f64> {
    let num_blocks = prompt.len().div_ceil(BLOCK_SIZE) as u32;
    let block_table: Vec<u32> = (0..num_blocks).collect();
    let positions: Vec<u32> = (0..prompt.len() as u32).collect();
    let rows = SequenceRows {
        block_table: &block_table,
        num_rows: prompt.len(),
        context_len: prompt.len(),
    };
    let batch = ForwardBatch {
        token_ids: prompt,
        positions: &positions,
        slot_mapping: &positions,
        sequences: &[rows],
        logits_rows: &[prompt.len() as u32 - 1],
    };
    let mut logits = Vec::new();
    model.forward(&batch, &mut logits).unwrap();
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - max).exp())
        .sum();
    logits
        .iter()
        .map(|logit| f64::from(logit - max) - sum.ln())
        .collect()
}

#[test]
fn next_token_distributions_equal_the_reference_within_bounds() {
    for (entry, files) in models() {
        let text = golden(&format!("{}.logits.json", entry.name)).expect("a golden per model");
        let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
        assert!(cases.len() >= 50);
        let options = LoadOptions {
            num_threads: 2,
            max_model_len: Some(4096),
        };
        let mut model = load(&files, options).unwrap();
        model
            .allocate_kv_cache(4096 / BLOCK_SIZE, BLOCK_SIZE, 4096)
            .unwrap();
        let mut divergences = Vec::new();
        for (index, case) in cases.iter().enumerate() {
            let ours = next_logprobs(model.as_mut(), &case.prompt);
            let mut divergence = 0.0;
            let (mut rest, mut our_rest) = (1.0_f64, 1.0_f64);
            for (token_id, logprob) in &case.top {
                let (p, q) = (f64::from(*logprob).exp(), ours[*token_id as usize]);
                divergence += p * (f64::from(*logprob) - q);
                rest -= p;
                our_rest -= q.exp();
            }
            if rest > 1e-6 {
                divergence += rest * (rest / our_rest.max(1e-9)).ln();
            }
            divergences.push(divergence);
            let best = (0..ours.len())
                .max_by(|a, b| ours[*a].total_cmp(&ours[*b]))
                .unwrap();
            let is_tie = case.top[0].1 - case.top[1].1 < TIE_NATS;
            assert!(
                is_tie || best as u32 == case.top[0].0,
                "{} prompt {index}: {best} is not {:?} (KL {divergence})",
                entry.name,
                &case.top[..2]
            );
        }
        let mean = divergences.iter().sum::<f64>() / divergences.len() as f64;
        let max = divergences.iter().copied().fold(0.0, f64::max);
        println!("{}: KL mean {mean:.5}, max {max:.5}", entry.name);
        assert!(
            mean <= KL_MEAN_MAX && max <= KL_MAX,
            "{}: KL mean {mean}, max {max}",
            entry.name
        );
    }
}
