use crate::rows::testing::*;
use crate::rows::{
    Expanded, LatentScratch, LatentShape, Norm, latent_keys_values, latent_norm, latent_queries,
    latent_values, norm,
};
use crate::{Activations, Gpu, Rows};

const SHAPE: LatentShape = LatentShape {
    nope_head_dim: 6,
    rope_head_dim: 4,
    v_head_dim: 7,
};
const NUM_ROWS: usize = 3;
const NUM_HEADS: usize = 5;
const RANK: usize = 9;

#[test]
fn rotated_elements_of_queries_come_first() {
    let gpu = Gpu::for_tests();
    let head_dim = SHAPE.head_dim();
    let values = random(1, NUM_ROWS * NUM_HEADS * head_dim);
    let wide = rows_of(&gpu, &values, NUM_HEADS * head_dim);
    let mut q = Rows::default();
    latent_queries(&gpu, &SHAPE, &wide, &mut q).expect("launch");
    let heads = values.chunks(head_dim);
    let expected: Vec<f32> = heads
        .flat_map(|head| [&head[6..], &head[..6]].concat())
        .collect();
    assert_bits(&values_of(&gpu, &q), &expected);
    assert_eq!(q.width(), NUM_HEADS * head_dim);
}

#[test]
fn the_latent_is_normed_without_its_rotated_part() {
    let gpu = Gpu::for_tests();
    let weight = gpu.upload(&random(2, RANK)).expect("memory");
    let params = Norm {
        weight: &weight,
        eps: 1e-6,
    };
    let values = random(1, NUM_ROWS * (RANK + 4));
    let latent = rows_of(&gpu, &values, RANK + 4);
    let mut out = dirty_activations(&gpu, NUM_ROWS, RANK);
    latent_norm(&gpu, &latent, params, &mut out).expect("launch");
    let starts: Vec<f32> = values
        .chunks(RANK + 4)
        .flat_map(|row| &row[..RANK])
        .copied()
        .collect();
    let mut expected = Activations::new(true);
    norm(&gpu, &rows_of(&gpu, &starts, RANK), params, &mut expected).expect("launch");
    assert_bits(&floats_of(&gpu, &out), &floats_of(&gpu, &expected));
    assert_tiles_match_floats(&gpu, &out);
}

#[test]
fn keys_and_values_are_put_together_from_either_form() {
    let gpu = Gpu::for_tests();
    let LatentShape {
        nope_head_dim: nope,
        rope_head_dim: rope,
        v_head_dim: v_dim,
    } = SHAPE;
    let of_latent = random(1, NUM_ROWS * (RANK + rope));
    let latent = rows_of(&gpu, &of_latent, RANK + rope);
    let of_keys = random(2, NUM_ROWS * NUM_HEADS * nope);
    let of_values = random(3, NUM_ROWS * NUM_HEADS * v_dim);
    let (mut keys, mut values, mut joined) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..NUM_ROWS * NUM_HEADS {
        let (key, value) = (
            &of_keys[index * nope..][..nope],
            &of_values[index * v_dim..][..v_dim],
        );
        let row = index / NUM_HEADS;
        keys.extend_from_slice(&of_latent[row * (RANK + rope) + RANK..][..rope]);
        keys.extend_from_slice(key);
        values.extend_from_slice(value);
        values.extend(std::iter::repeat_n(0.0, SHAPE.head_dim() - v_dim));
        joined.extend_from_slice(key);
        joined.extend_from_slice(value);
    }
    let joined = rows_of(&gpu, &joined, NUM_HEADS * (nope + v_dim));
    let split = [
        rows_of(&gpu, &of_keys, NUM_HEADS * nope),
        rows_of(&gpu, &of_values, NUM_HEADS * v_dim),
    ];
    for expanded in [
        Expanded::Joined(&joined),
        Expanded::Split(&split[0], &split[1]),
    ] {
        // Values that were there before are overwritten by the padding's zeros.
        let garbage = vec![7.0; NUM_ROWS * NUM_HEADS * SHAPE.head_dim()];
        let mut k = rows_of(&gpu, &garbage, NUM_HEADS * SHAPE.head_dim());
        let mut v = rows_of(&gpu, &garbage, NUM_HEADS * SHAPE.head_dim());
        latent_keys_values(&gpu, &SHAPE, &latent, &expanded, [&mut k, &mut v]).expect("launch");
        assert_bits(&values_of(&gpu, &k), &keys);
        assert_bits(&values_of(&gpu, &v), &values);
    }
}

#[test]
fn padding_of_values_is_dropped_where_they_are() {
    let gpu = Gpu::for_tests();
    let head_dim = SHAPE.head_dim();
    let values = random(1, NUM_ROWS * NUM_HEADS * head_dim);
    let mut rows = rows_of(&gpu, &values, NUM_HEADS * head_dim);
    let address = rows.address();
    let mut scratch = LatentScratch::default();
    latent_values(&gpu, &SHAPE, &mut rows, &mut scratch).expect("launch");
    let heads = values.chunks(head_dim);
    let expected: Vec<f32> = heads.flat_map(|head| &head[..7]).copied().collect();
    assert_bits(&values_of(&gpu, &rows), &expected);
    assert_eq!((rows.width(), rows.address()), (NUM_HEADS * 7, address));
    // Nothing to drop.
    let whole = LatentShape {
        v_head_dim: 10,
        ..SHAPE
    };
    let mut rows = rows_of(&gpu, &values, NUM_HEADS * head_dim);
    latent_values(&gpu, &whole, &mut rows, &mut scratch).expect("nothing to do");
    assert_bits(&values_of(&gpu, &rows), &values);
}
