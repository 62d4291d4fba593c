use crate::rows::testing::*;
use crate::rows::{
    NO_OFFSET, Norm, Offsets, RowList, add_normed, final_norm, norm, norm_rows, read_normed,
};
use crate::{Activations, Gpu};

const EPS: f32 = 1e-5;
/// With and without whole quads; more threads from 4097 on; more than threads hold from 8193 on.
const WIDTHS: [usize; 9] = [1, 5, 33, 64, 576, 1030, 4100, 8200, 8201];

fn reference(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
    let scale = 1.0 / (squares / x.len() as f64 + f64::from(EPS)).sqrt();
    let pairs = x.iter().zip(weight);
    pairs
        .map(|(x, w)| f64::from(*x) * scale * f64::from(*w))
        .collect()
}

#[test]
fn a_norm_is_the_norm_and_a_row_has_the_same_bits_alone() {
    let gpu = Gpu::for_tests();
    for width in WIDTHS {
        let num_rows = 3;
        let mut values = random(width as u64, num_rows * width);
        // Rows of very different sizes, one of them zeros.
        values[..width].iter_mut().for_each(|x| *x *= 1e6);
        values[width..2 * width].fill(0.0);
        let of_weight = random(7, width);
        let weight = gpu.upload(&of_weight).expect("memory");
        let params = Norm {
            weight: &weight,
            eps: EPS,
        };
        let x = rows_of(&gpu, &values, width);
        let mut out = dirty_activations(&gpu, num_rows, width);
        norm(&gpu, &x, params, &mut out).expect("launch");
        let floats = floats_of(&gpu, &out);
        let expected = values
            .chunks(width)
            .flat_map(|row| reference(row, &of_weight));
        assert_close(&floats, expected, 1e-6);
        assert_tiles_match_floats(&gpu, &out);
        for (row, of_row) in values.chunks(width).enumerate() {
            let alone = rows_of(&gpu, of_row, width);
            norm(&gpu, &alone, params, &mut out).expect("launch");
            assert_bits(&floats_of(&gpu, &out), &floats[row * width..][..width]);
        }
    }
}

#[test]
fn all_forms_of_the_norm_give_the_same_bits() {
    let gpu = Gpu::for_tests();
    for width in [5, 576, 8200] {
        let values = random(3, 2 * width);
        let weight = gpu.upload(&random(4, width)).expect("memory");
        let params = Norm {
            weight: &weight,
            eps: EPS,
        };
        let mut x = rows_of(&gpu, &values, width);
        let mut out = Activations::new(true);
        norm(&gpu, &x, params, &mut out).expect("launch");
        let normed = floats_of(&gpu, &out);
        let row = read_normed(&gpu, &x, 1, params).expect("launch");
        assert_bits(&row.expect("a row"), &normed[width..]);
        assert_eq!(read_normed(&gpu, &x, 2, params), Ok(None));
        let residual = random(5, 2 * width);
        let mut sum = rows_of(&gpu, &residual, width);
        add_normed(&gpu, &mut sum, &x, params).expect("launch");
        let expected: Vec<f32> = residual.iter().zip(&normed).map(|(x, h)| x + h).collect();
        assert_bits(&values_of(&gpu, &sum), &expected);
        norm_rows(&gpu, &mut x, params).expect("launch");
        assert_bits(&values_of(&gpu, &x), &normed);
    }
}

#[test]
fn offsets_change_their_rows_alone() {
    let gpu = Gpu::for_tests();
    let (num_rows, width) = (4, 70);
    let values = random(1, num_rows * width);
    let weight = gpu.upload(&random(2, width)).expect("memory");
    let params = Norm {
        weight: &weight,
        eps: EPS,
    };
    let x = rows_of(&gpu, &values, width);
    let mut out = Activations::new(true);
    norm(&gpu, &x, params, &mut out).expect("launch");
    let normed = floats_of(&gpu, &out);
    let steering = random(3, 2 * width);
    // The table of a longer step: ours begins at its second row.
    let of_row = gpu
        .upload(&[0, NO_OFFSET, 1, NO_OFFSET, 0])
        .expect("memory");
    let of_offsets = gpu.upload(&steering).expect("memory");
    let offsets = Offsets {
        values: &of_offsets,
        of_row: RowList {
            indices: &of_row,
            first: 1,
            len: num_rows,
        },
    };
    final_norm(&gpu, &x, params, Some(offsets), &mut out).expect("launch");
    let mut expected = normed;
    for (row, offset) in [(1, 1), (3, 0)] {
        let of_row = &mut expected[row * width..][..width];
        of_row
            .iter_mut()
            .zip(&steering[offset * width..])
            .for_each(|(x, o)| *x += o);
    }
    assert_bits(&floats_of(&gpu, &out), &expected);
    assert_tiles_match_floats(&gpu, &out);
}

#[test]
fn a_row_that_is_not_a_number_leaves_the_others_alone() {
    let gpu = Gpu::for_tests();
    let width = 40;
    let mut values = random(1, 2 * width);
    values[3] = f32::NAN;
    let weight = gpu.upload(&random(2, width)).expect("memory");
    let params = Norm {
        weight: &weight,
        eps: EPS,
    };
    let mut out = Activations::new(true);
    norm(&gpu, &rows_of(&gpu, &values, width), params, &mut out).expect("launch");
    let floats = floats_of(&gpu, &out);
    assert!(floats[..width].iter().all(|x| x.is_nan()));
    norm(
        &gpu,
        &rows_of(&gpu, &values[width..], width),
        params,
        &mut out,
    )
    .expect("launch");
    assert_bits(&floats_of(&gpu, &out), &floats[width..]);
}
