//! The operations as their definitions say them: one row after the other, sums in f64, nothing
//! quantised.
//!
//! It takes over what [`Device::prepare`] is given and never looks at the batch again, as a device
//! would, and it can be told to fail.

mod adapters;
mod attention;
mod experts;
mod latent;
mod layer;

use ponder_kernels::reference::dequantize;
use ponder_kernels::{DType, Glu};

use super::{
    AdapterRows, AttentionShape, Device, KvShape, Ops, OpsError, RopeParams, RowSet, WeightMatrix,
};
use crate::model::causal_lm::{BlockId, ForwardBatch, SequenceRows};
use crate::model::lora::LowRank;
use crate::model::steering::Steering;
use attention::{Angles, Cache};
use experts::Routing;

type Rows = Vec<Vec<f32>>;

/// Plain operations.
#[derive(Default)]
pub(in crate::model) struct ReferenceOps {
    /// Operations that were run.
    pub num_run: usize,
    /// The operation that fails, counted from 0.
    pub failing: Option<usize>,
}

/// `[num_matrices, out_features, in_features]`
pub(in crate::model) struct Dense {
    matrices: Vec<Rows>,
    /// Of each matrix, where there are any.
    biases: Option<Rows>,
}

impl Dense {
    fn new(dtype: DType, bytes: &[u8], [count, outputs, inputs]: [usize; 3]) -> Self {
        let mut values = vec![0.0; count * outputs * inputs];
        dequantize(dtype, bytes, &mut values);
        let matrices = values.chunks_exact(outputs * inputs);
        let rows = |matrix: &[f32]| matrix.chunks_exact(inputs).map(<[f32]>::to_vec).collect();
        Self {
            matrices: matrices.map(rows).collect(),
            biases: None,
        }
    }

    fn product(&self, index: usize, x: &[f32]) -> Vec<f32> {
        let mut out: Vec<f32> = self.matrices[index].iter().map(|row| dot(row, x)).collect();
        if let Some(biases) = &self.biases {
            add(&mut out, 1.0, &biases[index]);
        }
        out
    }
}

impl WeightMatrix for Dense {
    fn out_features(&self) -> usize {
        self.matrices[0].len()
    }

    fn nbytes(&self) -> usize {
        self.matrices
            .iter()
            .flatten()
            .map(|row| 4 * row.len())
            .sum()
    }

    fn reads_floats(&self) -> bool {
        true
    }
}

/// What is kept of a step.
#[derive(Default)]
pub(in crate::model) struct Inputs {
    token_ids: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    sequences: Vec<Sequence>,
    groups: Vec<AdapterRows>,
    kept: Vec<usize>,
}

struct Sequence {
    block_table: Vec<BlockId>,
    num_rows: usize,
    context_len: usize,
    leaves: Vec<u32>,
    steering: Option<Steering>,
}

impl Inputs {
    /// The steering of each row that is there.
    fn steering(&self, rows: RowSet) -> Vec<Option<&Steering>> {
        let all: Vec<_> = (self.sequences.iter())
            .flat_map(|sequence| vec![sequence.steering.as_ref(); sequence.num_rows])
            .collect();
        match rows {
            RowSet::All => all,
            RowSet::Kept => self.kept.iter().map(|row| all[*row]).collect(),
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "inner sizes differ");
    let products = a.iter().zip(b);
    products
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum::<f64>() as f32
}

fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mean = f64::from(dot(x, x)) / x.len() as f64;
    let factor = 1.0 / (mean + f64::from(eps)).sqrt();
    let pairs = x.iter().zip(weight);
    pairs
        .map(|(x, weight)| (f64::from(*x) * factor * f64::from(*weight)) as f32)
        .collect()
}

fn act(glu: Glu, gate: f32, up: f32) -> f32 {
    let x = f64::from(gate);
    let up = f64::from(up);
    let limit = f64::from(Glu::LIMIT);
    let activated = match glu {
        Glu::Silu => x / (1.0 + (-x).exp()),
        Glu::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Glu::ClampedSwish => {
            let x = x.min(limit);
            let swish = x / (1.0 + (-f64::from(Glu::SLOPE) * x).exp());
            return (swish * (up.clamp(-limit, limit) + 1.0)) as f32;
        }
    };
    (activated * up) as f32
}

fn add(out: &mut [f32], scale: f32, values: &[f32]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out += scale * value;
    }
}

impl ReferenceOps {
    fn run(&mut self) -> Result<(), OpsError> {
        let index = self.num_run;
        self.num_run += 1;
        match self.failing == Some(index) {
            true => Err(OpsError::Device(format!("operation {index}"))),
            false => Ok(()),
        }
    }
}

impl Ops for ReferenceOps {}

impl Device for ReferenceOps {
    type Matrix = Dense;
    type Experts = Dense;
    type LowRank = adapters::LowRank;
    type Vector = Vec<f32>;
    type Rows = Rows;
    type Activations = Rows;
    type Routing = Routing;
    type RopeTable = Angles;
    type KvCache = Cache;
    type StepInputs = Inputs;

    fn matrix(&self, dtype: DType, bytes: &[u8], shape: [usize; 2]) -> Result<Dense, OpsError> {
        Ok(Dense::new(dtype, bytes, [1, shape[0], shape[1]]))
    }

    fn experts(
        &self,
        dtype: DType,
        bytes: &[u8],
        shape: [usize; 3],
        bias: Option<Vec<f32>>,
    ) -> Result<Dense, OpsError> {
        let biases = bias.map(|bias| bias.chunks_exact(shape[1]).map(<[f32]>::to_vec).collect());
        Ok(Dense {
            biases,
            ..Dense::new(dtype, bytes, shape)
        })
    }

    fn low_rank(&self, parts: &[Option<&LowRank>], _: bool) -> Result<Self::LowRank, OpsError> {
        let dense = |values: &[f32], width: usize| Dense {
            biases: None,
            matrices: vec![values.chunks_exact(width).map(<[f32]>::to_vec).collect()],
        };
        let pair = |part: &LowRank| [dense(&part.a, part.in_features), dense(&part.b, part.rank)];
        Ok(parts.iter().map(|part| part.map(pair)).collect())
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>, OpsError> {
        Ok(values)
    }

    fn rope_table(&self, params: &RopeParams<'_>) -> Result<Angles, OpsError> {
        Ok(Angles::new(params))
    }

    fn kv_cache(&self, shape: &KvShape) -> Result<Cache, OpsError> {
        Ok(Cache::new(shape))
    }

    fn activations(&self, _: usize, _: usize, _: bool) -> Result<Rows, OpsError> {
        Ok(Vec::new())
    }

    fn routing(&self, _: bool) -> Result<Routing, OpsError> {
        Ok(Routing::default())
    }

    fn prepare(
        &mut self,
        batch: &ForwardBatch<'_>,
        groups: &[AdapterRows],
        _: AttentionShape,
        inputs: &mut Inputs,
    ) -> Result<(), OpsError> {
        self.run()?;
        let sequence = |(index, rows): (usize, &SequenceRows<'_>)| Sequence {
            block_table: rows.block_table.to_vec(),
            num_rows: rows.num_rows,
            context_len: rows.context_len,
            leaves: rows.leaves.to_vec(),
            steering: batch.steering.get(index).copied().flatten().cloned(),
        };
        *inputs = Inputs {
            token_ids: batch.token_ids.to_vec(),
            positions: batch.positions.to_vec(),
            slots: batch.slot_mapping.to_vec(),
            sequences: batch.sequences.iter().enumerate().map(sequence).collect(),
            groups: groups.to_vec(),
            kept: batch.logits_rows.iter().map(|row| *row as usize).collect(),
        };
        Ok(())
    }

    fn copy_blocks(
        &mut self,
        cache: &mut Cache,
        copies: &[(BlockId, BlockId)],
    ) -> Result<(), OpsError> {
        self.run()?;
        copies.iter().for_each(|copy| cache.copy(*copy));
        Ok(())
    }

    fn take(&mut self, rows: &mut Rows, out: &mut Vec<f32>) -> Result<(), OpsError> {
        self.run()?;
        *out = std::mem::take(rows).concat();
        Ok(())
    }

    fn read(&mut self, rows: &Rows, out: &mut Vec<f32>) -> Result<(), OpsError> {
        self.run()?;
        *out = rows.concat();
        Ok(())
    }

    fn write(&mut self, values: &[f32], width: usize, rows: &mut Rows) -> Result<(), OpsError> {
        self.run()?;
        *rows = values.chunks_exact(width).map(<[f32]>::to_vec).collect();
        Ok(())
    }
}
