use crate::rows::testing::*;
use crate::rows::{
    AdaptedInput, FloatMatrix, LowRank, LowRankScratch, Norm, RowList, add_low_rank, norm,
};
use crate::{Activations, Gpu, Rows};

const NUM_ROWS: usize = 5;
const INS: usize = 33;
const OUTS: usize = 18;
const RANK: usize = 3;

/// `out` after what some rows' adapter adds.
fn adapted(gpu: &Gpu, listed: &[u32], input: AdaptedInput<'_>, before: &[f32]) -> Vec<f32> {
    let down = FloatMatrix::upload(gpu, &random(1, RANK * INS), [RANK, INS]).expect("memory");
    let up = FloatMatrix::upload(gpu, &random(2, OUTS * RANK), [OUTS, RANK]).expect("memory");
    let factors = LowRank {
        down: &down,
        up: &up,
    };
    let list = gpu.upload(listed).expect("memory");
    let mut out = rows_of(gpu, before, OUTS);
    let mut other = rows_of(gpu, before, OUTS);
    let products = [(None, &mut other), (Some(factors), &mut out)];
    let mut scratch = LowRankScratch::default();
    add_low_rank(gpu, &mut scratch, RowList::all(&list), input, products).expect("launch");
    assert_bits(&values_of(gpu, &other), before);
    values_of(gpu, &out)
}

fn reference(listed: &[u32], x: &[f32], before: &[f32]) -> Vec<f64> {
    let (down, up) = (random(1, RANK * INS), random(2, OUTS * RANK));
    let dot =
        |a: &[f64], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum() };
    let mut out: Vec<f64> = before.iter().map(|x| f64::from(*x)).collect();
    for row in listed {
        let row = *row as usize;
        let x: Vec<f64> = x[row * INS..][..INS]
            .iter()
            .map(|x| f64::from(*x))
            .collect();
        let low: Vec<f64> = down.chunks(INS).map(|down| dot(&x, down)).collect();
        for (out, up) in out[row * OUTS..][..OUTS].iter_mut().zip(up.chunks(RANK)) {
            *out += dot(&low, up);
        }
    }
    out
}

#[test]
fn listed_rows_change_and_no_others() {
    let gpu = Gpu::for_tests();
    let (of_x, before) = (random(3, NUM_ROWS * INS), random(4, NUM_ROWS * OUTS));
    let x = rows_of(&gpu, &of_x, INS);
    let listed = [1, 2, 4];
    let got = adapted(&gpu, &listed, AdaptedInput::Plain(&x), &before);
    assert_close(&got, reference(&listed, &of_x, &before), 1e-5);
    for row in [0, 3] {
        assert_bits(&got[row * OUTS..][..OUTS], &before[row * OUTS..][..OUTS]);
    }
    for row in listed {
        let alone = adapted(&gpu, &[row], AdaptedInput::Plain(&x), &before);
        let range = row as usize * OUTS..(row as usize + 1) * OUTS;
        assert_bits(&alone[range.clone()], &got[range]);
    }
    assert_bits(
        &adapted(&gpu, &[], AdaptedInput::Plain(&x), &before),
        &before,
    );
}

#[test]
fn normed_rows_give_what_the_norm_gives() {
    let gpu = Gpu::for_tests();
    let (of_x, before) = (random(3, NUM_ROWS * INS), random(4, NUM_ROWS * OUTS));
    let x = rows_of(&gpu, &of_x, INS);
    let weight = gpu.upload(&random(5, INS)).expect("memory");
    let params = Norm {
        weight: &weight,
        eps: 1e-5,
    };
    let mut activations = Activations::new(true);
    norm(&gpu, &x, params, &mut activations).expect("launch");
    let normed: Rows = rows_of(&gpu, &floats_of(&gpu, &activations), INS);
    let listed = [0, 3];
    let expected = adapted(&gpu, &listed, AdaptedInput::Plain(&normed), &before);
    let input = AdaptedInput::Normed {
        rows: &x,
        norm: params,
    };
    assert_bits(&adapted(&gpu, &listed, input, &before), &expected);
}
