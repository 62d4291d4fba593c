//! Norms, products, residuals, the head, and what goes to the host and back.

use std::ops::Range;

use ponder_kernels::{DType, Glu};

use super::{
    Case, FLOATS, ROUNDED, activations, bytes, check, floats, host, norm, observe, random, rows,
};
use crate::model::ops::{Linear, LogitsTransform, Ops, OpsError, Residual};

const EPS: f32 = 1e-5;
const SIZES: [usize; 4] = [1, 7, 33, 96];

/// `floats`: how near products of bf16 weights are.
pub(super) fn check_all<O: Ops>(ops: &mut O, floats: f32) {
    for width in SIZES {
        check(ops, &format!("norm of {width}"), FLOATS, &Norm { width });
        for (scale, has_norm) in [(1.0, false), (0.22, false), (1.0, true)] {
            let case = AddResidual {
                width,
                scale,
                has_norm,
            };
            check(ops, &format!("residual of {width}"), FLOATS, &case);
        }
    }
    for (dtype, tolerance) in [
        (DType::F32, FLOATS),
        (DType::BF16, floats),
        (DType::Q8_0, ROUNDED),
        (DType::Q4K, ROUNDED),
    ] {
        for (outputs, inputs) in [(1, 256), (16, 512), (33, 256), (100, 768)] {
            let case = Products {
                dtype,
                outputs,
                inputs,
            };
            let name = format!("{dtype:?} product of {outputs} by {inputs}");
            check(ops, &name, tolerance, &case);
        }
    }
    for (outputs, inputs) in [(5, 7), (33, 33), (17, 1)] {
        let dtype = DType::F32;
        let case = Products {
            dtype,
            outputs,
            inputs,
        };
        check(
            ops,
            &format!("product of {outputs} by {inputs}"),
            FLOATS,
            &case,
        );
    }
    for glu in [Glu::Silu, Glu::GeluTanh, Glu::ClampedSwish] {
        for (inner, inputs) in [(32, 64), (96, 33), (7, 5)] {
            let case = Gated { glu, inner, inputs };
            check(ops, &format!("{glu:?} of {inner}"), 1e-4, &case);
        }
    }
    for (divisor, softcap) in [(1.0, None), (8.0, None), (1.0, Some(3.0)), (2.0, Some(0.5))] {
        let transform = LogitsTransform { divisor, softcap };
        check(ops, "head", FLOATS, &Head { transform });
    }
    round_trip(ops).expect("rows go to the host and back");
}

struct Norm {
    width: usize,
}

impl Case for Norm {
    fn num_units(&self) -> usize {
        19
    }

    /// As activations, in place, and one row read back.
    fn run<O: Ops>(&self, ops: &mut O, units: Range<usize>) -> Result<Vec<f32>, OpsError> {
        let values = random(1, 19 * self.width);
        let values = &values[units.start * self.width..units.end * self.width];
        let weight = ops.vector(norm(2, self.width))?;
        let mut x = rows(ops, values, self.width)?;
        let mut out = ops.activations(0, 0, true)?;
        ops.norm(&x, &weight, EPS, &mut out)?;
        let first = observe(ops, &out, self.width)?;
        let read: Vec<f32> = (0..units.len())
            .filter_map(|row| ops.read_normed(&x, row, &weight, EPS).transpose())
            .collect::<Result<Vec<_>, _>>()?
            .concat();
        assert!(ops.read_normed(&x, units.len(), &weight, EPS)?.is_none());
        ops.norm_rows(&mut x, &weight, EPS)?;
        let second = host(ops, &x)?;
        assert_eq!(first, second, "a norm is the same in every operation");
        assert_eq!(first, read, "a norm is the same in every operation");
        Ok(first)
    }
}

struct AddResidual {
    width: usize,
    scale: f32,
    has_norm: bool,
}

impl Case for AddResidual {
    fn num_units(&self) -> usize {
        10
    }

    fn run<O: Ops>(&self, ops: &mut O, units: Range<usize>) -> Result<Vec<f32>, OpsError> {
        let range = units.start * self.width..units.end * self.width;
        let [h, x] = [3, 4].map(|seed| random(seed, 10 * self.width)[range.clone()].to_vec());
        let (mut h, mut x) = (rows(ops, &h, self.width)?, rows(ops, &x, self.width)?);
        let post_norm = ops.vector(norm(5, self.width))?;
        let residual = Residual {
            post_norm: self.has_norm.then_some(&post_norm),
            eps: EPS,
            scale: self.scale,
        };
        ops.add_residual(&mut h, &residual, &mut x)?;
        host(ops, &x)
    }
}

struct Products {
    dtype: DType,
    outputs: usize,
    inputs: usize,
}

impl Products {
    /// Bytes of a matrix whose values are about as large as those of real ones.
    fn weights(&self, seed: u64) -> Vec<u8> {
        let mut noise = random(seed, self.outputs * self.inputs).into_iter();
        match self.dtype {
            DType::F32 => bytes(&noise.collect::<Vec<f32>>()),
            DType::BF16 => noise
                .flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes())
                .collect(),
            _ => {
                // Blocks of random codes: their scales come first and are set, other bytes may be anything.
                let (len, scales) = match self.dtype {
                    DType::Q8_0 => (34, 1),
                    _ => (144, 2),
                };
                let num_blocks = self.dtype.byte_count(self.inputs).unwrap() * self.outputs / len;
                let mut all = Vec::new();
                for _ in 0..num_blocks {
                    let start = all.len();
                    all.extend(
                        (start..start + len)
                            .map(|_| (127.0 * noise.next().unwrap_or(0.5)) as i8 as u8),
                    );
                    for scale in 0..scales {
                        let half = half::f16::from_f32(0.02).to_le_bytes();
                        all[start + 2 * scale..][..2].copy_from_slice(&half);
                    }
                }
                all
            }
        }
    }
}

impl Case for Products {
    fn num_units(&self) -> usize {
        67
    }

    /// Two products of the same activations, one with a bias, and the product added to a residual.
    fn run<O: Ops>(&self, ops: &mut O, units: Range<usize>) -> Result<Vec<f32>, OpsError> {
        let shape = [self.outputs, self.inputs];
        let linear = |seed: u64, bias: Option<u64>| {
            Ok::<_, OpsError>(Linear {
                weights: ops.matrix(self.dtype, &self.weights(seed), shape)?,
                bias: bias
                    .map(|seed| ops.vector(random(seed, self.outputs)))
                    .transpose()?,
            })
        };
        let (plain, biased) = (linear(6, None)?, linear(7, Some(8))?);
        let values = random(9, 67 * self.inputs);
        let values = &values[units.start * self.inputs..units.end * self.inputs];
        let x = activations(ops, values, self.inputs)?;
        let (mut first, mut second) = (O::Rows::default(), O::Rows::default());
        ops.project(&x, [&plain, &biased], [&mut first, &mut second])?;
        let residual = random(10, 67 * self.outputs);
        let residual = &residual[units.start * self.outputs..units.end * self.outputs];
        let mut sum = rows(ops, residual, self.outputs)?;
        ops.project_add(&x, &biased, &mut sum)?;
        let parts = [host(ops, &first)?, host(ops, &second)?, host(ops, &sum)?];
        let of_row = |row: usize| {
            let range = row * self.outputs..(row + 1) * self.outputs;
            parts
                .iter()
                .flat_map(move |part| part[range.clone()].to_vec())
        };
        Ok((0..units.len()).flat_map(of_row).collect())
    }
}

struct Gated {
    glu: Glu,
    inner: usize,
    inputs: usize,
}

impl Case for Gated {
    fn num_units(&self) -> usize {
        21
    }

    /// Fused, and from the two products: the same bits.
    fn run<O: Ops>(&self, ops: &mut O, units: Range<usize>) -> Result<Vec<f32>, OpsError> {
        let gate = floats(ops, 11, self.inner, self.inputs)?;
        let up = floats(ops, 12, self.inner, self.inputs)?;
        let values = random(13, 21 * self.inputs);
        let values = &values[units.start * self.inputs..units.end * self.inputs];
        let x = activations(ops, values, self.inputs)?;
        let mut fused = ops.activations(0, 0, true)?;
        ops.gate_up(&x, [&gate.weights, &up.weights], self.glu, &mut fused)?;
        let (mut gates, mut ups) = (O::Rows::default(), O::Rows::default());
        ops.project(&x, [&gate, &up], [&mut gates, &mut ups])?;
        let mut apart = ops.activations(0, 0, true)?;
        ops.activate(&mut gates, &ups, self.glu, &mut apart)?;
        let fused = observe(ops, &fused, self.inner)?;
        assert_eq!(fused, observe(ops, &apart, self.inner)?);
        assert_eq!(fused, host(ops, &gates)?);
        Ok(fused)
    }
}

struct Head {
    transform: LogitsTransform,
}

impl Case for Head {
    fn num_units(&self) -> usize {
        5
    }

    fn run<O: Ops>(&self, ops: &mut O, units: Range<usize>) -> Result<Vec<f32>, OpsError> {
        let head = floats(ops, 14, 101, 48)?;
        let values = random(15, 5 * 48);
        let x = activations(ops, &values[units.start * 48..units.end * 48], 48)?;
        let (mut logits, mut taken) = (O::Rows::default(), vec![9.0; 3]);
        ops.head(&x, &head.weights, &self.transform, &mut logits)?;
        let read = host(ops, &logits)?;
        ops.take(&mut logits, &mut taken)?;
        assert_eq!(read, taken);
        Ok(taken)
    }
}

fn round_trip<O: Ops>(ops: &mut O) -> Result<(), OpsError> {
    let values = random(16, 30);
    let mut there = rows(ops, &values, 5)?;
    assert_eq!(host(ops, &there)?, values);
    assert_eq!(host(ops, &there)?, values, "reading changes nothing");
    ops.write(&values[..6], 3, &mut there)?;
    let mut taken = vec![1.0; 100];
    ops.take(&mut there, &mut taken)?;
    assert_eq!(taken, values[..6]);
    Ok(())
}
