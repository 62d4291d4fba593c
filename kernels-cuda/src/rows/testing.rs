//! What tests of rows share.

use half::bf16;

use crate::{Activations, Buffer, Gpu, Rows};

/// Numbers between -1 and 1, the same for the same seed.
pub(crate) fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(next).collect()
}

/// Rows of `width` values on the device.
pub(crate) fn rows_of(gpu: &Gpu, values: &[f32], width: usize) -> Rows {
    let mut rows = Rows::default();
    rows.reshape(gpu, values.len() / width, width)
        .expect("memory");
    let buffer = rows.buffer_mut().expect("shaped");
    gpu.write(buffer, 0, values).expect("fits");
    rows
}

pub(crate) fn read<T: crate::Plain>(gpu: &Gpu, buffer: &Buffer<T>, len: usize) -> Vec<T> {
    let mut values = vec![T::default(); len];
    gpu.read(buffer, 0, &mut values).expect("read");
    values
}

/// All values of rows.
pub(crate) fn values_of(gpu: &Gpu, rows: &Rows) -> Vec<f32> {
    let len = rows.num_rows() * rows.width();
    rows.buffer()
        .map_or(Vec::new(), |buffer| read(gpu, buffer, len))
}

/// Activations that keep floats and whose buffers are full of numbers that are not zero.
pub(crate) fn dirty_activations(gpu: &Gpu, num_rows: usize, width: usize) -> Activations {
    let mut out = Activations::new(true);
    let wide = width.next_multiple_of(64);
    let garbage = rows_of(gpu, &vec![7.0; (num_rows + 8) * wide], wide);
    super::quantise(gpu, &garbage, &mut out).expect("launch");
    out
}

/// The bits of the tiles as rows of the padded width.
pub(crate) fn tile_rows(gpu: &Gpu, x: &Activations) -> Vec<u16> {
    let padded = x.width().next_multiple_of(64);
    let tiles = x.buffers().0.expect("shaped");
    let tiles = read(gpu, tiles, x.row_stride() * padded);
    let mut rows = Vec::with_capacity(x.num_rows() * padded);
    for row in 0..x.num_rows() {
        for k in 0..padded {
            let line = k / 64 * x.row_stride() + row;
            let byte = line * 128 + ((k % 64 / 8) ^ (row % 8)) * 16 + k % 8 * 2;
            rows.push(tiles[byte / 2]);
        }
    }
    rows
}

/// The f32 values of activations.
pub(crate) fn floats_of(gpu: &Gpu, x: &Activations) -> Vec<f32> {
    let floats = x.buffers().1.expect("kept");
    read(gpu, floats, x.num_rows() * x.width())
}

/// Fails unless the tiles are the floats in bf16, with zeros up to the padded width.
pub(crate) fn assert_tiles_match_floats(gpu: &Gpu, x: &Activations) {
    let (width, padded) = (x.width(), x.width().next_multiple_of(64));
    let floats = floats_of(gpu, x);
    let tiles = tile_rows(gpu, x);
    for (row, (tile, floats)) in tiles.chunks(padded).zip(floats.chunks(width)).enumerate() {
        let expected = floats.iter().map(|x| bf16::from_f32(*x).to_bits());
        let expected: Vec<u16> = expected
            .chain(std::iter::repeat_n(0, padded - width))
            .collect();
        assert_eq!(tile, expected, "row {row} of width {width}");
    }
}

#[track_caller]
pub(crate) fn assert_close(got: &[f32], expected: impl IntoIterator<Item = f64>, tolerance: f64) {
    let expected: Vec<f64> = expected.into_iter().collect();
    assert_eq!(got.len(), expected.len());
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(
            error <= tolerance * expected.abs().max(1.0),
            "value {index}: {got} for {expected}"
        );
    }
}

#[track_caller]
pub(crate) fn assert_bits(got: &[f32], expected: &[f32]) {
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(got), bits(expected));
}
