//! What the tests of several files use.
#![allow(dead_code)] // Each of them uses a part.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use ponder_kernels::*;

/// A small deterministic generator (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in -1..1.
    pub fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

/// The type that candle quantises to, if it knows it.
pub fn ggml(dtype: DType) -> Option<GgmlDType> {
    Some(match dtype {
        DType::F32 => GgmlDType::F32,
        DType::F16 => GgmlDType::F16,
        DType::BF16 => GgmlDType::BF16,
        DType::Q4_0 => GgmlDType::Q4_0,
        DType::Q4_1 => GgmlDType::Q4_1,
        DType::Q5_0 => GgmlDType::Q5_0,
        DType::Q5_1 => GgmlDType::Q5_1,
        DType::Q8_0 => GgmlDType::Q8_0,
        DType::Q2K => GgmlDType::Q2K,
        DType::Q3K => GgmlDType::Q3K,
        DType::Q4K => GgmlDType::Q4K,
        DType::Q5K => GgmlDType::Q5K,
        DType::Q6K => GgmlDType::Q6K,
        _ => return None,
    })
}

/// The f16 scale with which a type's largest value is about 1; MXFP4 has none.
fn unit_scale(dtype: DType) -> f32 {
    match dtype {
        DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S => 8.0 / (31.0 * 43.0),
        DType::IQ3_XXS => 4.0 / (31.0 * 62.0),
        DType::IQ3_S => 1.0 / (31.0 * 15.0),
        DType::IQ4_NL => 1.0 / 127.0,
        DType::IQ4_XS => 1.0 / (32.0 * 127.0),
        _ => panic!("candle quantises to {}", dtype.name()),
    }
}

/// Blocks of any codes and scales, whose values are about -1..1, and these values by the reference,
/// which `tests/types.rs` compares with gguf-py's.
fn random_blocks(dtype: DType, count: usize, seed: u64) -> (Vec<u8>, Vec<f32>) {
    let mut random = Random(seed);
    let num_bytes = dtype.byte_count(count).unwrap();
    let mut bytes: Vec<u8> = (0..num_bytes).map(|_| random.next() as u8).collect();
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        if dtype == DType::MXFP4 {
            // Twelve by a sixteenth or less.
            block[0] = 120 + block[0] % 5;
            continue;
        }
        let scale = half::f16::from_f32(unit_scale(dtype) * random.value());
        block[..2].copy_from_slice(&scale.to_le_bytes());
    }
    let mut values = vec![0.0; count];
    reference::dequantize(dtype, &bytes, &mut values);
    (bytes, values)
}

/// Random weights quantised by candle, the bytes and the values candle reads back from them; or
/// random blocks of a type that it does not know.
pub fn quantised(dtype: DType, rows: usize, columns: usize, seed: u64) -> (Vec<u8>, Vec<f32>) {
    let Some(known) = ggml(dtype) else {
        return random_blocks(dtype, rows * columns, seed);
    };
    let values = Random(seed).values(rows * columns);
    let tensor = Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
    let quantised = QTensor::quantize(&tensor, known).unwrap();
    let bytes = quantised.data().unwrap().to_vec();
    let back = quantised.dequantize(&Device::Cpu).unwrap();
    (bytes, back.flatten_all().unwrap().to_vec1().unwrap())
}

pub fn product(pool: &ThreadPool, weights: &PackedMatrix, x: &[f32]) -> Vec<f32> {
    let rows = x.len() / weights.in_features();
    let mut activations = Activations::with_capacity(rows, weights.in_features(), true);
    activations.load(pool, x, rows, weights.in_features());
    let mut out = vec![f32::NAN; rows * weights.out_features()];
    matmul(pool, &activations, weights, None, &mut out);
    out
}

/// Runs this test program with every other instruction set that the machine has, and with bf16
/// activations: both are chosen once a process, so each has a process of its own.
pub fn with_other_instruction_sets() {
    const ISA: &str = "PONDER_ISA";
    const BF16: &str = "PONDER_BF16_ACTIVATIONS";
    if std::env::var_os(ISA).is_some() || std::env::var_os(BF16).is_some() {
        return;
    }
    let others = available_isas().into_iter().skip(1).map(|isa| (ISA, isa));
    for (variable, value) in others.chain([(BF16, "1")]) {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .env(variable, value)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{variable}={value}: {text}");
    }
}
