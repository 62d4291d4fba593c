//! The operations on this machine's processor, by `ponder-kernels`.

mod experts;
mod latent;
mod low_rank;

use std::sync::Arc;

use ponder_kernels::elementwise::{glu, scale, softcap};
use ponder_kernels::norm::{add_normed, rms_norm_in_place};
use ponder_kernels::{
    Activations, AttentionParams, AttentionPlan, DType, ExpertMatrix, Gating, Glu, KvCache,
    PackedMatrix, Product, RopeTable, ThreadPool, matmul, matmul_glu, matmul_many, paged_attention,
    rotate_and_cache,
};

use super::{
    AdaptedInput, AdapterRows, Expanded, ExpertWeights, KvShape, Linear, LogitsTransform,
    LowRankFactors, Ops, OpsError, Residual, RopeParams, Rotation, RowSet, Step, WeightMatrix,
};
use crate::model::adapt::{Adaptable, add_offset};
use crate::model::causal_lm::{BlockId, ForwardBatch};
use crate::model::decoder::Decoder;
use crate::model::mla::MlaConfig;
use crate::model::moe::{ExpertLoad, LayerRouting};

pub use experts::CpuRouting;

/// The processor's threads, and buffers of single operations.
pub struct CpuOps {
    pub(in crate::model) pool: Arc<ThreadPool>,
    low_rank: low_rank::Buffers,
    /// Rows that are normed before they are quantised.
    normed: Vec<f32>,
}

impl CpuOps {
    pub fn new(pool: Arc<ThreadPool>) -> Self {
        Self {
            pool,
            low_rank: low_rank::Buffers::default(),
            normed: Vec::new(),
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

fn product<'a>(linear: &'a Linear<CpuOps>, out: &'a mut [f32]) -> Product<'a> {
    Product {
        weights: &linear.weights,
        bias: linear.bias.as_deref(),
        out,
        accumulate: false,
    }
}

impl Ops for CpuOps {
    type Matrix = PackedMatrix;
    type Experts = ExpertMatrix;
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
    ) -> Result<ExpertMatrix, OpsError> {
        let packed = ExpertMatrix::pack(&self.pool, dtype, bytes, experts, outputs, inputs);
        Ok(packed?)
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>, OpsError> {
        Ok(values)
    }

    fn rope_table(&self, params: &RopeParams<'_>) -> Result<RopeTable, OpsError> {
        Ok(RopeTable::new(
            params.rotary_dim,
            params.num_positions,
            params.theta,
            params.freq_factors,
            params.linear_scale,
        ))
    }

    fn kv_cache(&self, shape: &KvShape) -> Result<KvCache, OpsError> {
        let cache = KvCache::new(
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
        num_kv_heads: usize,
        inputs: &mut AttentionPlan,
    ) -> Result<(), OpsError> {
        inputs.plan(batch.sequences, num_kv_heads, self.pool.num_threads());
        Ok(())
    }

    fn embed(
        &mut self,
        step: Step<'_, Self>,
        table: &PackedMatrix,
        factor: f32,
        out: &mut CpuRows,
    ) -> Result<(), OpsError> {
        let width = table.in_features();
        out.shape(step.num_rows(), width);
        let rows = out.values.chunks_exact_mut(width);
        for (token_id, row) in step.batch.token_ids.iter().zip(rows) {
            table.dequantize_row(*token_id as usize, row);
        }
        if factor != 1.0 {
            scale(&mut out.values, factor);
        }
        Ok(())
    }

    fn norm(
        &mut self,
        x: &CpuRows,
        weight: &Vec<f32>,
        eps: f32,
        out: &mut Activations,
    ) -> Result<(), OpsError> {
        out.load_normed(&self.pool, &x.values, weight, eps);
        Ok(())
    }

    fn norm_rows(&mut self, x: &mut CpuRows, weight: &Vec<f32>, eps: f32) -> Result<(), OpsError> {
        rms_norm_in_place(&self.pool, &mut x.values, weight, eps);
        Ok(())
    }

    fn quantise(&mut self, x: &CpuRows, out: &mut Activations) -> Result<(), OpsError> {
        out.load(&self.pool, &x.values, x.num_rows(), x.width);
        Ok(())
    }

    fn project<const N: usize>(
        &mut self,
        x: &Activations,
        linears: [&Linear<Self>; N],
        outs: [&mut CpuRows; N],
    ) -> Result<(), OpsError> {
        let mut outs = outs.into_iter();
        let products = linears.map(|linear| {
            let out = outs.next().expect("an output a product; this is a bug");
            out.shape(x.num_rows(), linear.weights.out_features());
            product(linear, &mut out.values)
        });
        matmul_many(&self.pool, x, products);
        Ok(())
    }

    fn project_add(
        &mut self,
        x: &Activations,
        linear: &Linear<Self>,
        out: &mut CpuRows,
    ) -> Result<(), OpsError> {
        let product = Product {
            accumulate: true,
            ..product(linear, &mut out.values)
        };
        matmul_many(&self.pool, x, [product]);
        Ok(())
    }

    fn add_residual(
        &mut self,
        h: &mut CpuRows,
        residual: &Residual<'_, Self>,
        x: &mut CpuRows,
    ) -> Result<(), OpsError> {
        let (x, h) = (&mut x.values, &mut h.values);
        match residual.post_norm {
            Some(norm) => add_normed(&self.pool, x, h, norm, residual.eps),
            None => {
                for (x, h) in x.iter_mut().zip(h.iter()) {
                    *x += residual.scale * h;
                }
            }
        }
        Ok(())
    }

    fn rotate_and_cache(
        &mut self,
        step: Step<'_, Self>,
        rotation: &Rotation<'_, Self>,
        cache: &mut KvCache,
        layer: usize,
        [q, k, v]: [&mut CpuRows; 3],
    ) -> Result<(), OpsError> {
        let rotation = ponder_kernels::Rotation {
            table: rotation.table,
            kind: rotation.kind,
            q_norm: rotation.q_norm.map(Vec::as_slice),
            k_norm: rotation.k_norm.map(Vec::as_slice),
            eps: rotation.eps,
            positions: step.batch.positions,
        };
        let slots = step.batch.slot_mapping;
        let (q, k, v) = (&mut q.values, &mut k.values, &v.values);
        rotate_and_cache(&self.pool, &rotation, cache, layer, slots, q, k, v);
        Ok(())
    }

    fn attention(
        &mut self,
        step: Step<'_, Self>,
        params: &AttentionParams,
        cache: &KvCache,
        layer: usize,
        q: &CpuRows,
        out: &mut CpuRows,
    ) -> Result<(), OpsError> {
        out.shape(q.num_rows(), q.width);
        paged_attention(
            &self.pool,
            params,
            cache,
            layer,
            step.inputs,
            &q.values,
            step.batch.sequences,
            &mut out.values,
        );
        Ok(())
    }

    fn keep_rows(&mut self, step: Step<'_, Self>, rows: &mut CpuRows) -> Result<(), OpsError> {
        let (width, kept) = (rows.width, step.batch.logits_rows);
        for (target, row) in kept.iter().enumerate() {
            let start = *row as usize * width;
            rows.values
                .copy_within(start..start + width, target * width);
        }
        rows.values.truncate(kept.len() * width);
        Ok(())
    }

    fn gate_up(
        &mut self,
        x: &Activations,
        [gate, up]: [&PackedMatrix; 2],
        glu: Glu,
        out: &mut Activations,
    ) -> Result<(), OpsError> {
        matmul_glu(&self.pool, x, gate, up, glu, out);
        Ok(())
    }

    fn activate(
        &mut self,
        gate: &mut CpuRows,
        up: &CpuRows,
        kind: Glu,
        out: &mut Activations,
    ) -> Result<(), OpsError> {
        glu(kind, &mut gate.values, &up.values);
        self.quantise(gate, out)
    }

    fn add_low_rank<const N: usize>(
        &mut self,
        step: Step<'_, Self>,
        group: usize,
        input: &AdaptedInput<'_, Self>,
        products: [(Option<&LowRankFactors<Self>>, &mut CpuRows); N],
    ) -> Result<(), OpsError> {
        let rows = step.group_rows(group);
        self.low_rank.add(&self.pool, rows, input, products);
        Ok(())
    }

    fn steer_router(
        &mut self,
        step: Step<'_, Self>,
        layer: usize,
        logits: &mut CpuRows,
    ) -> Result<(), OpsError> {
        if step.batch.steering.iter().all(Option::is_none) {
            return Ok(());
        }
        for ((rows, kept), steering) in step.batch.ranges().zip(step.batch.steering) {
            let delta = steering.and_then(|steering| steering.router_delta(layer));
            let rows = match step.rows {
                RowSet::All => rows,
                RowSet::Kept => kept,
            };
            let width = logits.width;
            add_offset(
                &mut logits.values[rows.start * width..rows.end * width],
                delta,
            );
        }
        Ok(())
    }

    fn route(
        &mut self,
        gating: &Gating,
        logits: &CpuRows,
        bias: Option<&Vec<f32>>,
        routing: &mut CpuRouting,
    ) -> Result<(), OpsError> {
        let bias = bias.map(Vec::as_slice);
        let (values, num_experts) = (&logits.values, logits.width);
        routing
            .routes
            .plan(&self.pool, gating, values, num_experts, bias);
        Ok(())
    }

    fn add_experts(
        &mut self,
        x: &Activations,
        routing: &mut CpuRouting,
        experts: &ExpertWeights<'_, Self>,
        scale: f32,
        out: &mut CpuRows,
    ) -> Result<(), OpsError> {
        routing.add(&self.pool, x, experts, scale, &mut out.values);
        Ok(())
    }

    fn add_weighted(
        &mut self,
        h: &CpuRows,
        weights: &CpuRows,
        scale: f32,
        out: &mut CpuRows,
    ) -> Result<(), OpsError> {
        experts::add_weighted(h, weights, scale, out);
        Ok(())
    }

    fn count_experts(
        &mut self,
        routing: &CpuRouting,
        layer: usize,
        load: &ExpertLoad,
    ) -> Result<(), OpsError> {
        load.add(layer, |expert| routing.routes.rows_of(expert).len());
        Ok(())
    }

    fn read_routing(
        &mut self,
        layer: usize,
        logits: &CpuRows,
        routing: &CpuRouting,
    ) -> Result<LayerRouting, OpsError> {
        Ok(LayerRouting {
            layer,
            router_logits: logits.values.clone(),
            experts: routing.routes.experts().to_vec(),
            gates: routing.routes.gates().to_vec(),
        })
    }

    fn latent_queries(
        &mut self,
        mla: &MlaConfig,
        wide: &CpuRows,
        q: &mut CpuRows,
    ) -> Result<(), OpsError> {
        latent::queries(mla, wide, q);
        Ok(())
    }

    fn latent_norm(
        &mut self,
        mla: &MlaConfig,
        latent: &CpuRows,
        weight: &Vec<f32>,
        eps: f32,
        out: &mut Activations,
    ) -> Result<(), OpsError> {
        let rank = mla.kv_lora_rank;
        self.normed.clear();
        for row in latent.values.chunks_exact(latent.width) {
            self.normed.extend_from_slice(&row[..rank]);
        }
        out.load_normed(&self.pool, &self.normed, weight, eps);
        Ok(())
    }

    fn latent_keys_values(
        &mut self,
        mla: &MlaConfig,
        latent: &CpuRows,
        expanded: Expanded<'_, Self>,
        kv: [&mut CpuRows; 2],
    ) -> Result<(), OpsError> {
        latent::keys_values(mla, latent, &expanded, kv);
        Ok(())
    }

    fn latent_values(&mut self, mla: &MlaConfig, rows: &mut CpuRows) -> Result<(), OpsError> {
        latent::keep_values(mla, rows);
        Ok(())
    }

    fn final_norm(
        &mut self,
        step: Step<'_, Self>,
        x: &CpuRows,
        weight: &Vec<f32>,
        eps: f32,
        out: &mut Activations,
    ) -> Result<(), OpsError> {
        let mut steering = step.batch.steering.iter().flatten();
        if !steering.any(|steering| steering.hidden.is_some()) {
            return self.norm(x, weight, eps, out);
        }
        // The same sums as in one pass: rows that nothing is added to keep their bits.
        let width = x.width;
        self.normed.clone_from(&x.values);
        rms_norm_in_place(&self.pool, &mut self.normed, weight, eps);
        for ((rows, kept), steering) in step.batch.ranges().zip(step.batch.steering) {
            let offset = steering.and_then(|steering| steering.hidden.as_deref());
            let rows = match step.rows {
                RowSet::All => rows,
                RowSet::Kept => kept,
            };
            add_offset(
                &mut self.normed[rows.start * width..rows.end * width],
                offset,
            );
        }
        out.load(&self.pool, &self.normed, x.num_rows(), width);
        Ok(())
    }

    fn head(
        &mut self,
        x: &Activations,
        head: &PackedMatrix,
        transform: &LogitsTransform,
        out: &mut CpuRows,
    ) -> Result<(), OpsError> {
        // Every value is overwritten, so only a longer result than the last is filled.
        out.shape(x.num_rows(), head.out_features());
        matmul(&self.pool, x, head, None, &mut out.values);
        if transform.divisor != 1.0 {
            scale(&mut out.values, 1.0 / transform.divisor);
        }
        if let Some(cap) = transform.softcap {
            softcap(&mut out.values, cap);
        }
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

    fn read_normed(
        &self,
        rows: &CpuRows,
        row: usize,
        weight: &Vec<f32>,
        eps: f32,
    ) -> Result<Option<Vec<f32>>, OpsError> {
        let Some(row) = rows.values.chunks_exact(weight.len()).nth(row) else {
            return Ok(None);
        };
        let mut row = row.to_vec();
        rms_norm_in_place(&self.pool, &mut row, weight, eps);
        Ok(Some(row))
    }

    fn adaptable(decoder: &mut Decoder<Self>) -> Option<&mut dyn Adaptable> {
        Some(decoder)
    }
}
