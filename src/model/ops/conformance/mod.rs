//! What every implementation of [`Ops`] must pass: each operation near its definition in
//! [`super::reference`], and the law of rows bit by bit. A new implementation adds one line to the
//! list at the end.

mod attention;
mod experts;
mod latent;
mod models;
mod products;
mod steps;
mod tiny_models;

use std::ops::Range;

use ponder_kernels::{DType, KvDtype};

use super::reference::ReferenceOps;
use super::{Linear, Ops, OpsError};
use crate::model::testing::uniform;

/// Of the largest value: f32 sums in another order.
const FLOATS: f32 = 1e-5;
/// Of the largest value: activations or weights may be rounded to 8 bits, keys and values to 16.
const ROUNDED: f32 = 2e-2;

/// How near results are, of the largest value.
#[derive(Clone, Copy)]
struct Bounds {
    /// Products of bf16 weights.
    products: f32,
    /// Whole models: keys and values are 16-bit floats, and layers add up what that rounds.
    models: f32,
    /// What keys and values may be kept as.
    kv_dtypes: &'static [KvDtype],
}

const EXACT: Bounds = Bounds {
    products: FLOATS,
    models: 1e-2,
    kv_dtypes: &[KvDtype::F16, KvDtype::Q8_0],
};
/// They read activations of 8 significant bits.
const OF_TENSOR_CORES: Bounds = Bounds {
    products: ROUNDED,
    models: 3e-2,
    kv_dtypes: &[KvDtype::F16],
};
/// Of a whole model whose keys and values are 8-bit codes: a difference that is small decides which
/// of two codes is the nearest.
const CODED_MODELS: f32 = 4e-2;

/// Something that is computed from units (rows, or sequences of them) which do not know of each other.
trait Case {
    fn num_units(&self) -> usize;

    /// The results of some units, one after the other.
    fn run<O: Ops>(&self, ops: &mut O, units: Range<usize>) -> Result<Vec<f32>, OpsError>;
}

/// Near the reference, and the same bits together, alone and cut in two.
fn check<O: Ops>(ops: &mut O, name: &str, tolerance: f32, case: &impl Case) {
    let count = case.num_units();
    let mut run = |units: Range<usize>| case.run(ops, units).expect("the operation runs");
    let all = run(0..count);
    let mut reference = ReferenceOps::default();
    let expected = case.run(&mut reference, 0..count);
    assert_near(
        name,
        &all,
        &expected.expect("so does the reference"),
        tolerance,
    );
    let alone: Vec<f32> = (0..count).flat_map(|unit| run(unit..unit + 1)).collect();
    assert_same_bits(name, &alone, &all);
    let cut = count / 3;
    let pieces = [run(0..cut), run(cut..count)].concat();
    assert_same_bits(name, &pieces, &all);
}

fn assert_near(name: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len(), "{name}");
    assert!(!expected.is_empty(), "{name}: nothing was computed");
    let largest = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    for (index, (a, b)) in actual.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * largest,
            "{name}: value {index} is {a}, not {b} (the largest is {largest})"
        );
    }
}

fn assert_same_bits(name: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{name}");
    for (index, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(
            a.to_bits(),
            b.to_bits(),
            "{name}: value {index}, {a} and {b}"
        );
    }
}

/// Seeded values in -1..1.
fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    (0..count).map(|_| uniform(&mut state)).collect()
}

/// Norm weights near one.
fn norm(seed: u64, count: usize) -> Vec<f32> {
    let values = random(seed, count).into_iter();
    values.map(|value| 1.0 + 0.3 * value).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn floats<O: Ops>(
    ops: &O,
    seed: u64,
    out_features: usize,
    in_features: usize,
) -> Result<Linear<O>, OpsError> {
    let values = random(seed, out_features * in_features);
    let shape = [out_features, in_features];
    Ok(Linear::plain(ops.matrix(
        DType::F32,
        &bytes(&values),
        shape,
    )?))
}

fn rows<O: Ops>(ops: &mut O, values: &[f32], width: usize) -> Result<O::Rows, OpsError> {
    let mut rows = O::Rows::default();
    ops.write(values, width, &mut rows)?;
    Ok(rows)
}

fn host<O: Ops>(ops: &mut O, rows: &O::Rows) -> Result<Vec<f32>, OpsError> {
    let mut values = Vec::new();
    ops.read(rows, &mut values)?;
    Ok(values)
}

/// Activations of rows, which float matrices may read.
fn activations<O: Ops>(
    ops: &mut O,
    values: &[f32],
    width: usize,
) -> Result<O::Activations, OpsError> {
    let rows = rows(ops, values, width)?;
    let mut activations = ops.activations(0, 0, true)?;
    ops.quantise(&rows, &mut activations)?;
    Ok(activations)
}

/// What a float matrix reads: the product with the identity.
fn observe<O: Ops>(ops: &mut O, x: &O::Activations, width: usize) -> Result<Vec<f32>, OpsError> {
    let mut identity = vec![0.0; width * width];
    for index in 0..width {
        identity[index * width + index] = 1.0;
    }
    let linear = Linear::plain(ops.matrix(DType::F32, &bytes(&identity), [width, width])?);
    let mut out = O::Rows::default();
    ops.project(x, [&linear], [&mut out])?;
    host(ops, &out)
}

/// The suite, over each implementation.
macro_rules! conformance {
    ($($implementation:ident: $new:expr, $bounds:expr;)*) => {$(
        mod $implementation {
            use super::*;

            #[test]
            fn products() {
                products::check_all(&mut $new, $bounds.products);
            }

            #[test]
            fn attention() {
                attention::check_all(&mut $new, $bounds.kv_dtypes);
                attention::check_refusal(&$new, $bounds.kv_dtypes);
            }

            #[test]
            fn experts() {
                experts::check_all(&mut $new);
            }

            #[test]
            fn latent() {
                latent::check_all(&mut $new);
            }

            #[test]
            fn steps() {
                steps::check_all(&mut $new);
            }

            #[test]
            fn models() {
                models::check_all(|| $new, $bounds.models, $bounds.kv_dtypes);
            }
        }
    )*};
}

mod implementations {
    use std::sync::Arc;

    use ponder_kernels::ThreadPool;
    use ponder_kernels_cuda::Gpu;

    use super::*;
    use crate::model::ops::{CpuOps, CudaOps};

    conformance! {
        cpu_of_one_thread: CpuOps::new(Arc::new(ThreadPool::new(1))), EXACT;
        cpu_of_two_threads: CpuOps::new(Arc::new(ThreadPool::new(2))), EXACT;
        cuda: CudaOps::new(Gpu::for_tests()), OF_TENSOR_CORES;
        reference: ReferenceOps::default(), EXACT;
    }
}
