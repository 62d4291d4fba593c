//! Mixture-of-experts architectures against transformers' implementations (see
//! `tests/goldens/moe/make.py`).

use std::path::{Path, PathBuf};

use ponder::model::{CausalLm, Decoder, ForwardBatch, LoadOptions, ModelFiles, SequenceRows};
use serde::Deserialize;

const BLOCK_SIZE: usize = 16;
/// Largest difference of a logit, of the largest: the KV cache holds 16-bit floats.
const LOGITS_TOLERANCE: f32 = 1e-3;
const GATE_TOLERANCE: f32 = 2e-3;
const ROUTER_LOGIT_TOLERANCE: f32 = 1e-2;

/// Median over rows of a row's error, relative to its logits: the kernels quantise activations to 8 bits, transformers does not.
/// The mean would be that of the few rows where an expert is another one.
const QUANTISED_TOLERANCE: f64 = 0.03;
/// Share of the golden's choices that may fall otherwise, and how far apart the two router logits may be there.
const OTHER_CHOICES: f64 = 0.05;
const NEAR_TIE: f32 = 0.15;

const ALL: [&str; 7] = [
    "olmoe",
    "qwen2_moe",
    "qwen3_moe",
    "mixtral",
    "granitemoe",
    "deepseek_v2",
    "deepseek_v2_grouped",
];

#[derive(Deserialize)]
struct Golden {
    token_ids: Vec<u32>,
    /// `[tokens, vocab]`
    logits: Vec<Vec<f32>>,
    moe_layers: Vec<GoldenLayer>,
}

#[derive(Deserialize)]
struct GoldenLayer {
    layer: usize,
    router_logits: Vec<Vec<f32>>,
    experts: Vec<Vec<u32>>,
    gates: Vec<Vec<f32>>,
}

pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/goldens/moe")
        .join(name)
}

pub fn load(path: &Path) -> Decoder {
    let files = ModelFiles::open(path).unwrap();
    let options = LoadOptions {
        num_threads: 2,
        ..LoadOptions::default()
    };
    let mut model = ponder::model::load_decoder(&files, options)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    model.allocate_kv_cache(8, BLOCK_SIZE, 64).unwrap();
    model
}

/// A step over all tokens of a sequence that lies in the first blocks, with the logits of each.
pub fn with_batch<R>(token_ids: &[u32], run: impl FnOnce(&ForwardBatch<'_>) -> R) -> R {
    let block_table: Vec<u32> = (0..token_ids.len().div_ceil(BLOCK_SIZE) as u32).collect();
    let positions: Vec<u32> = (0..token_ids.len() as u32).collect();
    let rows = SequenceRows {
        block_table: &block_table,
        num_rows: token_ids.len(),
        context_len: token_ids.len(),
        leaves: &[],
    };
    run(&ForwardBatch {
        token_ids,
        positions: &positions,
        slot_mapping: &positions,
        sequences: &[rows],
        adapters: &[None],
        steering: &[],
        logits_rows: &positions,
        skip: None,
        local: None,
    })
}

fn equals_golden(name: &str, file: &str) {
    let folder = folder(name);
    let text = std::fs::read_to_string(folder.join("golden.json")).unwrap();
    let golden: Golden = serde_json::from_str(&text).unwrap();
    let mut model = load(&folder.join(file));
    let mut logits = Vec::new();
    let routing = with_batch(&golden.token_ids, |batch| {
        model.forward_routed(batch, &mut logits).unwrap()
    });
    assert_eq!(
        routing.len(),
        golden.moe_layers.len(),
        "{name}: layers with experts"
    );
    for (ours, expected) in routing.iter().zip(&golden.moe_layers) {
        let place = format!("{name}/{file} layer {}", expected.layer);
        assert_eq!(ours.layer, expected.layer, "{place}");
        assert_eq!(ours.experts, expected.experts.concat(), "{place}");
        for (a, b) in ours.gates.iter().zip(expected.gates.concat()) {
            assert!(
                (a - b).abs() < GATE_TOLERANCE,
                "{place}: gate {a} is not {b}"
            );
        }
        for (a, b) in ours
            .router_logits
            .iter()
            .zip(expected.router_logits.concat())
        {
            assert!(
                (a - b).abs() < ROUTER_LOGIT_TOLERANCE,
                "{place}: router logit {a} is not {b}"
            );
        }
    }
    let expected = golden.logits.concat();
    assert_eq!(logits.len(), expected.len());
    let spread = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    let worst = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    let worst = worst.fold(0.0, f32::max);
    println!("{name}/{file}: {worst} of {spread}");
    assert!(
        worst < LOGITS_TOLERANCE * spread,
        "{name}/{file}: {worst} of {spread}"
    );
}

macro_rules! architectures {
    ($($name:ident: $($file:literal)*;)*) => {$(
        #[test]
        fn $name() {
            equals_golden(stringify!($name), "");
            $(equals_golden(stringify!($name), $file);)*
        }
    )*};
}

architectures! {
    olmoe: "model.gguf";
    qwen2_moe: "model.gguf";
    qwen3_moe: "model.gguf";
    mixtral: "model.gguf" "model-alone.gguf";
    granitemoe: "model.gguf";
    deepseek_v2: "model.gguf" "model-kv_b.gguf";
    deepseek_v2_grouped: "model.gguf";
}

/// `file` holds quantised weights, its golden is what transformers computes with the same ones in floats.
fn quantised_is_near(name: &str, kind: &str) {
    let folder = folder(name);
    let text = std::fs::read_to_string(folder.join(format!("golden-{kind}.json"))).unwrap();
    let golden: Golden = serde_json::from_str(&text).unwrap();
    let mut model = load(&folder.join(format!("model-{kind}.gguf")));
    let mut logits = Vec::new();
    let routing = with_batch(&golden.token_ids, |batch| {
        model.forward_routed(batch, &mut logits).unwrap()
    });
    let (mut others, mut all, mut widest) = (0, 0, 0.0_f32);
    for (ours, expected) in routing.iter().zip(&golden.moe_layers) {
        let chosen = expected.experts[0].len();
        let rows = ours.experts.chunks_exact(chosen).zip(&expected.experts);
        for ((ours, theirs), logits) in rows.zip(&expected.router_logits) {
            let logit = |expert: &u32| logits[*expert as usize];
            let gained = ours.iter().filter(|e| !theirs.contains(e)).map(logit);
            let lost = theirs.iter().filter(|e| !ours.contains(e)).map(logit);
            others += gained.clone().count();
            let (lowest, highest) = (
                gained.fold(f32::MAX, f32::min),
                lost.fold(f32::MIN, f32::max),
            );
            widest = widest.max(highest - lowest);
            all += chosen;
        }
    }
    let mut errors: Vec<f64> = logits
        .chunks_exact(golden.logits[0].len())
        .zip(&golden.logits)
        .map(|(ours, theirs)| {
            let square = |x: f32| f64::from(x).powi(2);
            let missed: f64 = ours.iter().zip(theirs).map(|(a, b)| square(a - b)).sum();
            let whole: f64 = theirs.iter().map(|x| square(*x)).sum();
            (missed / whole).sqrt()
        })
        .collect();
    assert_eq!(errors.len(), golden.token_ids.len());
    errors.sort_by(f64::total_cmp);
    let median = errors[errors.len() / 2];
    println!("{name} {kind}: {median:.4}, {others} of {all} choices, {widest} apart");
    assert!(median < QUANTISED_TOLERANCE, "{name} {kind}: {median}");
    let share = f64::from(others as u32) / f64::from(all as u32);
    assert!(share < OTHER_CHOICES, "{name} {kind}: {others} of {all}");
    assert!(widest < NEAR_TIE, "{name} {kind}: {widest} apart");
}

#[test]
fn quantised_models_stay_near_floats() {
    for name in ALL {
        quantised_is_near(name, "q8_0");
    }
    for name in ["qwen2_moe", "deepseek_v2"] {
        quantised_is_near(name, "q4_0");
    }
}

#[test]
fn rows_do_not_depend_on_the_rows_beside_them() {
    let golden = std::fs::read_to_string(folder("qwen2_moe").join("golden.json")).unwrap();
    let golden: Golden = serde_json::from_str(&golden).unwrap();
    for name in ["qwen2_moe", "deepseek_v2", "granitemoe"] {
        let mut model = load(&folder(name));
        let (mut together, mut alone) = (Vec::new(), Vec::new());
        with_batch(&golden.token_ids, |batch| {
            model.forward(batch, &mut together).unwrap();
            for row in 0..batch.token_ids.len() {
                let sequence = SequenceRows {
                    num_rows: 1,
                    context_len: row + 1,
                    ..batch.sequences[0]
                };
                let one = ForwardBatch {
                    token_ids: &batch.token_ids[row..row + 1],
                    positions: &batch.positions[row..row + 1],
                    slot_mapping: &batch.slot_mapping[row..row + 1],
                    sequences: &[sequence],
                    logits_rows: &[0],
                    ..*batch
                };
                let mut logits = Vec::new();
                model.forward(&one, &mut logits).unwrap();
                alone.extend(logits);
            }
        });
        assert_eq!(together, alone, "{name}");
    }
}

#[test]
fn released_configurations_read_as_those_of_transformers_5() {
    for name in ALL {
        let read = |file: &str| {
            let text = std::fs::read_to_string(folder(name).join(file)).unwrap();
            let json = serde_json::from_str(&text).unwrap();
            ponder::model::ModelConfig::from_hf(&json).unwrap()
        };
        assert_eq!(read("config.json"), read("config-hub.json"), "{name}");
    }
}

#[test]
fn routing_that_cannot_be_is_refused() {
    let text = std::fs::read_to_string(folder("deepseek_v2_grouped").join("config.json")).unwrap();
    for (key, value) in [
        ("num_experts_per_tok", 0),
        ("num_experts_per_tok", 9),
        ("n_group", 3),
        ("topk_group", 5),
        ("n_routed_experts", 1 << 20),
        ("kv_lora_rank", 0),
        ("qk_rope_head_dim", 15),
        ("v_head_dim", 200),
    ] {
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json[key] = value.into();
        let read = ponder::model::ModelConfig::from_hf(&json);
        assert!(read.is_err(), "{key} {value}: {read:?}");
    }
}
