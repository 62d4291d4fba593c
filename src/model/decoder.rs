//! The forward pass: a static plan over preallocated rows of f32.

use std::sync::Arc;

use ponder_kernels::elementwise::{glu, scale, softcap};
use ponder_kernels::norm::{add_normed, rms_norm_in_place};
use ponder_kernels::{
    Activations, AttentionParams, AttentionPlan, KvCache, PackedMatrix, Product, RopeTable,
    Rotation, ThreadPool, matmul, matmul_glu, matmul_many, paged_attention, rotate_and_cache,
};

use super::adapted::{Adapters, Input};
use super::causal_lm::{AdapterId, BlockId, CausalLm, ForwardBatch, ForwardError, ModelInfo};
use super::config::ModelConfig;
use super::layers::{ArchitecturePlan, Attention, Layer, Linear, Mlp};
use super::lora::{LoraAdapter, Target};
use super::profile::{Operator, OperatorTimes, Stopwatch};
use super::skip::{SkipSet, SubLayer};
use super::skip_search::{Probe, SkipCosts};
use super::weights::{LoadError, WeightSource, Weights};

/// Bytes of one f16 value in the KV cache.
const KV_VALUE_BYTES: usize = 2;

/// A decoder-only transformer of any supported architecture.
pub struct Decoder {
    pub(super) pool: Arc<ThreadPool>,
    pub(super) config: ModelConfig,
    plan: ArchitecturePlan,
    info: ModelInfo,
    embeddings: PackedMatrix,
    pub(super) layers: Vec<Layer>,
    output_norm: Vec<f32>,
    /// Absent when the head is tied to the embeddings.
    head: Option<PackedMatrix>,
    rope: RopeTable,
    local_rope: Option<RopeTable>,
    pub(super) kv_cache: Option<KvCache>,
    pub(super) scratch: Scratch,
    pub(super) adapters: Adapters,
    pub(super) operator_times: Option<Arc<OperatorTimes>>,
}

/// Rows of one step. Buffers grow to the largest step and stay.
#[derive(Default)]
pub(super) struct Scratch {
    activations: Activations,
    /// What the MLP's down projection reads.
    gated: Activations,
    pub(super) attention: AttentionPlan,
    /// `[rows, hidden_size]`, the residual stream.
    pub(super) x: Vec<f32>,
    /// `[rows, hidden_size]`, a sub-layer's output where it is normalised before it is added.
    h: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[rows, num_heads * head_dim]`
    attended: Vec<f32>,
    /// `[rows, intermediate_size]`, where an adapter changes the MLP.
    gate: Vec<f32>,
    up: Vec<f32>,
}

impl Decoder {
    /// Packs the weights of `source`. RoPE tables cover `max_model_len` positions, or the context
    /// length of the configuration.
    pub fn load(
        pool: Arc<ThreadPool>,
        config: ModelConfig,
        source: &impl WeightSource,
        max_model_len: Option<usize>,
    ) -> Result<Self, LoadError> {
        let plan = ArchitecturePlan::new(&config);
        let weights = Weights {
            source,
            pool: &pool,
        };
        let (vocab_size, hidden) = (config.vocab_size, config.hidden_size);
        let embeddings = weights.matrix("token_embd.weight", vocab_size, hidden)?;
        let head = if weights.has("output.weight")? {
            Some(weights.matrix("output.weight", vocab_size, hidden)?)
        } else {
            None
        };
        let layers = (0..config.num_layers)
            .map(|index| Layer::load(&weights, &config, &plan, index))
            .collect::<Result<Vec<_>, _>>()?;
        let output_norm = weights.vector("output_norm.weight", hidden)?;
        let num_positions = max_model_len.unwrap_or(config.max_position_embeddings);
        let rope = RopeTable::new(
            config.head_dim,
            num_positions,
            config.rope_theta,
            config.rope_freq_factors.as_deref(),
            config.rope_linear_scale,
        );
        let local_rope = plan
            .local_rope_theta
            .map(|theta| RopeTable::new(config.head_dim, num_positions, theta, None, 1.0));
        let matrices = layers
            .iter()
            .flat_map(Layer::matrices)
            .map(PackedMatrix::nbytes)
            .sum::<usize>();
        let info = ModelInfo {
            vocab_size,
            max_position_embeddings: config.max_position_embeddings,
            num_layers: config.num_layers,
            hidden_size: hidden,
            kv_bytes_per_token: config.num_layers
                * config.num_kv_heads
                * config.head_dim
                * 2
                * KV_VALUE_BYTES,
            weight_bytes: matrices
                + embeddings.nbytes()
                + head.as_ref().map_or(0, PackedMatrix::nbytes),
            architecture: config.architecture.name().to_owned(),
        };
        Ok(Self {
            pool,
            config,
            plan,
            info,
            embeddings,
            layers,
            output_norm,
            head,
            rope,
            local_rope,
            kv_cache: None,
            scratch: Scratch::default(),
            adapters: Adapters::default(),
            operator_times: None,
        })
    }

    pub(super) fn embed(&mut self, token_ids: &[u32]) -> Result<(), ForwardError> {
        let hidden = self.config.hidden_size;
        let x = &mut self.scratch.x;
        x.resize(token_ids.len() * hidden, 0.0);
        for (token_id, row) in token_ids.iter().zip(x.chunks_exact_mut(hidden)) {
            let token_id = *token_id as usize;
            if token_id >= self.config.vocab_size {
                return Err(ForwardError::Internal(format!("no token {token_id}")));
            }
            self.embeddings.dequantize_row(token_id, row);
        }
        if self.plan.embedding_scale != 1.0 {
            scale(x, self.plan.embedding_scale);
        }
        Ok(())
    }

    /// One sub-layer over the rows in `x`, planned before. Past the attention of the last layer only the `kept` rows are left.
    pub(super) fn run_sub_layer(
        &mut self,
        sub_layer: SubLayer,
        batch: &ForwardBatch<'_>,
        kept: Option<&[u32]>,
        stopwatch: &mut Stopwatch<'_>,
    ) -> Result<(), ForwardError> {
        let (SubLayer::Attention(index) | SubLayer::Mlp(index)) = sub_layer;
        let layer = &self.layers[index];
        let mut step = LayerStep {
            pool: &self.pool,
            config: &self.config,
            plan: &self.plan,
            scratch: &mut self.scratch,
            adapters: &mut self.adapters,
            index,
            is_kept: false,
            stopwatch,
        };
        if let SubLayer::Mlp(_) = sub_layer {
            step.is_kept = kept.is_some();
            step.add_mlp(&layer.mlp);
            return Ok(());
        }
        let cache = self.kv_cache.as_mut().ok_or(ForwardError::NoKvCache)?;
        let rope = match (&self.local_rope, layer.attention.is_local) {
            (Some(local), true) => local,
            _ => &self.rope,
        };
        step.attend(&layer.attention, rope, cache, batch);
        if let Some(rows) = kept {
            step.keep_rows(rows);
        }
        step.add_attention(&layer.attention);
        Ok(())
    }

    /// Final norm and head over the rows left in `x`.
    fn project(&mut self, logits: &mut Vec<f32>) {
        let (hidden, eps) = (self.config.hidden_size, self.config.rms_norm_eps);
        let num_rows = self.scratch.x.len() / hidden;
        let Scratch { activations, x, .. } = &mut self.scratch;
        activations.load_normed(&self.pool, x, &self.output_norm, eps);
        // Every value is overwritten, so only a longer result than the last is filled.
        logits.resize(num_rows * self.config.vocab_size, 0.0);
        let head = self.head.as_ref().unwrap_or(&self.embeddings);
        matmul(&self.pool, activations, head, None, logits);
        if let Some(cap) = self.config.final_softcap {
            softcap(logits, cap);
        }
    }
}

impl CausalLm for Decoder {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn allocate_kv_cache(
        &mut self,
        num_blocks: usize,
        block_size: usize,
        max_num_rows: usize,
    ) -> Result<(), ForwardError> {
        let config = &self.config;
        let cache = KvCache::new(
            config.num_layers,
            num_blocks,
            block_size,
            config.num_kv_heads,
            config.head_dim,
        )
        .map_err(|error| ForwardError::Internal(error.to_string()))?;
        self.kv_cache = Some(cache);
        let q_width = config.num_heads * config.head_dim;
        let head = self.head.as_ref().unwrap_or(&self.embeddings);
        let has_floats = !head.is_quantised()
            || self
                .layers
                .iter()
                .any(|layer| layer.matrices().any(|m| !m.is_quantised()));
        let activations = |width| Activations::with_capacity(max_num_rows, width, has_floats);
        self.scratch.activations = activations(q_width.max(config.hidden_size));
        self.scratch.gated = activations(config.intermediate_size);
        Ok(())
    }

    fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), ForwardError> {
        let cache = self.kv_cache.as_mut().ok_or(ForwardError::NoKvCache)?;
        cache.copy_blocks(copies);
        Ok(())
    }

    fn forward(
        &mut self,
        batch: &ForwardBatch<'_>,
        logits: &mut Vec<f32>,
    ) -> Result<(), ForwardError> {
        let times = self.operator_times.clone();
        let mut stopwatch = Stopwatch::start(times.as_deref());
        self.embed(batch.token_ids)?;
        self.adapters.plan(batch)?;
        let num_kv_heads = self.config.num_kv_heads;
        let plan = &mut self.scratch.attention;
        plan.plan(batch.sequences, num_kv_heads, self.pool.num_threads());
        stopwatch.mark(Operator::Embed);
        let last_layer = self.layers.len() - 1;
        for index in 0..self.layers.len() {
            let kept = (index == last_layer).then_some(batch.logits_rows);
            for sub_layer in [SubLayer::Attention(index), SubLayer::Mlp(index)] {
                if batch.skip.is_none_or(|skip| !skip.skips(sub_layer)) {
                    self.run_sub_layer(sub_layer, batch, kept, &mut stopwatch)?;
                }
            }
        }
        if batch.logits_rows.is_empty() {
            logits.clear();
        } else {
            self.project(logits);
            stopwatch.mark(Operator::Head);
        }
        Ok(())
    }

    fn skip_sets(
        &mut self,
        probes: &[Probe<'_>],
        costs: SkipCosts,
        first_scratch: BlockId,
    ) -> Result<Vec<Option<SkipSet>>, ForwardError> {
        self.search_skip_sets(probes, costs, first_scratch)
    }

    fn load_adapter(&mut self, id: AdapterId, adapter: &LoraAdapter) -> Result<(), ForwardError> {
        self.adapters.load(&self.pool, id, adapter)
    }

    fn unload_adapter(&mut self, id: AdapterId) {
        self.adapters.unload(id);
    }

    fn hidden_state(&self, index: usize) -> Option<Vec<f32>> {
        let width = self.config.hidden_size;
        let mut row = self
            .scratch
            .x
            .get(index * width..(index + 1) * width)?
            .to_vec();
        rms_norm_in_place(
            &self.pool,
            &mut row,
            &self.output_norm,
            self.config.rms_norm_eps,
        );
        Some(row)
    }
}

/// One layer over the rows in the scratch.
struct LayerStep<'a, 't> {
    pool: &'a ThreadPool,
    config: &'a ModelConfig,
    plan: &'a ArchitecturePlan,
    scratch: &'a mut Scratch,
    adapters: &'a mut Adapters,
    /// Of the layer.
    index: usize,
    /// Only the rows whose logits are wanted are left.
    is_kept: bool,
    stopwatch: &'a mut Stopwatch<'t>,
}

impl LayerStep<'_, '_> {
    /// Norm, QKV, rotation, KV write and attention; leaves the result in `attended`.
    fn attend(
        &mut self,
        layer: &Attention,
        rope: &RopeTable,
        cache: &mut KvCache,
        batch: &ForwardBatch<'_>,
    ) {
        let (config, pool) = (self.config, self.pool);
        let s = &mut *self.scratch;
        let num_rows = batch.token_ids.len();
        s.activations
            .load_normed(pool, &s.x, &layer.norm, config.rms_norm_eps);
        self.stopwatch.mark(Operator::Norm);
        s.q.resize(num_rows * config.num_heads * config.head_dim, 0.0);
        s.k.resize(num_rows * config.num_kv_heads * config.head_dim, 0.0);
        s.v.resize(s.k.len(), 0.0);
        let products = [
            product(&layer.q, &mut s.q),
            product(&layer.k, &mut s.k),
            product(&layer.v, &mut s.v),
        ];
        matmul_many(pool, &s.activations, products);
        if self.adapters.are_used() {
            let input = Input::Normed(&s.x, &layer.norm, config.rms_norm_eps);
            let outs = [
                (Target::Q, &mut s.q[..]),
                (Target::K, &mut s.k[..]),
                (Target::V, &mut s.v[..]),
            ];
            self.adapters
                .add(pool, self.index, self.is_kept, input, outs);
        }
        self.stopwatch.mark(Operator::Qkv);
        let rotation = Rotation {
            table: rope,
            kind: self.plan.rope_kind,
            q_norm: layer.q_norm.as_deref(),
            k_norm: layer.k_norm.as_deref(),
            eps: config.rms_norm_eps,
            positions: batch.positions,
        };
        let slots = batch.slot_mapping;
        rotate_and_cache(
            pool, &rotation, cache, self.index, slots, &mut s.q, &mut s.k, &s.v,
        );
        self.stopwatch.mark(Operator::RotateAndCache);
        let params = AttentionParams {
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            sliding_window: config.sliding_window.filter(|_| layer.is_local),
            softcap: config.attention_softcap,
        };
        s.attended.resize(s.q.len(), 0.0);
        paged_attention(
            pool,
            &params,
            cache,
            self.index,
            &s.attention,
            &s.q,
            batch.sequences,
            &mut s.attended,
        );
        self.stopwatch.mark(Operator::Attention);
    }

    /// Past the last layer's attention only the rows whose logits are wanted matter.
    fn keep_rows(&mut self, rows: &[u32]) {
        self.is_kept = true;
        let width = self.config.num_heads * self.config.head_dim;
        keep_rows(&mut self.scratch.x, self.config.hidden_size, rows);
        keep_rows(&mut self.scratch.attended, width, rows);
    }

    fn add_attention(&mut self, layer: &Attention) {
        let s = &mut *self.scratch;
        let width = self.config.num_heads * self.config.head_dim;
        let num_rows = s.attended.len() / width;
        s.activations.load(self.pool, &s.attended, num_rows, width);
        self.stopwatch.mark(Operator::Quantise);
        let (pool, eps) = (self.pool, self.config.rms_norm_eps);
        let (x, h) = (&mut s.x[..], &mut s.h);
        let residual = Residual { pool, eps, x, h };
        let post_norm = layer.post_norm.as_deref();
        if self.adapters.are_used() {
            let input = Input::Plain(&s.attended, width);
            let (adapters, index, is_kept) = (&mut *self.adapters, self.index, self.is_kept);
            residual.add_adapted(&s.activations, &layer.output, post_norm, |h| {
                adapters.add(pool, index, is_kept, input, [(Target::Output, h)]);
            });
        } else {
            residual.add(&s.activations, &layer.output, post_norm);
        }
        self.stopwatch.mark(Operator::AttentionOutput);
    }

    fn add_mlp(&mut self, layer: &Mlp) {
        let (pool, eps) = (self.pool, self.config.rms_norm_eps);
        let s = &mut *self.scratch;
        s.activations.load_normed(pool, &s.x, &layer.norm, eps);
        self.stopwatch.mark(Operator::Norm);
        if self.adapters.are_used() {
            return self.add_adapted_mlp(layer);
        }
        let (gate, up) = (&layer.gate.weights, &layer.up.weights);
        matmul_glu(pool, &s.activations, gate, up, self.plan.glu, &mut s.gated);
        self.stopwatch.mark(Operator::GateUp);
        let (x, h) = (&mut s.x[..], &mut s.h);
        let residual = Residual { pool, eps, x, h };
        residual.add(&s.gated, &layer.down, layer.post_norm.as_deref());
        self.stopwatch.mark(Operator::Down);
    }

    /// The same with the sums of gate and up before the gate is applied, so that adapters can add to them. Each value
    /// comes from the same sums as in the fused product: rows without an adapter get the same bits.
    fn add_adapted_mlp(&mut self, layer: &Mlp) {
        let (pool, eps) = (self.pool, self.config.rms_norm_eps);
        let width = self.config.intermediate_size;
        let (index, is_kept) = (self.index, self.is_kept);
        let s = &mut *self.scratch;
        let num_rows = s.x.len() / self.config.hidden_size;
        s.gate.resize(num_rows * width, 0.0);
        s.up.resize(num_rows * width, 0.0);
        let products = [
            product(&layer.gate, &mut s.gate),
            product(&layer.up, &mut s.up),
        ];
        matmul_many(pool, &s.activations, products);
        let input = Input::Normed(&s.x, &layer.norm, eps);
        let outs = [(Target::Gate, &mut s.gate[..]), (Target::Up, &mut s.up[..])];
        self.adapters.add(pool, index, is_kept, input, outs);
        glu(self.plan.glu, &mut s.gate, &s.up);
        s.gated.load(pool, &s.gate, num_rows, width);
        self.stopwatch.mark(Operator::GateUp);
        let (x, h) = (&mut s.x[..], &mut s.h);
        let residual = Residual { pool, eps, x, h };
        let input = Input::Plain(&s.gate, width);
        let adapters = &mut *self.adapters;
        residual.add_adapted(&s.gated, &layer.down, layer.post_norm.as_deref(), |h| {
            adapters.add(pool, index, is_kept, input, [(Target::Down, h)]);
        });
        self.stopwatch.mark(Operator::Down);
    }
}

/// The last step of a sub-layer.
struct Residual<'a> {
    pool: &'a ThreadPool,
    eps: f32,
    x: &'a mut [f32],
    h: &'a mut Vec<f32>,
}

impl Residual<'_> {
    /// Adds a product, normalised where the architecture does, to the residual stream.
    fn add(self, input: &Activations, linear: &Linear, post_norm: Option<&[f32]>) {
        let Some(norm) = post_norm else {
            let product = Product {
                accumulate: true,
                ..product(linear, self.x)
            };
            return matmul_many(self.pool, input, [product]);
        };
        self.add_adapted(input, linear, Some(norm), |_| {});
    }

    /// The same with `adapt` in between: it gets the product before it is normalised and added.
    fn add_adapted(
        self,
        input: &Activations,
        linear: &Linear,
        post_norm: Option<&[f32]>,
        adapt: impl FnOnce(&mut [f32]),
    ) {
        self.h.resize(self.x.len(), 0.0);
        matmul_many(self.pool, input, [product(linear, self.h)]);
        adapt(self.h);
        match post_norm {
            Some(norm) => add_normed(self.pool, self.x, self.h, norm, self.eps),
            None => {
                for (x, h) in self.x.iter_mut().zip(self.h.iter()) {
                    *x += h;
                }
            }
        }
    }
}

fn product<'a>(linear: &'a Linear, out: &'a mut [f32]) -> Product<'a> {
    Product {
        weights: &linear.weights,
        bias: linear.bias.as_deref(),
        out,
        accumulate: false,
    }
}

/// Moves the chosen rows (ascending) to the front and drops the rest.
fn keep_rows(values: &mut Vec<f32>, width: usize, rows: &[u32]) {
    for (target, row) in rows.iter().enumerate() {
        let start = *row as usize * width;
        values.copy_within(start..start + width, target * width);
    }
    values.truncate(rows.len() * width);
}
