//! Quantising against gguf-py and llama.cpp.

mod common;

use common::Random;
use ponder_kernels::quantise::quantise;
use ponder_kernels::*;

const ROWS: usize = 16;
const WIDTH: usize = 768;

/// Nearly normal weights of a standard deviation of 0.02.
fn weights() -> Vec<f32> {
    let values = Random(3).values(3 * ROWS * WIDTH);
    let sums = values.chunks_exact(3).map(|v| (v[0] + v[1]) + v[2]);
    sums.map(|sum| sum * 0.02).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// The root of the mean square of what is lost.
fn error(dtype: DType, values: &[f32], blocks: &[u8]) -> f64 {
    let mut back = vec![0.0; values.len()];
    reference::dequantize(dtype, blocks, &mut back);
    let squares = values.iter().zip(&back);
    let squares = squares.map(|(a, b)| f64::from(a - b).powi(2));
    (squares.sum::<f64>() / values.len() as f64).sqrt()
}

/// The checksum of what `gguf.quants.quantize(weights, Q8_0)` of gguf-py makes of the same values.
#[test]
fn q8_0_has_the_bits_of_gguf_py() {
    const CHECKSUM: u64 = 17_781_861_242_789_432_651;
    let data = bytes(&weights());
    for threads in [1, 3] {
        let pool = ThreadPool::eager(threads);
        let blocks = quantise(&pool, DType::F32, &data, WIDTH, DType::Q8_0).unwrap();
        assert_eq!(blocks[..8], [56, 12, 245, 167, 2, 124, 5, 211]);
        let add = |sum: u64, byte: &u8| sum.wrapping_mul(31).wrapping_add(u64::from(*byte));
        assert_eq!(blocks.iter().fold(0, add), CHECKSUM);
    }
}

/// Errors of `ggml_quantize_chunk` of llama.cpp (b11434) over the same values, without an
/// importance matrix.
#[test]
fn k_quants_lose_no_more_than_those_of_llama_cpp() {
    let (values, pool) = (weights(), ThreadPool::eager(2));
    for (dtype, theirs) in [(DType::Q4K, 1.354_638e-3), (DType::Q6K, 3.386_95e-4)] {
        let blocks = quantise(&pool, DType::F32, &bytes(&values), WIDTH, dtype).unwrap();
        let ours = error(dtype, &values, &blocks);
        assert!(
            ours <= theirs,
            "{}: {ours} is more than {theirs}",
            dtype.name()
        );
        // And it is an error of that many bits, not nothing at all.
        assert!(ours > 0.9 * theirs, "{}: {ours}", dtype.name());
    }
}

#[test]
fn strange_blocks_are_read_back_as_they_were() {
    let pool = ThreadPool::eager(2);
    let ramp = |i: usize| (i % 16) as f32 / 8.0;
    let cases: [(&str, Vec<f32>); 5] = [
        ("zeros", vec![0.0; 512]),
        ("ones", vec![1.0; 512]),
        ("minus ones", vec![-1.0; 512]),
        ("codes of four bits", (0..512).map(ramp).collect()),
        (
            "one value alone",
            (0..512).map(|i| f32::from(i == 300)).collect(),
        ),
    ];
    for (name, values) in &cases {
        for dtype in [DType::Q8_0, DType::Q4K, DType::Q6K] {
            let blocks = quantise(&pool, DType::F32, &bytes(values), 256, dtype).unwrap();
            let mut back = vec![f32::NAN; 512];
            reference::dequantize(dtype, &blocks, &mut back);
            for (a, b) in back.iter().zip(values) {
                let most = values.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
                let bound = most * if dtype == DType::Q6K { 0.04 } else { 0.006 };
                assert!((a - b).abs() <= bound, "{name} {}: {a}, {b}", dtype.name());
            }
        }
    }
}

/// Halves are the same values, and rows are quantised alone.
#[test]
fn rows_depend_on_themselves_alone() {
    let pool = ThreadPool::eager(3);
    let values: Vec<f32> = weights();
    let rounded: Vec<half::bf16> = values.iter().map(|v| half::bf16::from_f32(*v)).collect();
    let wide: Vec<f32> = rounded.iter().map(|v| v.to_f32()).collect();
    let narrow: Vec<u8> = rounded.iter().flat_map(|v| v.to_le_bytes()).collect();
    for dtype in [DType::Q8_0, DType::Q4K, DType::Q6K] {
        let all = quantise(&pool, DType::F32, &bytes(&wide), WIDTH, dtype).unwrap();
        let same = quantise(&pool, DType::BF16, &narrow, WIDTH, dtype).unwrap();
        assert_eq!(all, same);
        let last = bytes(&wide[(ROWS - 1) * WIDTH..]);
        let alone = quantise(&pool, DType::F32, &last, WIDTH, dtype).unwrap();
        assert_eq!(all[all.len() - alone.len()..], alone[..]);
    }
}

#[test]
fn what_cannot_be_quantised_is_an_error() {
    let pool = ThreadPool::new(1);
    let make = |len: usize, width, dtype| quantise(&pool, DType::F32, &vec![0; len], width, dtype);
    assert!(matches!(
        make(4 * 576, 576, DType::Q4K),
        Err(KernelError::RaggedBlock { .. })
    ));
    assert!(matches!(
        make(4 * 33, 32, DType::Q8_0),
        Err(KernelError::WrongByteCount { .. })
    ));
    assert!(matches!(
        make(4 * 32, 32, DType::Q5_0),
        Err(KernelError::CannotQuantise("Q5_0"))
    ));
    assert!(make(0, 0, DType::Q8_0).is_err());
}

#[test]
fn every_instruction_set_passes_these_tests() {
    common::with_other_instruction_sets();
}
