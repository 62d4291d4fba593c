use ponder_kernels::Glu;

use crate::rows::float_product::{FloatRows, Product};
use crate::rows::testing::*;
use crate::rows::{FloatMatrix, RowList, activate, gate_up, project, project_add, quantise};
use crate::{Activations, Gpu, Rows};

/// Outputs and inputs: each number of lanes, with and without whole quads.
const SHAPES: [[usize; 2]; 9] = [
    [1, 1],
    [1, 5],
    [7, 33],
    [33, 128],
    [5, 129],
    [9, 576],
    [34, 260],
    [3, 1024],
    [10, 1030],
];
const VARIANTS: [[usize; 2]; 3] = [[1, 1], [8, 1], [8, 4]];

fn reference<'a>(x: &'a [f32], weights: &'a [f32], ins: usize) -> impl Iterator<Item = f64> + 'a {
    let dot = |x: &[f32], w: &[f32]| -> f64 {
        x.iter()
            .zip(w)
            .map(|(x, w)| f64::from(*x) * f64::from(*w))
            .sum()
    };
    let rows = x.chunks(ins);
    rows.flat_map(move |x| weights.chunks(ins).map(move |w| dot(x, w)))
}

#[test]
fn products_are_the_same_whatever_is_computed_at_once() {
    let gpu = Gpu::for_tests();
    for [outs, ins] in SHAPES {
        let of_weights = random(1, outs * ins);
        let matrix = FloatMatrix::upload(&gpu, &of_weights, [outs, ins]).expect("memory");
        let num_rows = 9;
        let values = random(2, num_rows * ins);
        let x = rows_of(&gpu, &values, ins);
        let mut results = Vec::new();
        for at_once in VARIANTS {
            let mut out = Rows::default();
            out.reshape(&gpu, num_rows, outs).expect("memory");
            let product = Product {
                x: FloatRows::from(&x),
                out: FloatRows::from(&out),
                num_rows,
                ..Product::new(&matrix)
            };
            product.launch_at_once(&gpu, at_once).expect("launch");
            results.push(values_of(&gpu, &out));
        }
        assert_close(&results[0], reference(&values, &of_weights, ins), 1e-5);
        assert_bits(&results[1], &results[0]);
        assert_bits(&results[2], &results[0]);
        for (row, of_row) in values.chunks(ins).enumerate() {
            let mut alone = Activations::new(true);
            quantise(&gpu, &rows_of(&gpu, of_row, ins), &mut alone).expect("launch");
            let mut out = Rows::default();
            project(&gpu, &alone, &matrix, None, &mut out).expect("launch");
            assert_bits(&values_of(&gpu, &out), &results[0][row * outs..][..outs]);
        }
    }
}

#[test]
fn biases_and_what_was_there_are_added() {
    let gpu = Gpu::for_tests();
    for [outs, ins] in [[7, 33], [9, 576], [3, 1024]] {
        let matrix =
            FloatMatrix::upload(&gpu, &random(1, outs * ins), [outs, ins]).expect("memory");
        let of_bias = random(3, outs);
        let bias = gpu.upload(&of_bias).expect("memory");
        let mut x = Activations::new(true);
        quantise(&gpu, &rows_of(&gpu, &random(2, 2 * ins), ins), &mut x).expect("launch");
        let mut plain = Rows::default();
        project(&gpu, &x, &matrix, None, &mut plain).expect("launch");
        let plain = values_of(&gpu, &plain);
        let mut out = Rows::default();
        project(&gpu, &x, &matrix, Some(&bias), &mut out).expect("launch");
        let biased: Vec<f32> = plain
            .iter()
            .zip(of_bias.iter().cycle())
            .map(|(x, b)| x + b)
            .collect();
        assert_bits(&values_of(&gpu, &out), &biased);
        let residual = random(4, 2 * outs);
        let mut out = rows_of(&gpu, &residual, outs);
        project_add(&gpu, &x, &matrix, Some(&bias), &mut out).expect("launch");
        let sums: Vec<f32> = residual.iter().zip(&biased).map(|(r, x)| r + x).collect();
        assert_bits(&values_of(&gpu, &out), &sums);
    }
}

#[test]
fn listed_rows_are_those_of_whole_products() {
    let gpu = Gpu::for_tests();
    let (outs, ins) = (5, 36);
    let matrix = FloatMatrix::upload(&gpu, &random(1, outs * ins), [outs, ins]).expect("memory");
    let x = rows_of(&gpu, &random(2, 6 * ins), ins);
    let mut activations = Activations::new(true);
    quantise(&gpu, &x, &mut activations).expect("launch");
    let mut all = Rows::default();
    project(&gpu, &activations, &matrix, None, &mut all).expect("launch");
    let all = values_of(&gpu, &all);
    let (from, to) = ([5, 1, 2], [0, 4, 3]);
    let x_rows = gpu.upload(&from).expect("memory");
    let out_rows = gpu.upload(&to).expect("memory");
    let before = random(3, 6 * outs);
    let out = rows_of(&gpu, &before, outs);
    let product = Product {
        x: FloatRows::from(&x),
        x_rows: Some(RowList::all(&x_rows)),
        out: FloatRows::from(&out),
        out_rows: Some(RowList::all(&out_rows)),
        num_rows: 3,
        ..Product::new(&matrix)
    };
    product.launch(&gpu).expect("launch");
    let mut expected = before;
    for (from, to) in from.into_iter().zip(to) {
        let (from, to) = (from as usize * outs, to as usize * outs);
        expected[to..to + outs].copy_from_slice(&all[from..from + outs]);
    }
    assert_bits(&values_of(&gpu, &out), &expected);
}

#[test]
fn gated_units_are_their_products_and_the_gate() {
    let gpu = Gpu::for_tests();
    let (outs, ins) = (6, 20);
    let matrix =
        |seed| FloatMatrix::upload(&gpu, &random(seed, outs * ins), [outs, ins]).expect("memory");
    let (gate, up) = (matrix(1), matrix(2));
    let mut x = Activations::new(true);
    quantise(&gpu, &rows_of(&gpu, &random(3, 3 * ins), ins), &mut x).expect("launch");
    let [mut of_gate, mut of_up] = [Rows::default(), Rows::default()];
    let mut out = dirty_activations(&gpu, 3, outs);
    let scratch = [&mut of_gate, &mut of_up];
    gate_up(&gpu, &x, [&gate, &up], Glu::Silu, scratch, &mut out).expect("launch");
    let fused = floats_of(&gpu, &out);
    project(&gpu, &x, &gate, None, &mut of_gate).expect("launch");
    project(&gpu, &x, &up, None, &mut of_up).expect("launch");
    activate(&gpu, &mut of_gate, &of_up, Glu::Silu, &mut out).expect("launch");
    assert_bits(&fused, &floats_of(&gpu, &out));
    assert_bits(&fused, &values_of(&gpu, &of_gate));
}
