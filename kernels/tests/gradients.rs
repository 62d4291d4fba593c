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

#[test]
fn gated_results_that_count_by_a_weight() {
    let pool = ThreadPool::eager(2);
    let (num_rows, width) = (33, 100);
    let mut random = Random(4);
    let weights = random.values(num_rows);
    let [gate, up, by] = [(); 3].map(|()| random.values(num_rows * width));
    let (mut by_gate, mut by_up, mut by_gated) = (gate.clone(), up.clone(), by.clone());
    let mut along = vec![f32::NAN; num_rows];
    let parts = [&mut by_gate[..], &mut by_up, &mut by_gated];
    weighted_glu_gradient(&pool, Glu::Silu, &weights, parts, &mut along);
    let (mut wanted_gate, mut wanted_up) = (gate.clone(), up.clone());
    let weighted = by.iter().enumerate();
    let weighted: Vec<f32> = weighted.map(|(i, by)| weights[i / width] * by).collect();
    glu_gradient(
        &pool,
        Glu::Silu,
        &mut wanted_gate,
        &mut wanted_up,
        &weighted,
    );
    assert_eq!((by_gate, by_up), (wanted_gate, wanted_up));
    for (row, along) in along.iter().enumerate() {
        let result = |i: usize| activation(Glu::Silu, gate[i].into()) * f64::from(up[i]);
        let wanted = (row * width..(row + 1) * width).map(|i| result(i) * f64::from(by[i]));
        assert!((f64::from(*along) - wanted.sum::<f64>()).abs() < 1e-4);
    }
}

#[test]
fn norms() {
    const EPS: f64 = 1e-3;
    let pool = ThreadPool::eager(2);
    for width in [5, 16, 100] {
        let mut random = Random(5);
        let [x, by] = [(); 2].map(|()| random.values(7 * width));
        let weight = random.values(width);
        let mut out = vec![1.0; x.len()];
        add_norm_gradient(&pool, &x, &weight, EPS as f32, &by, &mut out);
        // The sum over a row of what the gradient is of.
        let normed = |row: usize, x: &[f64]| {
            let squares: f64 = x.iter().map(|x| x * x).sum();
            let r = 1.0 / (squares / width as f64 + EPS).sqrt();
            let values = x.iter().zip(&weight).zip(&by[row * width..]);
            let values = values.map(|((x, w), by)| r * x * f64::from(*w) * f64::from(*by));
            values.sum::<f64>()
        };
        for (i, out) in out.iter().enumerate() {
            let row = i / width;
            let own = &x[row * width..][..width];
            let at = |shift: f64| {
                let mut own: Vec<f64> = own.iter().map(|x| f64::from(*x)).collect();
                own[i % width] += shift;
                normed(row, &own)
            };
            let wanted = 1.0 + (at(STEP) - at(-STEP)) / (2.0 * STEP);
            assert!((f64::from(*out) - wanted).abs() < 1e-4, "{width} {i}");
        }
    }
}

/// Attention of a sequence's last rows in f64, with what it reads as rows of all heads.
struct Attended<'a> {
    params: AttentionParams,
    num_tokens: usize,
    by_result: &'a [f32],
}

impl Attended<'_> {
    /// `<by_result, attention>`.
    fn sum(&self, [queries, keys, values]: [&[f64]; 3]) -> f64 {
        let AttentionParams {
            num_heads,
            num_kv_heads,
            head_dim: dim,
            ..
        } = self.params;
        let num_rows = queries.len() / (num_heads * dim);
        let mut total = 0.0;
        for (row, head) in (0..num_rows).flat_map(|row| (0..num_heads).map(move |head| (row, head)))
        {
            let query = &queries[(row * num_heads + head) * dim..][..dim];
            let by = &self.by_result[(row * num_heads + head) * dim..][..dim];
            let kv_head = head / (num_heads / num_kv_heads);
            let last = self.num_tokens - num_rows + row;
            let window = self.params.sliding_window.unwrap_or(usize::MAX);
            let (mut sum, mut along) = (0.0, 0.0);
            for token in (last + 1).saturating_sub(window)..=last {
                let at = (token * num_kv_heads + kv_head) * dim;
                let products = query.iter().zip(&keys[at..]).map(|(q, k)| q * k);
                let score = f64::from(self.params.scale) * products.sum::<f64>();
                let value = values[at..at + dim].iter().zip(by);
                let value: f64 = value.map(|(v, by)| v * f64::from(*by)).sum();
                sum += score.exp();
                along += score.exp() * value;
            }
            total += along / sum;
        }
        total
    }
}

/// Rows, tokens before them, heads, and whether old tokens are out of sight: less and more than a
/// tile of each.
#[test]
fn attention() {
    for (num_rows, before, [heads, kv_heads, dim], window) in [
        (1, 0, [1, 1, 8], None),
        (40, 0, [2, 1, 24], None),
        (50, 83, [4, 2, 16], None),
        (30, 70, [2, 2, 8], Some(20)),
    ] {
        let num_tokens = num_rows + before;
        let mut random = Random(6);
        let queries = random.values(num_rows * heads * dim);
        let by_result = random.values(num_rows * heads * dim);
        // What the cache holds exactly.
        let halves = |values: Vec<f32>| -> Vec<f32> {
            values.iter().map(|x| (x * 512.0).round() / 512.0).collect()
        };
        let [keys, values] = [(); 2].map(|()| halves(random.values(num_tokens * kv_heads * dim)));
        let params = AttentionParams {
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim: dim,
            scale: 0.7,
            sliding_window: window,
            softcap: None,
        };
        let block_size = 16;
        let num_blocks = num_tokens.div_ceil(block_size);
        let mut cache = KvCache::new(2, num_blocks, block_size, kv_heads, dim).unwrap();
        // Blocks out of order.
        let slot = |token: usize| {
            let block = num_blocks - 1 - token / block_size;
            (block * block_size + token % block_size) as u32
        };
        let slots: Vec<u32> = (0..num_tokens).map(slot).collect();
        cache.write(&ThreadPool::new(1), 1, &slots, &keys, &values);
        let read = AttentionGradient {
            params: &params,
            queries: &queries,
            by_result: &by_result,
            slots: &slots,
        };
        let mut found = AttentionGradients::default();
        // Buffers that another call left.
        found.run(&ThreadPool::eager(3), &read, &cache, 0);
        found.run(&ThreadPool::eager(3), &read, &cache, 1);
        let mut alone = AttentionGradients::default();
        alone.run(&ThreadPool::new(1), &read, &cache, 1);
        assert_eq!(found.by_queries, alone.by_queries);
        assert_eq!(found.by_keys, alone.by_keys);
        assert_eq!(found.by_values, alone.by_values);
        // What no row sees need not be there.
        let gone = window.map_or(0, |window| (before + 1).saturating_sub(window));
        let mut seen = slots.clone();
        seen[..gone].fill(NO_SLOT);
        let mut windowed = AttentionGradients::default();
        let read = AttentionGradient {
            slots: &seen,
            ..read
        };
        windowed.run(&ThreadPool::new(1), &read, &cache, 1);
        assert_eq!(windowed.by_queries, alone.by_queries);
        assert_eq!(windowed.by_keys, alone.by_keys);
        assert_eq!(windowed.by_values, alone.by_values);
        let attended = Attended {
            params,
            num_tokens,
            by_result: &by_result,
        };
        let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
        let inputs = [&queries[..], &keys, &values].map(wide);
        let results = [
            (0, 0, heads * dim, &found.by_queries),
            (1, before, kv_heads * dim, &found.by_keys),
            (2, before, kv_heads * dim, &found.by_values),
        ];
        for (which, skipped, width, result) in results {
            assert_eq!(result.len(), num_rows * width);
            // The change along a direction of each row and head.
            for (index, result) in result.chunks_exact(dim).enumerate() {
                let direction = random.values(dim);
                let at = |step: f64| {
                    let mut inputs = inputs.clone();
                    let place = skipped * width + index * dim;
                    for (x, along) in inputs[which][place..].iter_mut().zip(&direction) {
                        *x += step * f64::from(*along);
                    }
                    attended.sum(inputs.each_ref().map(Vec::as_slice))
                };
                let wanted = (at(STEP) - at(-STEP)) / (2.0 * STEP);
                let got = result.iter().zip(&direction);
                let got: f64 = got.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                assert!(
                    (got - wanted).abs() < 1e-4,
                    "{which} {index}: {got} {wanted}"
                );
            }
        }
    }
}

#[test]
fn every_instruction_set_passes_these_tests() {
    common::with_other_instruction_sets();
}
