//! Any bytes as weights of any type and shape: nothing is read or written out of bounds, and a
//! row's result does not depend on the rows beside it.
//!
//!     cargo +nightly fuzz run products --fuzz-dir kernels/fuzz

#![no_main]

use libfuzzer_sys::fuzz_target;
use ponder_kernels::*;

#[derive(Debug, arbitrary::Arbitrary)]
struct Input {
    dtype: u8,
    out_features: u8,
    blocks: u8,
    rows: u8,
    seed: u32,
    bytes: Vec<u8>,
}

fuzz_target!(|input: Input| {
    let dtype = DType::ALL[usize::from(input.dtype) % DType::ALL.len()];
    let out_features = usize::from(input.out_features) % 70 + 1;
    let in_features = dtype.block_size().max(32) * (usize::from(input.blocks) % 6 + 1);
    let rows = usize::from(input.rows) % 90 + 1;
    let pool = ThreadPool::eager(1 + input.seed as usize % 2);
    let len = dtype.byte_count(in_features).expect("whole blocks") * out_features;
    let bytes: Vec<u8> = input.bytes.iter().copied().cycle().take(len).collect();
    let Ok(weights) = PackedMatrix::pack(&pool, dtype, &bytes, out_features, in_features) else {
        assert!(input.bytes.is_empty(), "whole blocks pack");
        return;
    };
    let value = |i: usize| ((i as u32).wrapping_mul(input.seed | 1) >> 8) as f32 / 8_388_608.0 - 1.0;
    let x: Vec<f32> = (0..rows * in_features).map(value).collect();
    let product = |x: &[f32]| {
        let rows = x.len() / in_features;
        let mut activations = Activations::with_capacity(rows, in_features, true);
        activations.load(&pool, x, rows, in_features);
        let mut out = vec![0.0; rows * out_features];
        matmul(&pool, &activations, &weights, None, &mut out);
        out
    };
    let together = product(&x);
    let chosen = input.seed as usize % rows;
    let alone = product(&x[chosen * in_features..][..in_features]);
    for (a, b) in alone.iter().zip(&together[chosen * out_features..]) {
        // Scales of any bits may be infinite or NaN; then both are.
        assert!(a == b || (a.is_nan() && b.is_nan()), "{a} alone, {b} together");
    }
});
