//! Gradients against differences of what they are the gradients of, in f64.

mod common;

use common::Random;
use ponder_kernels::gradients::*;
use ponder_kernels::*;

const STEP: f64 = 1e-5;

fn activation(kind: Glu, x: f64) -> f64 {
    match kind {
        Glu::Silu => x / (1.0 + (-x).exp()),
        Glu::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        }
        Glu::ClampedSwish => {
            let x = x.min(7.0);
            x / (1.0 + (-1.702 * x).exp())
        }
    }
}

/// What the activation is multiplied by.
fn factor(kind: Glu, up: f64) -> f64 {
    match kind {
        Glu::ClampedSwish => up.clamp(-7.0, 7.0) + 1.0,
        _ => up,
    }
}

#[test]
fn gated_activations() {
    let pool = ThreadPool::eager(2);
    for kind in [Glu::Silu, Glu::GeluTanh, Glu::ClampedSwish] {
        // More than one thread's share.
        let mut random = Random(1);
        let count = 40_000;
        let [gate, up, by] = [(); 3].map(|()| random.values(count));
        let gate: Vec<f32> = gate.iter().map(|x| 8.0 * x).collect();
        let up: Vec<f32> = up.iter().map(|x| 8.0 * x).collect();
        let (mut by_gate, mut by_up) = (gate.clone(), up.clone());
        glu_gradient(&pool, kind, &mut by_gate, &mut by_up, &by);
        for i in 0..count {
            let [x, u, b] = [gate[i], up[i], by[i]].map(f64::from);
            // There is no slope at a clamp.
            if [x, u]
                .iter()
                .any(|value| (value.abs() - 7.0).abs() < 2.0 * STEP)
            {
                continue;
            }
            let slope = (activation(kind, x + STEP) - activation(kind, x - STEP)) / (2.0 * STEP);
            let up_slope = (factor(kind, u + STEP) - factor(kind, u - STEP)) / (2.0 * STEP);
            let wanted_gate = b * factor(kind, u) * slope;
            let wanted_up = b * activation(kind, x) * up_slope;
            for (got, wanted) in [(by_gate[i], wanted_gate), (by_up[i], wanted_up)] {
                let bound = 1e-5 * wanted.abs().max(1.0);
                assert!(
                    (f64::from(got) - wanted).abs() < bound,
                    "{kind:?} of {x}, {u}"
                );
            }
        }
    }
}

/// `<by_result, attention>` of one query.
fn attended(query: &[f64], keys: &[f64], values: &[f64], by_result: &[f64], scale: f64) -> f64 {
    let dim = query.len();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let weights: Vec<f64> = keys
        .chunks_exact(dim)
        .map(|key| (scale * dot(key, query)).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    let along = values.chunks_exact(dim).map(|value| dot(value, by_result));
    along.zip(&weights).map(|(a, w)| a * w / total).sum()
}

#[test]
fn attention_of_one_query() {
    const SCALE: f32 = 0.4;
    for (dim, num_tokens, first) in [(24, 9, 4), (16, 1, 0), (64, 30, 0)] {
        let mut random = Random(2);
        let [query, by_result] = [(); 2].map(|()| random.values(dim));
        let [keys, values] = [(); 2].map(|()| random.values(num_tokens * dim));
        let num_own = num_tokens - first;
        let mut by_query = vec![1.0; dim];
        let (mut by_keys, mut by_values) = (vec![1.0; num_own * dim], vec![1.0; num_own * dim]);
        let row = AttentionRow {
            query: &query,
            by_result: &by_result,
            keys: &keys,
            values: &values,
            scale: SCALE,
            first,
        };
        attention_gradient(
            &row,
            &mut AttentionSums {
                by_query: &mut by_query,
                by_keys: &mut by_keys,
                by_values: &mut by_values,
                weights: &mut Vec::new(),
                slopes: &mut Vec::new(),
            },
        );
        let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
        let inputs = [&query[..], &keys, &values].map(wide);
        let by_result = wide(&by_result);
        let results = [
            (0, 0, &by_query),
            (1, first, &by_keys),
            (2, first, &by_values),
        ];
        for (which, skipped, result) in results {
            for (i, result) in result.iter().enumerate() {
                let at = |shift: f64| {
                    let mut inputs = inputs.clone();
                    inputs[which][skipped * dim + i] += shift;
                    let [query, keys, values] = &inputs;
                    attended(query, keys, values, &by_result, f64::from(SCALE))
                };
                let wanted = 1.0 + (at(STEP) - at(-STEP)) / (2.0 * STEP);
                assert!((f64::from(*result) - wanted).abs() < 1e-5, "{which} {i}");
            }
        }
    }
}

#[test]
fn rows_go_to_their_slots_and_back() {
    const WIDTH: usize = 20;
    let pool = ThreadPool::eager(2);
    let convention = Gating {
        num_experts_per_tok: 3,
        scoring: Scoring::Softmax,
        normalise: false,
        scale: 1.0,
        groups: None,
    };
    let (num_rows, num_experts) = (33, 7);
    let mut random = Random(3);
    let mut routes = Routes::default();
    let logits = random.values(num_rows * num_experts);
    routes.plan(&pool, &convention, &logits, num_experts, None);
    let x = random.values(num_rows * WIDTH);
    let mut sorted = vec![f32::NAN; num_rows * 3 * WIDTH];
    spread_rows(&pool, &routes, &x, &mut sorted);
    let mut back = vec![1.0; x.len()];
    gather_rows(&pool, &routes, &sorted, &mut back);
    for row in 0..num_rows {
        let gates = &routes.gates()[row * 3..row * 3 + 3];
        let slots = &routes.slots()[row * 3..row * 3 + 3];
        for i in 0..WIDTH {
            let x = x[row * WIDTH + i];
            for (gate, slot) in gates.iter().zip(slots) {
                assert_eq!(sorted[*slot as usize * WIDTH + i], gate * x);
            }
            let wanted = 1.0 + gates.iter().sum::<f32>() * x;
            assert!((back[row * WIDTH + i] - wanted).abs() < 1e-5);
        }
    }
}
