//! Test-time adaptation against PyTorch (see `tests/goldens/moe/make.py`), and its promises.

use std::sync::Arc;

use ponder::model::adapt::{RouterGradient, RouterLayers};
use ponder::model::{
    AdaptationConfig, AdaptationPhase, AdaptationReport, CausalLm, Decoder, ForwardBatch, Steering,
};
use serde::Deserialize;

use crate::moe::{folder, load, with_batch};

/// Largest relative difference of a gradient (Euclidean). The model runs in 32-bit floats on a 16-bit KV cache, the reference in
/// 64 bits.
const GRADIENT_TOLERANCE: f32 = 5e-3;
const LOSS_TOLERANCE: f32 = 1e-3;

#[derive(Deserialize)]
struct Tokens {
    token_ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Golden {
    layers: Vec<usize>,
    loss: f32,
    gradient: Vec<Vec<f32>>,
    gradient_at: GradientAt,
    adam: Trajectory,
    adam_last: Trajectory,
}

#[derive(Deserialize)]
struct GradientAt {
    delta: Vec<Vec<f32>>,
    loss: f32,
    gradient: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Trajectory {
    losses: Vec<f32>,
    delta: Vec<Vec<f32>>,
}

fn read<T: for<'a> Deserialize<'a>>(name: &str, file: &str) -> T {
    let text = std::fs::read_to_string(folder(name).join(file)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn steering(layers: &[usize], deltas: &[Vec<f32>]) -> Steering {
    let mut router = vec![None; layers.last().unwrap() + 1];
    for (layer, delta) in layers.iter().zip(deltas) {
        router[*layer] = Some(delta.clone());
    }
    Steering {
        router,
        hidden: None,
    }
}

/// Relative Euclidean distance.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// Loss and gradients of the reference's context under a steering.
fn gradient(
    model: &mut Decoder,
    token_ids: &[u32],
    steering: &Steering,
    layers: &[usize],
    kind: RouterGradient,
) -> (f32, Vec<Vec<f32>>) {
    let last = token_ids.len() - 1;
    with_batch(&token_ids[..last], |batch| {
        let steered = ForwardBatch {
            steering: &[Some(steering)],
            ..*batch
        };
        let result = model.router_gradient(&steered, &token_ids[1..], layers, kind);
        result.unwrap()
    })
}

fn assert_gradients(place: &str, ours: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(ours.len(), expected.len(), "{place}");
    for (index, (ours, expected)) in ours.iter().zip(expected).enumerate() {
        let distance = distance(ours, expected);
        println!("{place} {index}: {distance}");
        assert!(
            distance < GRADIENT_TOLERANCE,
            "{place} {index}: {distance}\n{ours:?}\n{expected:?}"
        );
    }
}

#[test]
fn router_gradients_equal_pytorch() {
    for name in ["qwen2_moe", "olmoe", "mixtral", "qwen3_moe", "granitemoe"] {
        let golden: Golden = read(name, "adaptation.json");
        let Tokens { token_ids } = read(name, "golden.json");
        let mut model = load(&folder(name));
        let cases = [
            (Steering::default(), golden.loss, &golden.gradient),
            (
                steering(&golden.layers, &golden.gradient_at.delta),
                golden.gradient_at.loss,
                &golden.gradient_at.gradient,
            ),
        ];
        for (steering, loss, expected) in cases {
            let (ours, gradients) = gradient(
                &mut model,
                &token_ids,
                &steering,
                &golden.layers,
                RouterGradient::Exact,
            );
            assert!(
                (ours - loss).abs() < LOSS_TOLERANCE,
                "{name}: {ours} {loss}"
            );
            assert_gradients(name, &gradients, expected);
        }
    }
}

#[test]
fn the_last_layers_gradient_needs_no_way_back() {
    for name in ["deepseek_v2", "deepseek_v2_grouped", "qwen2_moe"] {
        let golden: Golden = read(name, "adaptation.json");
        let Tokens { token_ids } = read(name, "golden.json");
        let mut model = load(&folder(name));
        let last = [*golden.layers.last().unwrap()];
        for kind in [RouterGradient::Exact, RouterGradient::Truncated] {
            let plain = Steering::default();
            let (_, gradients) = gradient(&mut model, &token_ids, &plain, &last, kind);
            let expected = golden.gradient.last().cloned().unwrap();
            assert_gradients(name, &gradients, &[expected]);
        }
    }
}

/// Runs a phase over all of a context's tokens but the last.
fn adapt(
    model: &mut Decoder,
    token_ids: &[u32],
    config: AdaptationConfig,
) -> (Steering, AdaptationReport) {
    let last = token_ids.len() - 1;
    let mut phase = AdaptationPhase::new(Arc::new(config), Steering::default());
    with_batch(&token_ids[..last], |batch| {
        while !phase.is_done() {
            model
                .adaptation()
                .unwrap()
                .adapt(batch, &token_ids[1..], &mut phase)
                .unwrap();
        }
    });
    phase.finish()
}

fn router(depth: usize, gradient: RouterGradient) -> AdaptationConfig {
    AdaptationConfig {
        layers: RouterLayers {
            depth,
            share: 1.0,
            ..RouterLayers::default()
        },
        gradient,
        ..AdaptationConfig::router()
    }
}

#[test]
fn steps_follow_pytorchs_adam() {
    for name in ["qwen2_moe", "olmoe", "mixtral", "qwen3_moe", "granitemoe"] {
        let golden: Golden = read(name, "adaptation.json");
        let Tokens { token_ids } = read(name, "golden.json");
        let mut model = load(&folder(name));
        for (depth, expected) in [(0, &golden.adam), (1, &golden.adam_last)] {
            let config = router(depth, RouterGradient::Exact);
            let (found, report) = adapt(&mut model, &token_ids, config);
            assert_eq!(report.losses.len(), expected.losses.len(), "{name}");
            for (ours, theirs) in report.losses.iter().zip(&expected.losses) {
                assert!((ours - theirs).abs() < 2e-3, "{name}: {report:?}");
            }
            let is_last_best = report.losses.iter().all(|loss| report.losses[5] <= *loss);
            let layers = &golden.layers[golden.layers.len() - report.layers.len()..];
            assert_eq!(report.layers, layers, "{name}");
            if is_last_best {
                let ours: Vec<f32> = found.router.iter().flatten().flatten().copied().collect();
                // Adam divides by the gradient's own size: entries near zero may go either way.
                let distance = distance(&ours, &expected.delta.concat());
                assert!(distance < 0.1, "{name}: {distance}");
            }
        }
    }
}

#[derive(Deserialize)]
struct Slot {
    token_ids: Vec<u32>,
    losses: Vec<f32>,
    vector: Vec<f32>,
    last_logits: Vec<f32>,
    plain_last_logits: Vec<f32>,
}

/// The logits of every token.
fn logits(model: &mut Decoder, token_ids: &[u32], steering: Option<&Steering>) -> Vec<f32> {
    let mut logits = Vec::new();
    with_batch(token_ids, |batch| {
        let steered = ForwardBatch {
            steering: &[steering],
            ..*batch
        };
        model.forward(&steered, &mut logits).unwrap();
    });
    logits
}

fn assert_close(place: &str, a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len(), "{place}");
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() < tolerance, "{place}: {a} is not {b}");
    }
}

#[test]
fn slot_equals_pytorchs() {
    let golden: Slot = read("slot", "golden.json");
    let mut model = load(&folder("slot"));
    let config = AdaptationConfig {
        learning_rate: 0.01,
        ..AdaptationConfig::slot()
    };
    let (steering, report) = adapt(&mut model, &golden.token_ids, config);
    assert_close("losses", &report.losses, &golden.losses, 1e-3);
    let distance = distance(steering.hidden.as_ref().unwrap(), &golden.vector);
    assert!(distance < 0.02, "{distance}");
    let vocab_size = golden.last_logits.len();
    let last = |logits: Vec<f32>| logits[logits.len() - vocab_size..].to_vec();
    let plain = last(logits(&mut model, &golden.token_ids, None));
    assert_close("plain", &plain, &golden.plain_last_logits, 5e-3);
    let steered = last(logits(&mut model, &golden.token_ids, Some(&steering)));
    assert_close("steered", &steered, &golden.last_logits, 1e-2);
}

#[test]
fn nothing_added_changes_no_bit_and_the_same_for_all_experts_no_choice() {
    for (name, tolerance) in [("qwen2_moe", 1e-3), ("mixtral", 1e-3)] {
        let golden: Golden = read(name, "adaptation.json");
        let Tokens { token_ids } = read(name, "golden.json");
        let mut model = load(&folder(name));
        let plain = logits(&mut model, &token_ids, None);
        let same = |value: f32| {
            let experts = golden.gradient[0].len();
            steering(
                &golden.layers,
                &vec![vec![value; experts]; golden.layers.len()],
            )
        };
        assert_eq!(logits(&mut model, &token_ids, Some(&same(0.0))), plain);
        let shifted = logits(&mut model, &token_ids, Some(&same(0.5)));
        assert_close(name, &shifted, &plain, tolerance);
    }
}

#[test]
fn refreshed_keys_and_values_are_those_of_a_fresh_prefill() {
    let Tokens { token_ids } = read("olmoe", "golden.json");
    let (prompt, next) = token_ids.split_at(token_ids.len() - 1);
    for kind in [RouterGradient::Exact, RouterGradient::Truncated] {
        // The last row is computed on what the phase left in the cache.
        let mut adapted = load(&folder("olmoe"));
        let config = AdaptationConfig {
            steps: 3,
            ..router(0, kind)
        };
        let (steering, report) = adapt(&mut adapted, &token_ids, config);
        assert!(report.delta_norm > 0.01, "{report:?}");
        let mut on_cache = Vec::new();
        with_batch(&token_ids, |batch| {
            let last = prompt.len();
            let one = ForwardBatch {
                token_ids: next,
                positions: &batch.positions[last..],
                slot_mapping: &batch.slot_mapping[last..],
                sequences: &[ponder::model::SequenceRows {
                    num_rows: 1,
                    ..batch.sequences[0]
                }],
                steering: &[Some(&steering)],
                logits_rows: &[0],
                ..*batch
            };
            adapted.forward(&one, &mut on_cache).unwrap();
        });
        let fresh = logits(&mut load(&folder("olmoe")), &token_ids, Some(&steering));
        assert_eq!(on_cache, fresh[fresh.len() - on_cache.len()..], "{kind:?}");
    }
}
