//! Architectures against transformers' implementations (see `tests/goldens/families/make.py`),
//! whatever steps a sequence is cut into and whatever lies beside it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use ponder::model::{
    CausalLm, Decoder, ForwardBatch, LoadOptions, ModelConfig, ModelFiles, SequenceRows,
};
use serde::Deserialize;

const BLOCK_SIZE: usize = 16;
const NUM_BLOCKS: usize = 16;
/// Largest difference of a logit, of the largest: the KV cache holds 16-bit floats.
const LOGITS_TOLERANCE: f32 = 2e-3;
/// The same where experts' products read activations of 8 bits.
const QUANTISED_TOLERANCE: f32 = 3e-2;

const ALL: [&str; 6] = [
    "smollm3",
    "phi3",
    "phi4_mini",
    "glm4",
    "glm4_plain",
    "gpt_oss",
];

#[derive(Deserialize)]
struct Golden {
    token_ids: Vec<u32>,
    /// `[tokens, vocab]`
    logits: Vec<Vec<f32>>,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/goldens/families")
        .join(name)
}

fn golden(name: &str, file: &str) -> Golden {
    let text = std::fs::read_to_string(folder(name).join(file)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A model for contexts of so many tokens, or of the longest.
fn load(path: &Path, max_model_len: Option<usize>) -> Decoder {
    let files = ModelFiles::open(path).unwrap();
    let options = LoadOptions {
        num_threads: 2,
        max_model_len,
        ..LoadOptions::default()
    };
    let mut model = ponder::model::load_decoder(&files, options)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    model
        .allocate_kv_cache(NUM_BLOCKS, BLOCK_SIZE, 128)
        .unwrap();
    model
}

/// Tokens of a sequence that a step runs, and the first block of the sequence.
type Part<'a> = (&'a [u32], Range<usize>, u32);

/// One step over parts of sequences; the logits of all rows.
fn step(model: &mut Decoder, parts: &[Part<'_>]) -> Vec<f32> {
    let table = |first: u32| (first..first + 4).collect::<Vec<u32>>();
    let tables: Vec<Vec<u32>> = parts.iter().map(|part| table(part.2)).collect();
    let (mut token_ids, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
    let mut sequences = Vec::new();
    for ((tokens, rows, first), block_table) in parts.iter().zip(&tables) {
        token_ids.extend_from_slice(&tokens[rows.clone()]);
        positions.extend(rows.clone().map(|row| row as u32));
        slots.extend(
            rows.clone()
                .map(|row| first * BLOCK_SIZE as u32 + row as u32),
        );
        sequences.push(SequenceRows {
            block_table,
            num_rows: rows.len(),
            context_len: rows.end,
            leaves: &[],
        });
    }
    let wanted: Vec<u32> = (0..token_ids.len() as u32).collect();
    let mut logits = Vec::new();
    let batch = ForwardBatch {
        token_ids: &token_ids,
        positions: &positions,
        slot_mapping: &slots,
        sequences: &sequences,
        adapters: &vec![None; parts.len()],
        steering: &[],
        logits_rows: &wanted,
        skip: None,
        local: None,
    };
    model.forward(&batch, &mut logits).unwrap();
    logits
}

fn assert_near(place: &str, logits: &[f32], expected: &[Vec<f32>], tolerance: f32) {
    let expected = expected.concat();
    assert_eq!(logits.len(), expected.len(), "{place}");
    let largest = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    let worst = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    let worst = worst.fold(0.0, f32::max);
    println!("{place}: {worst} of {largest}");
    assert!(worst < tolerance * largest, "{place}: {worst} of {largest}");
}

/// A whole prompt is what transformers computes; in chunks, token by token, and beside another
/// sequence it has the same bits.
fn check(name: &str, file: &str, golden_file: &str, max_model_len: Option<usize>) {
    let place = format!("{name}/{file} {golden_file}");
    let golden = golden(name, golden_file);
    let tokens = &golden.token_ids[..];
    let mut model = load(&folder(name).join(file), max_model_len);
    let whole = step(&mut model, &[(tokens, 0..tokens.len(), 0)]);
    assert_near(&place, &whole, &golden.logits, LOGITS_TOLERANCE);
    let vocab_size = golden.logits[0].len();
    for size in [7, 1] {
        let starts = (0..tokens.len()).step_by(size);
        let chunks = starts.map(|start| start..tokens.len().min(start + size));
        let logits: Vec<f32> = chunks
            .flat_map(|rows| step(&mut model, &[(tokens, rows, 4)]))
            .collect();
        assert_eq!(logits, whole, "{place} in chunks of {size}");
    }
    // Decoding beside a prompt: the first sequence's prompt lies in its blocks already.
    let at = tokens.len() / 2;
    let other: Vec<u32> = tokens.iter().rev().copied().collect();
    step(&mut model, &[(tokens, 0..at, 8)]);
    let both = [(tokens, at..at + 1, 8), (&other[..], 0..at, 12)];
    let beside = step(&mut model, &both);
    let row = at * vocab_size..(at + 1) * vocab_size;
    assert_eq!(beside[..vocab_size], whole[row], "{place} in a batch");
}

#[test]
fn logits_are_those_of_transformers() {
    for name in ALL {
        // A context that is no longer than the original one.
        for file in ["", "model.gguf"] {
            check(name, file, "golden.json", Some(32));
        }
    }
}

#[test]
fn long_contexts_have_their_own_frequencies() {
    for file in ["", "model.gguf"] {
        check("phi4_mini", file, "golden-long.json", None);
    }
    // A model that is loaded for short contexts is another one.
    let golden = golden("phi4_mini", "golden.json");
    let tokens = &golden.token_ids[..];
    let [short, long] = [Some(32), None].map(|len| {
        let mut model = load(&folder("phi4_mini"), len);
        step(&mut model, &[(tokens, 0..tokens.len(), 0)])
    });
    assert_ne!(short, long);
}

#[test]
fn released_configurations_read_as_those_of_transformers_5() {
    for name in ALL {
        let read = |file: &str| {
            let text = std::fs::read_to_string(folder(name).join(file)).unwrap();
            ModelConfig::from_hf(&serde_json::from_str(&text).unwrap()).unwrap()
        };
        assert_eq!(read("config.json"), read("config-hub.json"), "{name}");
    }
}

/// Experts in MXFP4 lie otherwise in each kind of file; their products quantise activations, which
/// transformers does not.
#[test]
fn mxfp4_experts_are_near_their_values_in_floats() {
    let golden = golden("gpt_oss", "golden-mxfp4.json");
    let tokens = &golden.token_ids[..];
    let [released, gguf] = ["mxfp4", "model-mxfp4.gguf"].map(|file| {
        let mut model = load(&folder("gpt_oss").join(file), None);
        step(&mut model, &[(tokens, 0..tokens.len(), 0)])
    });
    assert_near("gpt_oss mxfp4", &gguf, &golden.logits, QUANTISED_TOLERANCE);
    assert_near(
        "gpt_oss released",
        &released,
        &golden.logits,
        QUANTISED_TOLERANCE,
    );
}

/// Both kinds of files say the same of the rotation; rows of Q and K may lie in another order.
#[test]
fn gguf_metadata_say_what_the_configuration_says() {
    for name in ALL {
        let read = |file: &str| {
            let files = ModelFiles::open(&folder(name).join(file)).unwrap();
            files.config().unwrap()
        };
        let (hf, mut gguf) = (read(""), read("model.gguf"));
        gguf.rope.adjacent_pairs = hf.rope.adjacent_pairs;
        assert_eq!(gguf, hf, "{name}");
    }
}
