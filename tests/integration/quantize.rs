//! `--quantize`: a model whose weights become blocks while it loads.

use std::process::Command;

use ponder::model::{CausalLm, LoadOptions, ModelFiles, Quantization, load_decoder};

use super::moe::{folder, with_batch};

/// Weights' bytes and the logits of some tokens, `[rows, vocab_size]`.
fn run(name: &str, quantize: Option<Quantization>) -> (usize, Vec<f32>) {
    let files = ModelFiles::open(&folder(name)).unwrap();
    let options = LoadOptions {
        num_threads: 2,
        quantize,
        ..LoadOptions::default()
    };
    let mut model = load_decoder(&files, options).unwrap();
    model.allocate_kv_cache(8, 16, 64).unwrap();
    let token_ids: Vec<u32> = (1..20).map(|i| i * 7 % 50).collect();
    let mut logits = Vec::new();
    with_batch(&token_ids, |batch| {
        model.forward(batch, &mut logits).unwrap()
    });
    (model.info().weight_bytes, logits)
}

/// The share of `a`'s square that `b` misses.
fn relative_error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let missed: f32 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    missed / a.iter().map(|a| a * a).sum::<f32>()
}

/// Experts, a shared expert, attention and the head; the router keeps choosing the same.
#[test]
fn a_quantised_model_is_smaller_and_says_nearly_the_same() {
    for name in ["olmoe", "qwen3_moe", "deepseek_v2"] {
        let (bytes, logits) = run(name, None);
        for kind in Quantization::ALL {
            let (fewer, near) = run(name, Some(kind));
            assert!(fewer < bytes, "{name} {}: {fewer} of {bytes}", kind.name());
            let error = relative_error(&logits, &near);
            assert!(error > 0.0, "{name} {}: nothing changed", kind.name());
            assert!(error < 0.01, "{name} {}: {error}", kind.name());
            // Twice the same.
            assert_eq!(run(name, Some(kind)).1, near);
        }
    }
}

#[test]
fn an_unknown_type_is_refused_by_name() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
    command.arg("serve").arg(folder("olmoe"));
    let output = command.args(["--quantize", "q3_k"]).output().unwrap();
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("choose one of q8_0, q4_k"), "{told}");
}
