//! The forward pass: a static plan over preallocated rows of f32.

use std::sync::Arc;

use ponder_kernels::elementwise::{scale, softcap};
use ponder_kernels::norm::rms_norm_in_place;
use ponder_kernels::{Activations, KvCache, PackedMatrix, RopeTable, ThreadPool, matmul};

use super::adapt::{AdaptationPhase, add_offset};
use super::adapted::Adapters;
use super::causal_lm::{
    Adaptable, AdapterId, AdapterStore, BlockId, CausalLm, ForwardBatch, ForwardError, ModelInfo,
    SkipsSubLayers,
};
use super::config::ModelConfig;
use super::layer_step::{LayerStep, Scratch};
use super::layers::{ArchitecturePlan, FeedForward, Layer};
use super::lora::LoraAdapter;
use super::moe::{ExpertLoad, LayerRouting, MoeScratch};
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
    pub(super) plan: ArchitecturePlan,
    info: ModelInfo,
    pub(super) embeddings: PackedMatrix,
    pub(super) layers: Vec<Layer>,
    pub(super) output_norm: Vec<f32>,
    /// Absent when the head is tied to the embeddings.
    pub(super) head: Option<PackedMatrix>,
    pub(super) rope: RopeTable,
    pub(super) local_rope: Option<RopeTable>,
    pub(super) kv_cache: Option<KvCache>,
    pub(super) scratch: Scratch,
    pub(super) adapters: Adapters,
    pub(super) operator_times: Option<Arc<OperatorTimes>>,
    expert_load: Arc<ExpertLoad>,
    /// Of the last step, when somebody wants it.
    pub(super) routing: Option<Vec<LayerRouting>>,
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
            config.rotary_dim(),
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
            num_experts: config.moe.as_ref().map(|moe| moe.num_experts),
            is_differentiable: config.mla.is_none(),
        };
        let with_experts = (0..layers.len()).filter(|index| layers[*index].moe().is_some());
        let expert_load = ExpertLoad::new(with_experts.collect(), info.num_experts.unwrap_or(0));
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
            routing: None,
            expert_load: Arc::new(expert_load),
        })
    }

    /// Runs a step and tells where its rows went in each mixture-of-experts layer.
    pub fn forward_routed(
        &mut self,
        batch: &ForwardBatch<'_>,
        logits: &mut Vec<f32>,
    ) -> Result<Vec<LayerRouting>, ForwardError> {
        self.routing = Some(Vec::new());
        let result = self.forward(batch, logits);
        let routing = self.routing.take().unwrap_or_default();
        result.map(|()| routing)
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
        if let SubLayer::Attention(_) = sub_layer {
            self.attend(index, batch, stopwatch)?;
        }
        let parts = self.layer(index, stopwatch);
        let (layer, mut step) = (parts.layer, parts.step);
        match (sub_layer, &layer.feed_forward) {
            (SubLayer::Attention(_), _) => {
                if let Some(rows) = kept {
                    step.keep_rows(rows);
                }
                step.add_attention(&layer.attention);
            }
            (SubLayer::Mlp(_), FeedForward::Mlp(mlp)) => {
                step.is_kept = kept.is_some();
                step.add_mlp(mlp);
            }
            (SubLayer::Mlp(_), FeedForward::Moe(moe)) => {
                step.is_kept = kept.is_some();
                step.add_moe(moe, batch);
                match &mut self.routing {
                    // A step of adaptation, whose tokens are counted where they are served.
                    Some(routing) => routing.push(self.scratch.moe.routing(index)),
                    None => self.expert_load.add(index, &self.scratch.moe.routes),
                }
            }
        }
        Ok(())
    }

    /// A layer's attention up to its result; its queries stay in the scratch.
    pub(super) fn attend(
        &mut self,
        index: usize,
        batch: &ForwardBatch<'_>,
        stopwatch: &mut Stopwatch<'_>,
    ) -> Result<(), ForwardError> {
        let LayerParts {
            layer,
            mut step,
            rope,
            cache,
        } = self.layer(index, stopwatch);
        let cache = cache.as_mut().ok_or(ForwardError::NoKvCache)?;
        step.attend(&layer.attention, rope, cache, batch);
        Ok(())
    }

    fn layer<'a, 't>(
        &'a mut self,
        index: usize,
        stopwatch: &'a mut Stopwatch<'t>,
    ) -> LayerParts<'a, 't> {
        let layer = &self.layers[index];
        let rope = match (&self.local_rope, layer.attention.is_local) {
            (Some(local), true) => local,
            _ => &self.rope,
        };
        let step = LayerStep {
            pool: &self.pool,
            config: &self.config,
            plan: &self.plan,
            scratch: &mut self.scratch,
            adapters: &mut self.adapters,
            index,
            is_kept: false,
            stopwatch,
        };
        LayerParts {
            layer,
            step,
            rope,
            cache: &mut self.kv_cache,
        }
    }

    /// Whether an expert's matrices are floats, which read activations as they are.
    fn has_float_experts(&self) -> bool {
        let is_float = |matrix: &PackedMatrix| !matrix.is_quantised();
        let matrices = self.layers.iter().filter_map(Layer::moe);
        matrices.flat_map(|moe| moe.expert_matrices()).any(is_float)
    }

    /// Final norm and head over the rows left in `x`.
    fn project(&mut self, batch: &ForwardBatch<'_>, logits: &mut Vec<f32>) {
        let (hidden, eps) = (self.config.hidden_size, self.config.rms_norm_eps);
        let num_rows = self.scratch.x.len() / hidden;
        let Scratch { activations, x, .. } = &mut self.scratch;
        let mut hidden_steering = batch.steering.iter().flatten();
        if hidden_steering.any(|steering| steering.hidden.is_some()) {
            // The same sums as in one pass: rows that nothing is added to keep their bits.
            let mut normed = x.clone();
            rms_norm_in_place(&self.pool, &mut normed, &self.output_norm, eps);
            for ((_, kept), steering) in batch.ranges().zip(batch.steering) {
                let offset = steering.and_then(|steering| steering.hidden.as_deref());
                add_offset(&mut normed[kept.start * hidden..kept.end * hidden], offset);
            }
            activations.load(&self.pool, &normed, num_rows, hidden);
        } else {
            activations.load_normed(&self.pool, x, &self.output_norm, eps);
        }
        // Every value is overwritten, so only a longer result than the last is filled.
        logits.resize(num_rows * self.config.vocab_size, 0.0);
        let head = self.head.as_ref().unwrap_or(&self.embeddings);
        matmul(&self.pool, activations, head, None, logits);
        if self.config.logits_divisor != 1.0 {
            scale(logits, 1.0 / self.config.logits_divisor);
        }
        if let Some(cap) = self.config.final_softcap {
            softcap(logits, cap);
        }
    }
}

/// A layer with what its sub-layers work on.
struct LayerParts<'a, 't> {
    layer: &'a Layer,
    step: LayerStep<'a, 't>,
    rope: &'a RopeTable,
    cache: &'a mut Option<KvCache>,
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
        self.scratch.moe = MoeScratch::new(has_floats && self.has_float_experts());
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
            self.project(batch, logits);
            stopwatch.mark(Operator::Head);
        }
        Ok(())
    }

    fn expert_load(&self) -> Option<Arc<ExpertLoad>> {
        self.info.num_experts.map(|_| Arc::clone(&self.expert_load))
    }

    fn adapters(&mut self) -> Option<&mut dyn AdapterStore> {
        Some(self)
    }

    fn adaptation(&mut self) -> Option<&mut dyn Adaptable> {
        Some(self)
    }

    fn sub_layers(&mut self) -> Option<&mut dyn SkipsSubLayers> {
        Some(self)
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

impl AdapterStore for Decoder {
    fn load(&mut self, id: AdapterId, adapter: &LoraAdapter) -> Result<(), ForwardError> {
        self.adapters.load(&self.pool, id, adapter)
    }

    fn unload(&mut self, id: AdapterId) {
        self.adapters.unload(id);
    }
}

impl Adaptable for Decoder {
    fn adapt(
        &mut self,
        batch: &ForwardBatch<'_>,
        targets: &[u32],
        phase: &mut AdaptationPhase,
    ) -> Result<(), ForwardError> {
        self.step_adaptation(batch, targets, phase)
    }
}

impl SkipsSubLayers for Decoder {
    fn skip_sets(
        &mut self,
        probes: &[Probe<'_>],
        costs: SkipCosts,
        first_scratch: BlockId,
    ) -> Result<Vec<Option<SkipSet>>, ForwardError> {
        self.search_skip_sets(probes, costs, first_scratch)
    }
}
