//! What lies around products grouped by expert, and the products of f32 matrices.

use ponder_kernels::Glu;

use super::*;
use crate::experts::{combine, gather};
use crate::rows::testing::*;
use crate::rows::{
    FloatExperts, FloatMatrix, gate_up, grouped_gate_up, grouped_project, project, quantise,
};
use crate::{Activations, Rows};

const NUM_ROWS: usize = 11;
const NUM_EXPERTS: usize = 5;
const CHOSEN: usize = 2;

fn activations(gpu: &Gpu, values: &[f32], width: usize) -> Activations {
    let mut x = Activations::new(true);
    quantise(gpu, &rows_of(gpu, values, width), &mut x).expect("launch");
    x
}

#[test]
fn gathered_rows_are_the_rows() {
    let gpu = Gpu::for_tests();
    let logits = distinct_logits(1, NUM_ROWS, NUM_EXPERTS);
    let routing = routed(&gpu, &plain(CHOSEN), &logits, NUM_EXPERTS, None, 8);
    let sorted = values(&gpu, &routing.buffers.sorted_rows, routing.capacity());
    for width in [5, 64, 130] {
        let of_x = random(2, NUM_ROWS * width);
        let x = activations(&gpu, &of_x, width);
        let mut out = dirty_activations(&gpu, routing.capacity(), width);
        gather(&gpu, &x, &routing, &mut out).expect("launch");
        let padded = width.next_multiple_of(64);
        let (from, to) = (tile_rows(&gpu, &x), tile_rows(&gpu, &out));
        let floats = floats_of(&gpu, &out);
        for (slot, row) in sorted
            .iter()
            .enumerate()
            .filter(|(_, row)| **row != u32::MAX)
        {
            let row = *row as usize;
            assert_eq!(
                to[slot * padded..][..padded],
                from[row * padded..][..padded]
            );
            assert_bits(
                &floats[slot * width..][..width],
                &of_x[row * width..][..width],
            );
        }
    }
}

#[test]
fn results_are_combined_in_the_order_of_scores() {
    let gpu = Gpu::for_tests();
    let logits = distinct_logits(1, NUM_ROWS, NUM_EXPERTS);
    let counts = gpu.upload(&[NUM_ROWS as u32 - 1]).expect("memory");
    let live = LiveRows {
        counts: &counts,
        index: 0,
    };
    let mut routing = Routing::default();
    let rows = rows_of(&gpu, &logits, NUM_EXPERTS);
    let gating = plain(3);
    let params = RouteParams {
        live: Some(live),
        ..RouteParams::new(&gating, 8)
    };
    route(&gpu, &params, &rows, &mut routing).expect("launch");
    let slots = values(&gpu, &routing.buffers.slots, NUM_ROWS * 3);
    let (_, gates) = routing.read(&gpu).expect("read");
    for width in [1, 7, 36] {
        let of_results = random(3, routing.capacity() * width);
        let results = rows_of(&gpu, &of_results, width);
        let before = random(4, NUM_ROWS * width);
        let mut out = rows_of(&gpu, &before, width);
        combine(&gpu, &routing, &results, 0.7, &mut out).expect("launch");
        let mut expected = before;
        // The last row goes nowhere.
        for index in 0..(NUM_ROWS - 1) * 3 {
            let result = &of_results[slots[index] as usize * width..][..width];
            let out = &mut expected[index / 3 * width..][..width];
            for (out, value) in out.iter_mut().zip(result) {
                *out = (0.7 * gates[index]).mul_add(*value, *out);
            }
        }
        assert_bits(&values_of(&gpu, &out), &expected);
    }
}

#[test]
fn grouped_products_are_those_of_each_expert() {
    let gpu = Gpu::for_tests();
    let mut logits = distinct_logits(1, NUM_ROWS, NUM_EXPERTS);
    // Everybody's first choice: tiles with more rows than are computed at once.
    logits
        .iter_mut()
        .skip(2)
        .step_by(NUM_EXPERTS)
        .for_each(|x| *x = 9.0);
    for (height, outs, ins) in [(8, 5, 20), (16, 3, 33), (8, 9, 300), (16, 2, 1028)] {
        let routing = routed(&gpu, &plain(CHOSEN), &logits, NUM_EXPERTS, None, height);
        let sorted = values(&gpu, &routing.buffers.sorted_rows, routing.capacity());
        let tiles = values(&gpu, &routing.buffers.tiles, 4 * routing.max_tiles());
        let of_matrices = random(5, NUM_EXPERTS * outs * ins);
        let shape = [NUM_EXPERTS, outs, ins];
        let experts = FloatExperts::upload(&gpu, &of_matrices, shape).expect("memory");
        let x = activations(&gpu, &random(6, NUM_ROWS * ins), ins);
        let mut gathered = Activations::new(true);
        gather(&gpu, &x, &routing, &mut gathered).expect("launch");
        let mut out = Rows::default();
        grouped_project(&gpu, &gathered, &experts, &routing, &mut out).expect("launch");
        let got = values_of(&gpu, &out);
        let mut num_checked = 0;
        for tile in tiles.chunks(4) {
            let values = &of_matrices[tile[0] as usize * outs * ins..][..outs * ins];
            let matrix = FloatMatrix::upload(&gpu, values, [outs, ins]).expect("memory");
            let mut all = Rows::default();
            project(&gpu, &x, &matrix, None, &mut all).expect("launch");
            let all = values_of(&gpu, &all);
            for slot in tile[1] as usize..(tile[1] + tile[2]) as usize {
                let row = sorted[slot] as usize;
                assert_bits(&got[slot * outs..][..outs], &all[row * outs..][..outs]);
                num_checked += 1;
            }
        }
        assert_eq!(num_checked, NUM_ROWS * CHOSEN);
    }
}

#[test]
fn grouped_gated_units_are_those_of_each_expert() {
    let gpu = Gpu::for_tests();
    let (outs, ins) = (6, 12);
    let logits = distinct_logits(1, NUM_ROWS, NUM_EXPERTS);
    let routing = routed(&gpu, &plain(CHOSEN), &logits, NUM_EXPERTS, None, 8);
    let sorted = values(&gpu, &routing.buffers.sorted_rows, routing.capacity());
    let tiles = values(&gpu, &routing.buffers.tiles, 4 * routing.max_tiles());
    let of_matrices = [5, 6].map(|seed| random(seed, NUM_EXPERTS * outs * ins));
    let shape = [NUM_EXPERTS, outs, ins];
    let upload = |values: &Vec<f32>| FloatExperts::upload(&gpu, values, shape).expect("memory");
    let experts = of_matrices.each_ref().map(upload);
    let x = activations(&gpu, &random(7, NUM_ROWS * ins), ins);
    let mut gathered = Activations::new(true);
    gather(&gpu, &x, &routing, &mut gathered).expect("launch");
    let [mut gate, mut up] = [Rows::default(), Rows::default()];
    let mut out = Activations::new(true);
    let scratch = [&mut gate, &mut up];
    let matrices = experts.each_ref();
    grouped_gate_up(
        &gpu,
        &gathered,
        matrices,
        Glu::Silu,
        &routing,
        scratch,
        &mut out,
    )
    .expect("launch");
    let got = floats_of(&gpu, &out);
    for tile in tiles.chunks(4).filter(|tile| tile[2] > 0) {
        let first = tile[0] as usize * outs * ins;
        let matrices = of_matrices.each_ref().map(|values| {
            let values = &values[first..first + outs * ins];
            FloatMatrix::upload(&gpu, values, [outs, ins]).expect("memory")
        });
        let scratch = [&mut gate, &mut up];
        gate_up(&gpu, &x, matrices.each_ref(), Glu::Silu, scratch, &mut out).expect("launch");
        let all = floats_of(&gpu, &out);
        for slot in tile[1] as usize..(tile[1] + tile[2]) as usize {
            let row = sorted[slot] as usize;
            assert_bits(&got[slot * outs..][..outs], &all[row * outs..][..outs]);
        }
    }
}
