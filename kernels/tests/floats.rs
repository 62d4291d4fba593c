//! Products with unquantised weights against plain sums.

mod common;

use common::{Random, product};
use half::{bf16, f16};
use ponder_kernels::*;

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Random weights of a type: their bytes and their values.
fn floats(dtype: DType, count: usize, seed: u64) -> (Vec<u8>, Vec<f32>) {
    let values = Random(seed).values(count);
    let halves = |bits: Vec<u16>| bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    match dtype {
        DType::F32 => (
            values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            values,
        ),
        DType::F16 => {
            let rounded: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
            let wide = rounded.iter().map(|v| v.to_f32()).collect();
            (halves(rounded.iter().map(|v| v.to_bits()).collect()), wide)
        }
        _ => {
            let rounded: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
            let wide = rounded.iter().map(|v| v.to_f32()).collect();
            (halves(rounded.iter().map(|v| v.to_bits()).collect()), wide)
        }
    }
}

/// Widths that are no whole pairs, lines or passes over the inputs, and outputs that are no whole
/// panels or pairs of them.
const SHAPES: [(usize, usize); 7] = [
    (1, 1),
    (16, 2),
    (17, 33),
    (48, 255),
    (130, 1024),
    (33, 2051),
    (20, 4100),
];

/// A sum of `k` products of values in -1..1 that is rounded after each product is off by
/// `2^-24 * sqrt(k)` times its own size, about `sqrt(k) / 3`, at most: the bound is some of that.
#[test]
fn sums_equal_those_of_f64() {
    let pool = ThreadPool::eager(2);
    for dtype in FLOATS {
        for (out_features, in_features) in SHAPES {
            let (bytes, weights) = floats(dtype, out_features * in_features, 5);
            let packed =
                PackedMatrix::pack(&pool, dtype, &bytes, out_features, in_features).unwrap();
            for rows in [1, 3, 8, 13, 65] {
                let mut x = Random(rows as u64).values(rows * in_features);
                let actual = product(&pool, &packed, &x);
                if dtype == DType::BF16 && rounds_to_bf16() {
                    let round = |x: &mut f32| *x = bf16::from_f32(*x).to_f32();
                    x.iter_mut().for_each(round);
                }
                let mut expected = vec![0.0; actual.len()];
                reference::matmul(&x, &weights, in_features, &mut expected);
                let bound = 2e-7 * (in_features as f32 + 1.0);
                for (a, b) in actual.iter().zip(&expected) {
                    let name = dtype.name();
                    assert!(
                        (a - b).abs() <= bound,
                        "{name} {out_features}x{in_features} rows {rows}: {a} is not {b}"
                    );
                }
            }
        }
    }
}

/// Whatever the number of rows beside it, of threads, and where tiles and passes begin.
#[test]
fn a_row_has_the_bits_that_it_has_alone() {
    for dtype in FLOATS {
        for (out_features, in_features) in [(53, 515), (70, 2050)] {
            let (bytes, _) = floats(dtype, out_features * in_features, 6);
            let pools = [1, 2, 3].map(ThreadPool::eager);
            let packed =
                PackedMatrix::pack(&pools[0], dtype, &bytes, out_features, in_features).unwrap();
            let x = Random(7).values(75 * in_features);
            let alone: Vec<f32> = (x.chunks(in_features))
                .flat_map(|row| product(&pools[0], &packed, row))
                .collect();
            for rows in [2, 3, 4, 5, 6, 7, 8, 9, 15, 64, 75] {
                for pool in &pools {
                    let together = product(pool, &packed, &x[..rows * in_features]);
                    assert_eq!(together, alone[..rows * out_features], "{}", dtype.name());
                }
            }
        }
    }
}

#[test]
fn packed_rows_read_back_as_they_were() {
    let pool = ThreadPool::eager(2);
    for dtype in FLOATS {
        for (out_features, in_features) in SHAPES {
            let (bytes, weights) = floats(dtype, out_features * in_features, 8);
            let packed =
                PackedMatrix::pack(&pool, dtype, &bytes, out_features, in_features).unwrap();
            let mut row = vec![f32::NAN; in_features];
            for (index, expected) in weights.chunks(in_features).enumerate() {
                packed.dequantize_row(index, &mut row);
                assert_eq!(row, expected, "{} row {index}", dtype.name());
            }
        }
    }
}

/// What is no number stays none, and does not reach other rows or outputs.
#[test]
fn infinities_stay_in_their_row() {
    let pool = ThreadPool::new(1);
    for dtype in FLOATS {
        let (bytes, _) = floats(dtype, 17 * 33, 9);
        let packed = PackedMatrix::pack(&pool, dtype, &bytes, 17, 33).unwrap();
        let mut x = Random(10).values(3 * 33);
        let expected = product(&pool, &packed, &x);
        x[33 + 5] = f32::NAN;
        let actual = product(&pool, &packed, &x);
        assert_eq!(actual[..17], expected[..17], "{}", dtype.name());
        assert_eq!(actual[34..], expected[34..], "{}", dtype.name());
        assert!(actual[17..34].iter().all(|value| value.is_nan()));
    }
}

/// Each row and expert as the product of that expert alone; rows of experts begin anywhere.
#[test]
fn experts_of_floats_equal_matrices_of_their_own() {
    const EXPERTS: usize = 3;
    let (out_features, in_features) = (48, 96);
    let pool = ThreadPool::eager(2);
    for dtype in FLOATS {
        let len = out_features * in_features;
        let (bytes, _) = floats(dtype, EXPERTS * len, 11);
        let experts = ExpertMatrix::pack(&pool, dtype, &bytes, EXPERTS, out_features, in_features);
        let experts = experts.unwrap();
        let mut routes = Routes::default();
        let gating = Gating {
            num_experts_per_tok: 1,
            scoring: Scoring::Softmax,
            normalise: true,
            scale: 1.0,
            groups: None,
        };
        let num_rows = 29;
        let logits = Random(12).values(num_rows * EXPERTS);
        routes.plan(&pool, &gating, &logits, EXPERTS, None);
        let x = Random(13).values(num_rows * in_features);
        let mut input = Activations::with_capacity(num_rows, in_features, true);
        input.load(&pool, &x, num_rows, in_features);
        let mut sorted = Activations::with_capacity(num_rows, in_features, true);
        sorted.gather(&pool, &input, routes.rows());
        let mut out = vec![f32::NAN; num_rows * out_features];
        experts_matmul(&pool, &sorted, &routes, &experts, &mut out);
        for expert in 0..EXPERTS {
            let part = bytes.len() / EXPERTS;
            let own = &bytes[expert * part..(expert + 1) * part];
            let own = PackedMatrix::pack(&pool, dtype, own, out_features, in_features).unwrap();
            for place in routes.rows_of(expert) {
                let row = routes.rows()[place] as usize;
                let expected = product(&pool, &own, &x[row * in_features..][..in_features]);
                assert_eq!(out[place * out_features..][..out_features], expected);
            }
        }
    }
}

#[test]
fn every_instruction_set_passes_these_tests() {
    common::with_other_instruction_sets();
}
