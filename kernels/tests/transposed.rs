//! Products with transposed weights against plain code in f64.

mod common;

use common::{Random, quantised};
use ponder_kernels::*;

/// What rounding both sides to bf16 may change of a product, of quantised weights; f32 sums change
/// less.
const BF16: f64 = 1.0 / 256.0;
const F32: f64 = 1e-5;

/// Weights of some outputs, `[outputs, inputs]`, and what they are read back as.
struct Weights {
    packed: PackedMatrix,
    values: Vec<f32>,
}

fn weights(pool: &ThreadPool, dtype: DType, [outputs, inputs]: [usize; 2], seed: u64) -> Weights {
    let (bytes, values) = quantised(dtype, outputs, inputs, seed);
    Weights {
        packed: PackedMatrix::pack(pool, dtype, &bytes, outputs, inputs).unwrap(),
        values,
    }
}

/// `x · weights` of one row, and how far it may be off; `weights` are some outputs by `inputs`.
fn expected(x: &[f32], weights: &[f32], inputs: usize, column: usize, bound: f64) -> [f64; 2] {
    let weights = weights.iter().skip(column).step_by(inputs);
    let products = x.iter().zip(weights);
    let products = products.map(|(x, weight)| f64::from(*x) * f64::from(*weight));
    products.fold([0.0, 1e-6], |[sum, off], product| {
        [sum + product, off + bound * product.abs()]
    })
}

fn assert_close(place: &str, got: f32, parts: &[[f64; 2]], start: f64) {
    let (wanted, bound) = parts
        .iter()
        .fold((start, 0.0), |(a, b), part| (a + part[0], b + part[1]));
    let distance = (f64::from(got) - wanted).abs();
    assert!(distance <= bound, "{place}: {got} is not {wanted}");
}

fn bound(dtype: DType) -> f64 {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => F32,
        _ => BF16,
    }
}

#[test]
fn several_matrices_of_every_type() {
    let pool = ThreadPool::eager(3);
    for dtype in DType::ALL {
        // Outputs that fill no panel, rows that fill no tile, and float columns that fill no block.
        let inputs = match bound(dtype) == F32 {
            true => 77,
            false => dtype.block_size().max(64),
        };
        let (num_rows, outputs) = (29, [40, 1, 28]);
        let all: [Weights; 3] = std::array::from_fn(|index| {
            weights(&pool, dtype, [outputs[index], inputs], index as u64)
        });
        let mut random = Random(9);
        let x = outputs.map(|outputs| random.values(num_rows * outputs));
        let mut out = vec![1.0; num_rows * inputs];
        let mut rows = GradientRows::default();
        let packed = all.each_ref().map(|weights| &weights.packed);
        let of = |x: &[Vec<f32>; 3], rows: &mut GradientRows, out: &mut [f32]| {
            matmul_transposed(&pool, x.each_ref().map(Vec::as_slice), packed, rows, out);
        };
        of(&x, &mut rows, &mut out);
        for (row, out) in out.chunks_exact(inputs).enumerate() {
            for (column, got) in out.iter().enumerate() {
                let part = |index: usize| {
                    let x = &x[index][row * outputs[index]..][..outputs[index]];
                    expected(x, &all[index].values, inputs, column, bound(dtype))
                };
                assert_close(dtype.name(), *got, &[0, 1, 2].map(part), 1.0);
            }
        }
        // A row alone has the same bits.
        for row in [0, 13, 28] {
            let own = |index: usize| x[index][row * outputs[index]..][..outputs[index]].to_vec();
            let mut alone = vec![1.0; inputs];
            of(&[0, 1, 2].map(own), &mut rows, &mut alone);
            assert_eq!(alone, &out[row * inputs..][..inputs], "{}", dtype.name());
        }
    }
}

#[test]
fn more_outputs_than_are_read_back_at_once() {
    for (dtype, inputs) in [(DType::Q8_0, 96), (DType::F32, 50)] {
        let (num_rows, outputs) = (50, 2100);
        let pool = ThreadPool::eager(3);
        let weights = weights(&pool, dtype, [outputs, inputs], 5);
        let x = Random(6).values(num_rows * outputs);
        let of = |pool: &ThreadPool| {
            let mut out = vec![0.0; num_rows * inputs];
            let mut rows = GradientRows::default();
            matmul_transposed(pool, [&x], [&weights.packed], &mut rows, &mut out);
            out
        };
        let out = of(&pool);
        assert_eq!(out, of(&ThreadPool::new(1)), "whatever the threads");
        for (row, out) in out.chunks_exact(inputs).enumerate() {
            for (column, got) in out.iter().enumerate() {
                let x = &x[row * outputs..][..outputs];
                let part = expected(x, &weights.values, inputs, column, bound(dtype));
                assert_close(dtype.name(), *got, &[part], 0.0);
            }
        }
    }
}

const EXPERTS: usize = 7;
const CHOSEN: usize = 3;
const WIDTH: usize = 48;

fn routes(pool: &ThreadPool, num_rows: usize) -> Routes {
    let gating = Gating {
        num_experts_per_tok: CHOSEN,
        scoring: Scoring::Softmax,
        normalise: false,
        scale: 1.0,
        groups: None,
    };
    let mut routes = Routes::default();
    let mut logits = Random(12).values(num_rows * EXPERTS);
    // Nobody goes to the third expert.
    logits
        .iter_mut()
        .skip(2)
        .step_by(EXPERTS)
        .for_each(|logit| *logit = -9.0);
    routes.plan(pool, &gating, &logits, EXPERTS, None);
    routes
}

#[test]
fn rows_go_through_their_experts_and_back() {
    let pool = ThreadPool::eager(3);
    for dtype in DType::ALL {
        let inputs = dtype.block_size().max(32);
        let num_rows = 70;
        let routes = routes(&pool, num_rows);
        let pack = |seed: u64| {
            let (bytes, values) = quantised(dtype, EXPERTS * WIDTH, inputs, seed);
            let packed = ExpertMatrix::pack(&pool, dtype, &bytes, EXPERTS, WIDTH, inputs);
            (packed.unwrap(), values)
        };
        let [(gate, gate_values), (up, up_values)] = [1, 2].map(pack);
        let own = |values: &[f32], expert: usize| -> Vec<f32> {
            values[expert * WIDTH * inputs..][..WIDTH * inputs].to_vec()
        };
        let mut rows = GradientRows::default();
        let x = Random(13).values(num_rows * WIDTH);
        let mut out = vec![1.0; num_rows * CHOSEN * inputs];
        experts_transposed_from_rows(&pool, &x, &routes, &gate, &mut rows, &mut out);
        for (expert, slot) in slots(&routes) {
            let (row, weights) = (routes.rows()[slot] as usize, own(&gate_values, expert));
            for (column, got) in out[slot * inputs..][..inputs].iter().enumerate() {
                let x = &x[row * WIDTH..][..WIDTH];
                let part = expected(x, &weights, inputs, column, bound(dtype));
                assert_close(dtype.name(), *got, &[part], 1.0);
            }
        }
        let [first, second] = [14, 15].map(|seed| Random(seed).values(num_rows * CHOSEN * WIDTH));
        let mut out = vec![1.0; num_rows * inputs];
        let x = [&first[..], &second];
        experts_transposed_to_rows(&pool, x, &routes, [&gate, &up], &mut rows, &mut out);
        for row in 0..num_rows {
            let own_slots: Vec<_> = slots(&routes)
                .filter(|(_, slot)| routes.rows()[*slot] as usize == row)
                .collect();
            assert_eq!(own_slots.len(), CHOSEN);
            for column in [0, 1, inputs / 2, inputs - 1] {
                let parts = own_slots.iter().flat_map(|(expert, slot)| {
                    [(&first, &gate_values), (&second, &up_values)].map(|(x, values)| {
                        let x = &x[slot * WIDTH..][..WIDTH];
                        expected(x, &own(values, *expert), inputs, column, bound(dtype))
                    })
                });
                let parts: Vec<_> = parts.collect();
                let got = out[row * inputs + column];
                assert_close(dtype.name(), got, &parts, 1.0);
            }
        }
    }
}

/// Every slot with its expert.
fn slots(routes: &Routes) -> impl Iterator<Item = (usize, usize)> + '_ {
    let slots = |expert| routes.rows_of(expert).map(move |slot| (expert, slot));
    (0..routes.num_experts()).flat_map(slots)
}

#[test]
fn every_instruction_set_passes_these_tests() {
    common::with_other_instruction_sets();
}
