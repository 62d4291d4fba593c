//! Token ids and next-token distributions against llama.cpp (see `tests/goldens/make.py`).

use std::collections::HashMap;
use std::process::Command;

use ponder::model::{CausalLm, ForwardBatch, SequenceRows};
use ponder::text::Tokenizer;
use serde::Deserialize;

use crate::support::{golden, load_model, models};

/// Below this difference of logprobs the reference's first two tokens count as tied: both engines
/// quantise activations to 8 bits, each in its own block size.
const TIE_NATS: f32 = 0.25;
/// Bounds on KL(reference, ours) over the reference's 40 likeliest tokens and the rest as one.
const KL_MEAN_MAX: f64 = 0.01;
const KL_MAX: f64 = 0.15;
const BLOCK_SIZE: usize = 16;

#[test]
fn token_ids_equal_the_reference() {
    let corpus: Vec<String> = serde_json::from_str(&golden("corpus.json")).unwrap();
    assert!(corpus.len() >= 2000);
    for (entry, files) in models() {
        let tokenizer = Tokenizer::from_files(&files).unwrap();
        let text = golden(&format!("{}.tokens.json", entry.name));
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

/// KL(reference, ours) over the reference's likeliest tokens and the rest as one.
pub fn kl_divergence(top: &[(u32, f32)], logits: &[f32]) -> f64 {
    divergence_of(top, &logprobs(logits))
}

fn divergence_of(top: &[(u32, f32)], ours: &[f64]) -> f64 {
    let mut divergence = 0.0;
    let (mut rest, mut our_rest) = (1.0_f64, 1.0_f64);
    for (token_id, logprob) in top {
        let (p, q) = (f64::from(*logprob).exp(), ours[*token_id as usize]);
        divergence += p * (f64::from(*logprob) - q);
        rest -= p;
        our_rest -= q.exp();
    }
    if rest > 1e-6 {
        divergence += rest * (rest / our_rest.max(1e-9)).ln();
    }
    divergence
}

fn logprobs(logits: &[f32]) -> Vec<f64> {
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

/// Logprobs of the token after `prompt`.
fn next_logprobs(model: &mut dyn CausalLm, prompt: &[u32]) -> Vec<f64> {
    let num_blocks = prompt.len().div_ceil(BLOCK_SIZE) as u32;
    let block_table: Vec<u32> = (0..num_blocks).collect();
    let positions: Vec<u32> = (0..prompt.len() as u32).collect();
    let rows = SequenceRows {
        block_table: &block_table,
        num_rows: prompt.len(),
        context_len: prompt.len(),
        leaves: &[],
    };
    let batch = ForwardBatch {
        token_ids: prompt,
        positions: &positions,
        slot_mapping: &positions,
        sequences: &[rows],
        adapters: &[None],
        steering: &[],
        logits_rows: &[prompt.len() as u32 - 1],
        skip: None,
        local: None,
    };
    let mut logits = Vec::new();
    model.forward(&batch, &mut logits).unwrap();
    logprobs(&logits)
}

#[test]
fn next_token_distributions_equal_the_reference_within_bounds() {
    for (entry, files) in models() {
        let text = golden(&format!("{}.logits.json", entry.name));
        let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
        assert!(cases.len() >= 50);
        let mut model = load_model(&files, 4096);
        model
            .allocate_kv_cache(4096 / BLOCK_SIZE, BLOCK_SIZE, 4096)
            .unwrap();
        let mut divergences = Vec::new();
        for (index, case) in cases.iter().enumerate() {
            let ours = next_logprobs(model.as_mut(), &case.prompt);
            let divergence = divergence_of(&case.top, &ours);
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

/// What llama-perplexity says of `text.txt` (context 512).
#[derive(Deserialize)]
struct Perplexity {
    /// For the same GGUF; its int8 activations have blocks of 256 where ours have 32.
    same_file: f64,
    /// For the same weights as f32 (`dequantize.py`), so without activation rounding.
    f32: f64,
}

/// Largest relative differences from the reference.
const SAME_FILE_TOLERANCE: f64 = 0.006;
const F32_TOLERANCE: f64 = 0.005;

#[test]
fn perplexity_of_a_text_equals_the_reference() {
    let expected: HashMap<String, Perplexity> =
        serde_json::from_str(&golden("perplexity.json")).unwrap();
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/text.txt");
    for (entry, _) in models() {
        let output = Command::new(env!("CARGO_BIN_EXE_ponder"))
            .args(["bench", "perplexity", entry.name, "--json", "--file", text])
            .args(["--kv-cache-memory", "64M"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let ours = result["perplexity"].as_f64().unwrap();
        let expected = &expected[entry.name];
        let same_file = ours / expected.same_file - 1.0;
        let f32 = ours / expected.f32 - 1.0;
        println!("{}: {ours:.4}, {same_file:+.5} and {f32:+.5}", entry.name);
        assert!(
            same_file.abs() < SAME_FILE_TOLERANCE && f32.abs() < F32_TOLERANCE,
            "{}: perplexity {ours} is off by {same_file} (same file) and {f32} (f32)",
            entry.name
        );
    }
}
