//! The operations on an NVIDIA GPU, by `ponder-kernels-cuda`.
//!
//! Every operation queues launches and returns. Their grids follow from the step's [`StepKey`] and
//! from shapes, so that a decode step can be recorded once and replayed; lists and lengths are read
//! on the device.

mod adapters;
mod experts;
mod latent;
mod layer;
mod step;

use ponder_kernels::{DType, KvDtype};
use ponder_kernels_cuda::attention::{KvCache, RopeTable};
use ponder_kernels_cuda::product::{Matrix, Workspace};
use ponder_kernels_cuda::rows::{FloatExperts, FloatMatrix, LatentScratch, LowRankScratch};
use ponder_kernels_cuda::{Activations, Buffer, CudaError, Gpu, Rows};

use super::{
    AdapterRows, AttentionShape, Device, KvShape, Needs, Ops, OpsError, RopeParams, WeightMatrix,
};
use crate::model::causal_lm::{BlockId, ForwardBatch};
use crate::model::lora::LowRank;

pub use experts::CudaRouting;
pub use step::{CudaStep, StepKey};

impl From<CudaError> for OpsError {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::Driver {
                is_sticky: true, ..
            } => Self::DeviceLost(error.to_string()),
            error => Self::Device(error.to_string()),
        }
    }
}

/// What the device does not do, in words.
const NO_SINKS: &str = "attention sinks, not yet on the device";
const NO_EXPERT_BIASES: &str = "biases of experts, not yet on the device";

/// A device, and buffers of single operations.
pub struct CudaOps {
    pub(super) gpu: Gpu,
    workspace: Workspace,
    low_rank: LowRankScratch,
    latent: LatentScratch,
    /// The two products of a gated unit whose weights are f32.
    gates: [Rows; 2],
    counting: Option<experts::Counting>,
    /// Counts of experts stay on the device until [`Self::flush_counts`].
    pub counts_later: bool,
}

impl CudaOps {
    pub fn new(gpu: Gpu) -> Self {
        Self {
            workspace: Workspace::default(),
            low_rank: LowRankScratch::default(),
            latent: LatentScratch::default(),
            gates: Default::default(),
            counting: None,
            counts_later: false,
            gpu,
        }
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Makes room for steps of up to so many rows.
    pub(in crate::model) fn reserve(
        &self,
        step: &mut CudaStep,
        shape: AttentionShape,
        max_num_rows: usize,
    ) -> Result<(), OpsError> {
        Ok(step.reserve(&self.gpu, shape, max_num_rows)?)
    }
}

/// Weights `[out_features, in_features]`.
pub enum CudaMatrix {
    /// For the tensor cores: of any type but f32.
    Packed(Matrix),
    /// Multiplied in f32: routers, adapters.
    Float(FloatMatrix),
}

/// One matrix of every expert.
pub enum CudaExperts {
    Packed(Matrix),
    Float(FloatExperts),
}

/// The values of a tensor of f32.
fn floats(bytes: &[u8]) -> Vec<f32> {
    let (values, _) = bytes.as_chunks::<4>();
    values
        .iter()
        .map(|value| f32::from_le_bytes(*value))
        .collect()
}

impl WeightMatrix for CudaMatrix {
    fn out_features(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.out_features(),
            Self::Float(matrix) => matrix.out_features(),
        }
    }

    fn nbytes(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.nbytes(),
            Self::Float(matrix) => matrix.values().nbytes(),
        }
    }

    fn reads_floats(&self) -> bool {
        matches!(self, Self::Float(_))
    }
}

impl WeightMatrix for CudaExperts {
    fn out_features(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.out_features(),
            Self::Float(matrix) => matrix.out_features(),
        }
    }

    fn nbytes(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.nbytes(),
            Self::Float(matrix) => matrix.nbytes(),
        }
    }

    fn reads_floats(&self) -> bool {
        matches!(self, Self::Float(_))
    }
}

/// Gradients do not go back through these operations: adaptation at test time needs the processor.
impl Ops for CudaOps {}

impl Device for CudaOps {
    type Matrix = CudaMatrix;
    type Experts = CudaExperts;
    type LowRank = adapters::LowRank;
    type Vector = Buffer<f32>;
    type Rows = Rows;
    type Activations = Activations;
    type Routing = CudaRouting;
    type RopeTable = RopeTable;
    type KvCache = KvCache;
    type StepInputs = CudaStep;

    fn matrix(
        &self,
        dtype: DType,
        bytes: &[u8],
        [out_features, in_features]: [usize; 2],
    ) -> Result<CudaMatrix, OpsError> {
        let shape = [out_features, in_features];
        Ok(match dtype {
            DType::F32 => CudaMatrix::Float(FloatMatrix::upload(&self.gpu, &floats(bytes), shape)?),
            _ => {
                let shape = [1, out_features, in_features];
                CudaMatrix::Packed(Matrix::new(&self.gpu, dtype, bytes, shape)?)
            }
        })
    }

    fn lacks(&self, needs: Needs) -> Option<&'static str> {
        [
            (needs.attention_sinks, NO_SINKS),
            (needs.expert_biases, NO_EXPERT_BIASES),
        ]
        .into_iter()
        .find_map(|(is_needed, what)| is_needed.then_some(what))
    }

    fn experts(
        &self,
        dtype: DType,
        bytes: &[u8],
        shape: [usize; 3],
        bias: Option<Vec<f32>>,
    ) -> Result<CudaExperts, OpsError> {
        if bias.is_some() {
            return Err(OpsError::Device(NO_EXPERT_BIASES.to_owned()));
        }
        Ok(match dtype {
            DType::F32 => {
                CudaExperts::Float(FloatExperts::upload(&self.gpu, &floats(bytes), shape)?)
            }
            _ => CudaExperts::Packed(Matrix::new(&self.gpu, dtype, bytes, shape)?),
        })
    }

    fn low_rank(&self, parts: &[Option<&LowRank>], _: bool) -> Result<Self::LowRank, OpsError> {
        let upload = |values: &[f32], shape| FloatMatrix::upload(&self.gpu, values, shape);
        let pair = |part: &LowRank| {
            let down = upload(&part.a, [part.rank, part.in_features])?;
            Ok([down, upload(&part.b, [part.out_features, part.rank])?])
        };
        let parts = parts.iter().map(|part| part.map(pair).transpose());
        parts.collect()
    }

    fn vector(&self, values: Vec<f32>) -> Result<Buffer<f32>, OpsError> {
        Ok(self.gpu.upload(&values)?)
    }

    fn rope_table(&self, params: &RopeParams<'_>) -> Result<RopeTable, OpsError> {
        Ok(RopeTable::new(
            &self.gpu,
            params.rotary_dim,
            params.num_positions,
            params.theta,
            params.freq_factors,
            params.linear_scale,
            params.magnitude,
        )?)
    }

    fn kv_cache(&self, shape: &KvShape) -> Result<KvCache, OpsError> {
        if shape.dtype != KvDtype::F16 {
            let what = format!("a KV cache of {}", shape.dtype.name());
            return Err(OpsError::Lacks(what));
        }
        let shape = ponder_kernels_cuda::attention::KvShape {
            num_layers: shape.num_layers,
            num_blocks: shape.num_blocks,
            block_size: shape.block_size,
            num_kv_heads: shape.num_kv_heads,
            head_dim: shape.head_dim,
        };
        Ok(KvCache::new(&self.gpu, shape)?)
    }

    fn activations(
        &self,
        max_num_rows: usize,
        max_width: usize,
        keeps_floats: bool,
    ) -> Result<Activations, OpsError> {
        let mut activations = Activations::new(keeps_floats);
        activations.reshape(&self.gpu, max_num_rows, max_width)?;
        Ok(activations)
    }

    fn routing(&self, keeps_floats: bool) -> Result<CudaRouting, OpsError> {
        Ok(CudaRouting::new(keeps_floats))
    }

    fn prepare(
        &mut self,
        batch: &ForwardBatch<'_>,
        groups: &[AdapterRows],
        shape: AttentionShape,
        inputs: &mut CudaStep,
    ) -> Result<(), OpsError> {
        inputs.upload(&self.gpu, batch, groups, shape)
    }

    fn copy_blocks(
        &mut self,
        cache: &mut KvCache,
        copies: &[(BlockId, BlockId)],
    ) -> Result<(), OpsError> {
        Ok(cache.copy_blocks(&self.gpu, copies)?)
    }

    fn take(&mut self, rows: &mut Rows, out: &mut Vec<f32>) -> Result<(), OpsError> {
        self.read(rows, out)
    }

    fn read(&mut self, rows: &Rows, out: &mut Vec<f32>) -> Result<(), OpsError> {
        out.resize(rows.num_rows() * rows.width(), 0.0);
        if let Some(buffer) = rows.buffer().filter(|_| !out.is_empty()) {
            self.gpu.read(buffer, 0, out)?;
        }
        Ok(())
    }

    fn write(&mut self, values: &[f32], width: usize, rows: &mut Rows) -> Result<(), OpsError> {
        rows.reshape(&self.gpu, values.len() / width.max(1), width)?;
        if let Some(buffer) = rows.buffer_mut() {
            self.gpu.write(buffer, 0, values)?;
        }
        Ok(())
    }
}
