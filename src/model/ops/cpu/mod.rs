//! The operations on this machine's processor, by `ponder-kernels`.

mod adapters;
mod experts;
mod kept;
mod latent;
mod layer;

use std::sync::Arc;

use ponder_kernels::{
    Activations, AttentionPlan, DType, ExpertMatrix, Factors, KvCache, LowRank, LowRankScratch,
    PackedMatrix, Reads, RopeTable, ThreadPool,
};

use super::{
    AdapterRows, AttentionShape, Device, KvShape, Ops, OpsError, RopeParams, WeightMatrix,
};
use crate::model::causal_lm::Adaptable;
use crate::model::causal_lm::{BlockId, ForwardBatch};
use crate::model::decoder::Decoder;
use crate::model::lora;

pub use experts::CpuRouting;
pub(in crate::model) use kept::{GateUp, KeptUnits};

/// The processor's threads, and buffers of single operations.
pub struct CpuOps {
    pub(in crate::model) pool: Arc<ThreadPool>,
    low_rank: LowRankScratch,
    /// Rows on their way to be quantised.
    normed: Vec<f32>,
    /// Where gated units leave what they are made of, while somebody wants it.
    pub(in crate::model) kept: Option<KeptUnits>,
}

impl CpuOps {
    pub fn new(pool: Arc<ThreadPool>) -> Self {
        Self {
            pool,
            low_rank: LowRankScratch::default(),
            normed: Vec::new(),
            kept: None,
        }
    }
}

/// Rows in memory; the buffer grows to the largest step and stays.
#[derive(Debug, Default, Clone)]
pub struct CpuRows {
    /// `[num_rows, width]`
    pub(in crate::model) values: Vec<f32>,
    pub(in crate::model) width: usize,
}

impl CpuRows {
    /// Makes room for rows that are overwritten: what they hold has no meaning.
    fn shape(&mut self, num_rows: usize, width: usize) {
        self.width = width;
        self.values.resize(num_rows * width, 0.0);
    }

    pub(in crate::model) fn num_rows(&self) -> usize {
        self.values.len() / self.width.max(1)
    }
}

impl WeightMatrix for PackedMatrix {
    fn out_features(&self) -> usize {
        PackedMatrix::out_features(self)
    }

    fn nbytes(&self) -> usize {
        PackedMatrix::nbytes(self)
    }

    fn reads_floats(&self) -> bool {
        !self.is_quantised()
    }
}

impl WeightMatrix for ExpertMatrix {
    fn out_features(&self) -> usize {
        ExpertMatrix::out_features(self)
    }

    fn nbytes(&self) -> usize {
        self.matrix().nbytes()
    }

    fn reads_floats(&self) -> bool {
        !self.matrix().is_quantised()
    }
}

impl Ops for CpuOps {
    fn adaptable(decoder: &mut Decoder<Self>) -> Option<&mut dyn Adaptable> {
        Some(decoder)
    }
}

fn factors(part: &lora::LowRank) -> Factors<'_> {
    Factors {
        rank: part.rank,
        down: &part.a,
        up: &part.b,
    }
}

impl Device for CpuOps {
    type Matrix = PackedMatrix;
    type Experts = ExpertMatrix;
    type LowRank = LowRank;
    type Vector = Vec<f32>;
    type Rows = CpuRows;
    type Activations = Activations;
    type Routing = CpuRouting;
    type RopeTable = RopeTable;
    type KvCache = KvCache;
    /// Which rows attend together.
    type StepInputs = AttentionPlan;

    fn matrix(
        &self,
        dtype: DType,
        bytes: &[u8],
        [out_features, in_features]: [usize; 2],
    ) -> Result<PackedMatrix, OpsError> {
        let packed = PackedMatrix::pack(&self.pool, dtype, bytes, out_features, in_features);
        Ok(packed?)
    }

    fn experts(
        &self,
        dtype: DType,
        bytes: &[u8],
        [experts, outputs, inputs]: [usize; 3],
        bias: Option<Vec<f32>>,
    ) -> Result<ExpertMatrix, OpsError> {
        let packed = ExpertMatrix::pack(&self.pool, dtype, bytes, experts, outputs, inputs)?;
        Ok(match bias {
            Some(bias) => packed.with_bias(bias),
            None => packed,
        })
    }

    fn low_rank(
        &self,
        parts: &[Option<&lora::LowRank>],
        reads_floats: bool,
    ) -> Result<LowRank, OpsError> {
        let in_features = parts
            .iter()
            .flatten()
            .next()
            .map_or(0, |part| part.in_features);
        let parts: Vec<_> = parts.iter().map(|part| part.map(factors)).collect();
        let reads = match reads_floats {
            true => Reads::Values,
            false => Reads::Codes,
        };
        Ok(LowRank::pack(&self.pool, &parts, in_features, reads)?)
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>, OpsError> {
        Ok(values)
    }

    fn rope_table(&self, params: &RopeParams<'_>) -> Result<RopeTable, OpsError> {
        let table = RopeTable::new(
            params.rotary_dim,
            params.num_positions,
            params.theta,
            params.freq_factors,
            params.linear_scale,
        );
        Ok(table.scaled(params.magnitude))
    }

    fn has_local_cache(&self) -> bool {
        true
    }

    fn kv_cache(&self, shape: &KvShape) -> Result<KvCache, OpsError> {
        let cache = KvCache::of(
            shape.dtype,
            shape.num_layers,
            shape.num_blocks,
            shape.block_size,
            shape.num_kv_heads,
            shape.head_dim,
        );
        Ok(cache?)
    }

    fn activations(
        &self,
        max_num_rows: usize,
        max_width: usize,
        keeps_floats: bool,
    ) -> Result<Activations, OpsError> {
        Ok(Activations::with_capacity(
            max_num_rows,
            max_width,
            keeps_floats,
        ))
    }

    fn routing(&self, keeps_floats: bool) -> Result<CpuRouting, OpsError> {
        Ok(CpuRouting::new(keeps_floats))
    }

    fn prepare(
        &mut self,
        batch: &ForwardBatch<'_>,
        _groups: &[AdapterRows],
        shape: AttentionShape,
        inputs: &mut AttentionPlan,
    ) -> Result<(), OpsError> {
        inputs.plan(
            batch.sequences,
            shape.cache.num_kv_heads,
            self.pool.num_threads(),
        );
        Ok(())
    }

    fn copy_blocks(
        &mut self,
        cache: &mut KvCache,
        copies: &[(BlockId, BlockId)],
    ) -> Result<(), OpsError> {
        cache.copy_blocks(copies);
        Ok(())
    }

    fn take(&mut self, rows: &mut CpuRows, out: &mut Vec<f32>) -> Result<(), OpsError> {
        std::mem::swap(&mut rows.values, out);
        Ok(())
    }

    fn read(&mut self, rows: &CpuRows, out: &mut Vec<f32>) -> Result<(), OpsError> {
        out.clone_from(&rows.values);
        Ok(())
    }

    fn write(&mut self, values: &[f32], width: usize, rows: &mut CpuRows) -> Result<(), OpsError> {
        rows.width = width;
        rows.values.clear();
        rows.values.extend_from_slice(values);
        Ok(())
    }
}
