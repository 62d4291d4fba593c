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

pub fn ggml(dtype: DType) -> GgmlDType {
    match dtype {
        DType::F32 => GgmlDType::F32,
        DType::F16 => GgmlDType::F16,
        DType::BF16 => GgmlDType::BF16,
        DType::Q4_0 => GgmlDType::Q4_0,
        DType::Q4_1 => GgmlDType::Q4_1,
        DType::Q5_0 => GgmlDType::Q5_0,
        DType::Q5_1 => GgmlDType::Q5_1,
        DType::Q8_0 => GgmlDType::Q8_0,
        DType::Q4K => GgmlDType::Q4K,
        DType::Q5K => GgmlDType::Q5K,
        DType::Q6K => GgmlDType::Q6K,
    }
}

/// Random weights quantised by candle: the bytes, and the values candle reads back from them.
pub fn quantised(dtype: DType, rows: usize, columns: usize, seed: u64) -> (Vec<u8>, Vec<f32>) {
    let values = Random(seed).values(rows * columns);
    let tensor = Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
    let quantised = QTensor::quantize(&tensor, ggml(dtype)).unwrap();
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
