//! The low-bit types against gguf-py (see `goldens/blocks.py`), and on blocks of any bytes.

mod common;

use common::{Random, product};
use ponder_kernels::*;

/// Blocks of one type with the values that gguf-py reads from them.
struct Golden {
    dtype: DType,
    bytes: &'static [u8],
    values: Vec<f32>,
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

fn goldens() -> Vec<Golden> {
    let mut file: &[u8] = include_bytes!("goldens/blocks.bin");
    let mut goldens = Vec::new();
    while !file.is_empty() {
        let [id, count] =
            [0; 2].map(|_| u32::from_le_bytes(take(&mut file, 4).try_into().unwrap()));
        let dtype = DType::from_ggml(id).unwrap();
        let count = count as usize;
        let bytes = take(&mut file, count * dtype.block_bytes());
        let values = take(&mut file, count * dtype.block_size() * 4);
        let values = values.as_chunks::<4>().0.iter();
        goldens.push(Golden {
            dtype,
            bytes,
            values: values.map(|value| f32::from_le_bytes(*value)).collect(),
        });
    }
    goldens
}

/// Products of a block's integers are exact in f32, so the values are equal, not close.
#[test]
fn blocks_read_as_gguf_py_reads_them() {
    let goldens = goldens();
    assert_eq!(goldens.len(), 10);
    for golden in &goldens {
        let mut actual = vec![f32::NAN; golden.values.len()];
        reference::dequantize(golden.dtype, golden.bytes, &mut actual);
        assert_eq!(actual, golden.values, "{}", golden.dtype.name());
    }
}

#[test]
fn packed_blocks_read_back_as_gguf_py_reads_them() {
    let pool = ThreadPool::eager(2);
    for golden in goldens() {
        let (dtype, width) = (golden.dtype, golden.dtype.block_size());
        let rows = golden.values.len() / width;
        let packed = PackedMatrix::pack(&pool, dtype, golden.bytes, rows, width).unwrap();
        let mut row = vec![f32::NAN; width];
        for (index, expected) in golden.values.chunks_exact(width).enumerate() {
            packed.dequantize_row(index, &mut row);
            assert_eq!(row, expected, "{} row {index}", dtype.name());
        }
        // Rows and columns exchanged: the transposed product of a unit vector is a row, which may
        // be rounded to bf16.
        let mut room = GradientRows::default();
        for (index, expected) in golden.values.chunks_exact(width).enumerate() {
            let mut unit = vec![0.0; rows];
            unit[index] = 1.0;
            let mut out = vec![0.0; width];
            matmul_transposed(&pool, [&unit], [&packed], &mut room, &mut out);
            if golden.values.iter().all(|value| value.is_finite()) {
                let is_near = |(a, b): (&f32, &f32)| (a - b).abs() <= b.abs() / 256.0 + 1e-37;
                let is_row = out.iter().zip(expected).all(is_near);
                assert!(is_row, "{} row {index}", dtype.name());
            }
        }
    }
}

/// What the kernels compute, in f64: the dot product of the weights with the inputs' codes, which
/// with whole numbers in -127..=127 are the inputs. Scales reach from subnormal to the largest.
#[test]
fn products_of_extreme_blocks_equal_the_reference() {
    let pool = ThreadPool::eager(2);
    for golden in goldens() {
        let (dtype, width) = (golden.dtype, golden.dtype.block_size());
        let rows = golden.values.len() / width;
        let packed = PackedMatrix::pack(&pool, dtype, golden.bytes, rows, width).unwrap();
        for num_inputs in [1, 3, 9, 20] {
            let mut random = Random(num_inputs as u64);
            let mut x: Vec<f32> = (0..num_inputs * width)
                .map(|_| (random.next() % 255) as f32 - 127.0)
                .collect();
            x.iter_mut().step_by(32).for_each(|first| *first = 127.0);
            let out = product(&pool, &packed, &x);
            for (x, out) in x.chunks_exact(width).zip(out.chunks_exact(rows)) {
                for (weights, actual) in golden.values.chunks_exact(width).zip(out) {
                    let products = weights.iter().zip(x);
                    let products = products.map(|(w, x)| f64::from(*w) * f64::from(*x));
                    let (mut sum, mut size) = (0.0, 0.0);
                    for product in products {
                        sum += product;
                        size += product.abs();
                    }
                    // Minima take more off than is left: 32 roundings of the parts' size.
                    let bound = size * 4e-6 + f64::from(f32::MIN_POSITIVE);
                    let is_close = (f64::from(*actual) - sum).abs() <= bound;
                    let is_large = sum.abs() > f64::from(f32::MAX) / 1000.0 || sum.is_nan();
                    assert!(
                        is_close || is_large,
                        "{}: {actual} is not {sum}",
                        dtype.name()
                    );
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_passes_these_tests() {
    common::with_other_instruction_sets();
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(100))]
    /// Any bytes of any type: they pack, multiply and read back, and a row's result is its own.
    #[test]
    fn blocks_of_any_bytes_multiply(
        dtype in 0..DType::ALL.len(),
        out_features in 1_usize..40,
        blocks in 1_usize..4,
        rows in 1_usize..70,
        seed in 0_u64..1000,
    ) {
        let (dtype, in_features) = (DType::ALL[dtype], 256 * blocks);
        let pool = ThreadPool::eager(2);
        let mut random = Random(seed);
        let len = dtype.byte_count(in_features).unwrap() * out_features;
        let bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        let packed = PackedMatrix::pack(&pool, dtype, &bytes, out_features, in_features).unwrap();
        let x = Random(seed + 1).values(rows * in_features);
        let together = product(&pool, &packed, &x);
        let alone = product(&pool, &packed, &x[(rows - 1) * in_features..]);
        for (a, b) in alone.iter().zip(&together[(rows - 1) * out_features..]) {
            proptest::prop_assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()));
        }
        let mut values = vec![0.0; out_features * in_features];
        reference::dequantize(dtype, &bytes, &mut values);
        let mut row = vec![0.0; in_features];
        packed.dequantize_row(out_features - 1, &mut row);
        for (a, b) in row.iter().zip(&values[(out_features - 1) * in_features..]) {
            proptest::prop_assert!(a == b || (a.is_nan() && b.is_nan()));
        }
    }
}
