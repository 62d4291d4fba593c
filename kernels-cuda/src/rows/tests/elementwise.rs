use ponder_kernels::Glu;

use crate::rows::testing::*;
use crate::rows::{
    FloatMatrix, NO_OFFSET, Offsets, RowList, activate, add_offsets, add_scaled, add_weighted,
    embed_floats, keep_rows, quantise, transform_logits,
};
use crate::{Activations, Gpu, Rows};

/// With and without whole quads and blocks.
const WIDTHS: [usize; 5] = [1, 5, 33, 64, 576];

#[test]
fn rows_become_activations_bit_by_bit() {
    let gpu = Gpu::for_tests();
    for width in WIDTHS {
        for num_rows in [1, 9] {
            let values = random(width as u64, num_rows * width);
            let mut out = dirty_activations(&gpu, num_rows, width);
            quantise(&gpu, &rows_of(&gpu, &values, width), &mut out).expect("launch");
            assert_bits(&floats_of(&gpu, &out), &values);
            assert_tiles_match_floats(&gpu, &out);
            let mut tiles_only = Activations::new(false);
            quantise(&gpu, &rows_of(&gpu, &values, width), &mut tiles_only).expect("launch");
            assert_eq!(tile_rows(&gpu, &tiles_only), tile_rows(&gpu, &out));
        }
    }
}

#[test]
fn gates_multiply_what_they_let_through() {
    let gpu = Gpu::for_tests();
    for width in WIDTHS {
        for glu in [Glu::Silu, Glu::GeluTanh, Glu::ClampedSwish] {
            let of_gate: Vec<f32> = random(1, 3 * width).iter().map(|x| 8.0 * x).collect();
            let of_up: Vec<f32> = random(2, 3 * width).iter().map(|x| 8.0 * x).collect();
            let mut gate = rows_of(&gpu, &of_gate, width);
            let up = rows_of(&gpu, &of_up, width);
            let mut out = dirty_activations(&gpu, 3, width);
            activate(&gpu, &mut gate, &up, glu, &mut out).expect("launch");
            let expected = of_gate.iter().zip(&of_up).map(|(gate, up)| {
                let gate = f64::from(*gate);
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
                let up = f64::from(*up);
                match glu {
                    Glu::Silu => gate / (1.0 + (-gate).exp()) * up,
                    Glu::GeluTanh => 0.5 * gate * (1.0 + inner.tanh()) * up,
                    Glu::ClampedSwish => {
                        let x = gate.min(7.0);
                        x / (1.0 + (-1.702 * x).exp()) * (up.clamp(-7.0, 7.0) + 1.0)
                    }
                }
            });
            let values = values_of(&gpu, &gate);
            assert_close(&values, expected, 2e-6);
            assert_bits(&floats_of(&gpu, &out), &values);
            assert_tiles_match_floats(&gpu, &out);
        }
    }
}

#[test]
fn residuals_weights_and_offsets_are_added() {
    let gpu = Gpu::for_tests();
    for width in WIDTHS {
        let (of_x, of_h) = (random(1, 3 * width), random(2, 3 * width));
        let h = rows_of(&gpu, &of_h, width);
        let mut x = rows_of(&gpu, &of_x, width);
        add_scaled(&gpu, &mut x, &h, 0.37).expect("launch");
        let expected: Vec<f32> = of_x
            .iter()
            .zip(&of_h)
            .map(|(x, h)| 0.37_f32.mul_add(*h, *x))
            .collect();
        assert_bits(&values_of(&gpu, &x), &expected);

        let logits = [-1.5, 0.0, 3.0];
        let mut x = rows_of(&gpu, &of_x, width);
        add_weighted(&gpu, &h, &rows_of(&gpu, &logits, 1), 0.5, &mut x).expect("launch");
        let expected = of_x.iter().zip(&of_h).enumerate().map(|(index, (x, h))| {
            let weight = 0.5 / (1.0 + (-f64::from(logits[index / width])).exp());
            f64::from(*x) + weight * f64::from(*h)
        });
        assert_close(&values_of(&gpu, &x), expected, 1e-6);

        let values = gpu.upload(&of_h[..2 * width]).expect("memory");
        let of_row = gpu.upload(&[1, NO_OFFSET, 0]).expect("memory");
        let offsets = Offsets {
            values: &values,
            of_row: RowList::all(&of_row),
        };
        let mut x = rows_of(&gpu, &of_x, width);
        add_offsets(&gpu, &mut x, offsets).expect("launch");
        let mut expected = of_x.clone();
        for (row, offset) in [(0, 1), (2, 0)] {
            let of_row = &mut expected[row * width..][..width];
            of_row
                .iter_mut()
                .zip(&of_h[offset * width..])
                .for_each(|(x, o)| *x += o);
        }
        assert_bits(&values_of(&gpu, &x), &expected);
    }
}

#[test]
fn logits_are_scaled_and_capped() {
    let gpu = Gpu::for_tests();
    let values: Vec<f32> = random(1, 70).iter().map(|x| 90.0 * x).collect();
    let mut x = rows_of(&gpu, &values, 35);
    transform_logits(&gpu, &mut x, 0.5, None).expect("launch");
    let halves: Vec<f32> = values.iter().map(|x| 0.5 * x).collect();
    assert_bits(&values_of(&gpu, &x), &halves);
    transform_logits(&gpu, &mut x, 1.0, Some(30.0)).expect("launch");
    let expected = halves.iter().map(|x| 30.0 * (f64::from(*x) / 30.0).tanh());
    assert_close(&values_of(&gpu, &x), expected, 1e-6);
}

#[test]
fn tokens_become_rows_of_a_table() {
    let gpu = Gpu::for_tests();
    for width in WIDTHS {
        let values = random(1, 6 * width);
        let table = FloatMatrix::upload(&gpu, &values, [6, width]).expect("memory");
        let ids = gpu.upload(&[9, 5, 0, 5]).expect("memory");
        let list = RowList {
            indices: &ids,
            first: 1,
            len: 3,
        };
        let mut out = Rows::default();
        embed_floats(&gpu, &table, list, 2.0, &mut out).expect("launch");
        let expected = [5, 0, 5]
            .iter()
            .flat_map(|id| &values[id * width..][..width]);
        let expected: Vec<f32> = expected.map(|x| 2.0 * x).collect();
        assert_bits(&values_of(&gpu, &out), &expected);
    }
}

#[test]
fn rows_move_to_the_front_in_place() {
    let gpu = Gpu::for_tests();
    let num_rows = 40;
    let lists: [Vec<u32>; 5] = [
        (0..40).collect(),
        (20..40).collect(),
        (0..40).step_by(2).collect(),
        (0..12).chain([13, 14, 39]).collect(),
        vec![39],
    ];
    for width in WIDTHS {
        let values = random(width as u64, num_rows * width);
        for list in &lists {
            let mut x = rows_of(&gpu, &values, width);
            let kept = gpu.upload(list).expect("memory");
            keep_rows(&gpu, &mut x, RowList::all(&kept)).expect("launch");
            let expected = list
                .iter()
                .flat_map(|row| &values[*row as usize * width..][..width]);
            let expected: Vec<f32> = expected.copied().collect();
            assert_bits(&values_of(&gpu, &x), &expected);
        }
    }
    let mut x = rows_of(&gpu, &[1.0], 1);
    let kept = gpu.upload(&[0_u32]).expect("memory");
    let none = RowList {
        indices: &kept,
        first: 1,
        len: 0,
    };
    keep_rows(&gpu, &mut x, none).expect("nothing to do");
    assert_eq!(x.num_rows(), 0);
}
