//! Routing and products grouped by expert against plain code.

mod common;

use common::{Random, product, quantised};
use ponder_kernels::*;

const EXPERTS: usize = 7;
const CHOSEN: usize = 3;
const HIDDEN: usize = 256;
const WIDTH: usize = 64;

fn gating(scoring: Scoring, normalise: bool, scale: f32) -> Gating {
    Gating {
        num_experts_per_tok: CHOSEN,
        scoring,
        normalise,
        scale,
        groups: None,
    }
}

/// Chosen experts and weights of one row, from the definition.
fn plain_route(gating: &Gating, logits: &[f32], bias: Option<&[f32]>) -> Vec<(u32, f32)> {
    let exps: Vec<f64> = logits.iter().map(|z| f64::from(*z).exp()).collect();
    let sum: f64 = exps.iter().sum();
    let scores: Vec<f64> = match gating.scoring {
        Scoring::Softmax => exps.iter().map(|e| e / sum).collect(),
        Scoring::Sigmoid => exps.iter().map(|e| e / (1.0 + e)).collect(),
    };
    let biased = |e: usize| scores[e] + bias.map_or(0.0, |bias| f64::from(bias[e]));
    let mut candidates: Vec<usize> = (0..logits.len()).collect();
    if let Some(groups) = gating.groups {
        let len = logits.len() / groups.count;
        let value = |group: usize| {
            let mut members: Vec<f64> = (group * len..(group + 1) * len).map(biased).collect();
            members.sort_by(|a, b| b.total_cmp(a));
            match groups.score {
                GroupScore::Best => members[0],
                GroupScore::BestTwo => members[0] + members[1],
            }
        };
        let mut order: Vec<usize> = (0..groups.count).collect();
        order.sort_by(|a, b| value(*b).total_cmp(&value(*a)));
        order.truncate(groups.num_chosen);
        candidates.retain(|e| order.contains(&(e / len)));
    }
    candidates.sort_by(|a, b| biased(*b).total_cmp(&biased(*a)));
    candidates.truncate(gating.num_experts_per_tok);
    let total: f64 = candidates.iter().map(|e| scores[*e]).sum();
    let factor = f64::from(gating.scale) / if gating.normalise { total } else { 1.0 };
    candidates
        .iter()
        .map(|e| (*e as u32, (scores[*e] * factor) as f32))
        .collect()
}

#[test]
fn every_convention_routes_as_it_is_defined() {
    let pool = ThreadPool::eager(2);
    let groups = |score| {
        Some(Groups {
            count: 4,
            num_chosen: 2,
            score,
        })
    };
    let bias = Random(5).values(12);
    let cases = [
        (gating(Scoring::Softmax, false, 1.0), None),
        (gating(Scoring::Softmax, true, 1.0), None),
        (gating(Scoring::Softmax, false, 16.0), None),
        (
            Gating {
                groups: groups(GroupScore::Best),
                ..gating(Scoring::Softmax, false, 16.0)
            },
            None,
        ),
        (
            Gating {
                groups: groups(GroupScore::BestTwo),
                ..gating(Scoring::Sigmoid, true, 2.5)
            },
            Some(&bias[..]),
        ),
    ];
    for (gating, bias) in cases {
        let logits: Vec<f32> = Random(3).values(33 * 12).iter().map(|z| 3.0 * z).collect();
        let mut routes = Routes::default();
        routes.plan(&pool, &gating, &logits, 12, bias);
        for (row, logits) in logits.chunks_exact(12).enumerate() {
            let range = row * CHOSEN..(row + 1) * CHOSEN;
            let ours = routes.experts()[range.clone()].iter();
            let ours = ours.zip(&routes.gates()[range]);
            for ((expert, gate), (wanted, weight)) in ours.zip(plain_route(&gating, logits, bias)) {
                assert_eq!(*expert, wanted, "{gating:?}");
                assert!((gate - weight).abs() < 1e-5 * weight, "{gate} {weight}");
            }
        }
    }
}

#[test]
fn softmax_after_the_choice_is_softmax_before_it_normalised() {
    let pool = ThreadPool::new(1);
    let logits = Random(9).values(EXPERTS);
    let mut routes = Routes::default();
    routes.plan(
        &pool,
        &gating(Scoring::Softmax, true, 1.0),
        &logits,
        EXPERTS,
        None,
    );
    let chosen = routes.experts().iter().map(|e| logits[*e as usize].exp());
    let sum: f32 = chosen.clone().sum();
    for (gate, exp) in routes.gates().iter().zip(chosen) {
        assert!((gate - exp / sum).abs() < 1e-6);
    }
}

/// Every expert's matrix alone, and all of them packed together.
fn experts(
    pool: &ThreadPool,
    dtype: DType,
    outputs: usize,
    inputs: usize,
    seed: u64,
) -> (Vec<PackedMatrix>, ExpertMatrix) {
    let (bytes, _) = quantised(dtype, EXPERTS * outputs, inputs, seed);
    let pack = |bytes: &[u8]| PackedMatrix::pack(pool, dtype, bytes, outputs, inputs).unwrap();
    let alone = bytes.chunks_exact(bytes.len() / EXPERTS).map(pack);
    let alone = alone.collect();
    let together = ExpertMatrix::pack(pool, dtype, &bytes, EXPERTS, outputs, inputs).unwrap();
    (alone, together)
}

/// The whole feed-forward layer: `[rows, HIDDEN]`.
fn grouped(
    pool: &ThreadPool,
    x: &[f32],
    logits: &[f32],
    [gate, up, down]: [&ExpertMatrix; 3],
) -> Vec<f32> {
    let rows = x.len() / HIDDEN;
    let mut routes = Routes::default();
    routes.plan(
        pool,
        &gating(Scoring::Softmax, false, 2.0),
        logits,
        EXPERTS,
        None,
    );
    let [mut input, mut sorted, mut gated] =
        [(); 3].map(|()| Activations::with_capacity(rows, HIDDEN, true));
    input.load(pool, x, rows, HIDDEN);
    sorted.gather(pool, &input, routes.rows());
    experts_glu(pool, &sorted, &routes, gate, up, Glu::Silu, &mut gated);
    let mut results = vec![f32::NAN; rows * CHOSEN * HIDDEN];
    experts_matmul(pool, &gated, &routes, down, &mut results);
    let mut out = x.to_vec();
    routes.combine(pool, &results, 0.5, &mut out);
    out
}

#[test]
fn grouped_products_equal_those_of_each_expert_bit_by_bit() {
    for dtype in [
        DType::Q4_0,
        DType::Q8_0,
        DType::Q5_0,
        DType::F32,
        DType::BF16,
    ] {
        let pool = ThreadPool::eager(2);
        let (gates, gate) = experts(&pool, dtype, WIDTH, HIDDEN, 1);
        let (ups, up) = experts(&pool, dtype, WIDTH, HIDDEN, 2);
        let (downs, down) = experts(&pool, dtype, HIDDEN, WIDTH, 3);
        for rows in [1, 2, 17, 200] {
            let x = Random(4).values(rows * HIDDEN);
            let logits = Random(6).values(rows * EXPERTS);
            let actual = grouped(&pool, &x, &logits, [&gate, &up, &down]);
            let mut routes = Routes::default();
            let convention = gating(Scoring::Softmax, false, 2.0);
            routes.plan(&pool, &convention, &logits, EXPERTS, None);
            for row in 0..rows {
                let x = &x[row * HIDDEN..][..HIDDEN];
                let mut expected = x.to_vec();
                for index in row * CHOSEN..(row + 1) * CHOSEN {
                    let expert = routes.experts()[index] as usize;
                    let mut hidden = product(&pool, &gates[expert], x);
                    elementwise::glu(Glu::Silu, &mut hidden, &product(&pool, &ups[expert], x));
                    let result = product(&pool, &downs[expert], &hidden);
                    let gate = 0.5 * routes.gates()[index];
                    for (out, value) in expected.iter_mut().zip(result) {
                        *out += gate * value;
                    }
                }
                let actual = &actual[row * HIDDEN..][..HIDDEN];
                assert_eq!(actual, expected, "{} row {row} of {rows}", dtype.name());
            }
        }
    }
}

/// A bias is what an input of one more column would add: every product has its own expert's.
#[test]
fn biases_are_added_to_each_product() {
    let pool = ThreadPool::eager(2);
    for dtype in [DType::Q8_0, DType::F32] {
        let (gates, gate) = experts(&pool, dtype, WIDTH, HIDDEN, 1);
        let (ups, up) = experts(&pool, dtype, WIDTH, HIDDEN, 2);
        let (downs, down) = experts(&pool, dtype, HIDDEN, WIDTH, 3);
        let mut random = Random(12);
        let biases = [WIDTH, WIDTH, HIDDEN].map(|width| random.values(EXPERTS * width));
        let [gate, up, down] = [(gate, 0), (up, 1), (down, 2)]
            .map(|(matrix, index): (ExpertMatrix, usize)| matrix.with_bias(biases[index].clone()));
        let x = Random(4).values(HIDDEN);
        let logits = Random(6).values(EXPERTS);
        let mut routes = Routes::default();
        let convention = gating(Scoring::Softmax, true, 1.0);
        routes.plan(&pool, &convention, &logits, EXPERTS, None);
        let mut sorted = Activations::with_capacity(CHOSEN, HIDDEN, true);
        let mut input = Activations::with_capacity(1, HIDDEN, true);
        input.load(&pool, &x, 1, HIDDEN);
        sorted.gather(&pool, &input, routes.rows());
        let mut gated = Activations::with_capacity(CHOSEN, WIDTH, true);
        let kind = Glu::ClampedSwish;
        experts_glu(&pool, &sorted, &routes, &gate, &up, kind, &mut gated);
        let mut results = vec![f32::NAN; CHOSEN * HIDDEN];
        experts_matmul(&pool, &gated, &routes, &down, &mut results);
        for (expert, slot) in routes.experts().iter().zip(routes.slots()) {
            let expert = *expert as usize;
            let biased = |matrices: &[PackedMatrix], index: usize, x: &[f32]| -> Vec<f32> {
                let values = product(&pool, &matrices[expert], x);
                let bias = &biases[index][expert * values.len()..];
                values.iter().zip(bias).map(|(a, b)| a + b).collect()
            };
            let mut hidden = biased(&gates, 0, &x);
            elementwise::glu(kind, &mut hidden, &biased(&ups, 1, &x));
            let expected = biased(&downs, 2, &hidden);
            let result = &results[*slot as usize * HIDDEN..][..HIDDEN];
            assert_eq!(result, expected, "{} expert {expert}", dtype.name());
        }
    }
}

#[test]
fn an_expert_without_whole_panels_is_refused() {
    let pool = ThreadPool::new(1);
    let bytes = vec![0; 2 * 24 * 32 * 4];
    assert!(ExpertMatrix::pack(&pool, DType::F32, &bytes, 2, 24, 32).is_err());
    assert!(ExpertMatrix::pack(&pool, DType::F32, &bytes, usize::MAX, 16, 32).is_err());
}
