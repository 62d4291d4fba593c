//! A step: every layer over the rows of a batch, then the logits of those that want them.

use std::sync::Arc;

use super::Decoder;
use crate::model::causal_lm::{
    Adaptable, AdapterId, AdapterStore, BlockId, CausalLm, ForwardBatch, ForwardError, LocalCache,
    ModelInfo, SkipsSubLayers,
};
use crate::model::layer_step::{LayerStep, Scratch};
use crate::model::layers::{FeedForward, Layer};
use crate::model::lora::LoraAdapter;
use crate::model::moe::{ExpertLoad, LayerRouting};
use crate::model::ops::{AttentionShape, Ops, RowSet, Step};
use crate::model::profile::{Operator, Stopwatch};
use crate::model::skip::{SkipSet, SubLayer};
use crate::model::skip_search::{Probe, SkipCosts};

/// A layer with what its sub-layers work on.
struct LayerParts<'a, 't, O: Ops> {
    layer: &'a Layer<O>,
    step: LayerStep<'a, 't, O>,
    rope: &'a O::RopeTable,
    cache: &'a mut Option<O::KvCache>,
}

impl<O: Ops> Decoder<O> {
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

    /// Checks a batch and finds which rows attend to what, and use which adapter.
    pub(in crate::model) fn prepare(
        &mut self,
        batch: &ForwardBatch<'_>,
    ) -> Result<(), ForwardError> {
        self.check(batch)?;
        self.adapters.plan(batch)?;
        let shape = AttentionShape {
            num_heads: self.config.num_heads,
            cache: self.kv_shape.ok_or(ForwardError::NoKvCache)?,
        };
        let groups = &self.adapters.groups;
        self.ops.prepare(batch, groups, shape, &mut self.inputs)?;
        Ok(())
    }

    /// Starts the residual stream of a batch that was prepared.
    pub(in crate::model) fn embed(&mut self, batch: &ForwardBatch<'_>) -> Result<(), ForwardError> {
        let step = Step {
            batch,
            groups: &self.adapters.groups,
            inputs: &self.inputs,
            rows: RowSet::All,
        };
        let scale = self.config.embedding_scale;
        self.ops
            .embed(step, &self.embeddings, scale, &mut self.scratch.x)?;
        Ok(())
    }

    /// One sub-layer over the rows in `x`, prepared before. `left` are the rows that are left past the layer's attention.
    pub(in crate::model) fn run_sub_layer(
        &mut self,
        sub_layer: SubLayer,
        batch: &ForwardBatch<'_>,
        left: RowSet,
        stopwatch: &mut Stopwatch<'_>,
    ) -> Result<(), ForwardError> {
        let (SubLayer::Attention(index) | SubLayer::Mlp(index)) = sub_layer;
        if let SubLayer::Attention(_) = sub_layer {
            self.attend(index, batch, stopwatch)?;
        }
        let parts = self.layer(index, batch, stopwatch);
        let (layer, mut step) = (parts.layer, parts.step);
        step.step.rows = left;
        match (sub_layer, &layer.feed_forward) {
            (SubLayer::Attention(_), _) => {
                if left == RowSet::Kept {
                    step.keep_rows()?;
                }
                step.add_attention(&layer.attention)
            }
            (SubLayer::Mlp(_), FeedForward::Mlp(mlp)) => step.add_mlp(mlp),
            (SubLayer::Mlp(_), FeedForward::Moe(moe)) => {
                step.add_moe(moe)?;
                self.note_routing(index)
            }
        }
    }

    /// Counts where the rows of a layer went, or hands it to whoever asked for it.
    fn note_routing(&mut self, index: usize) -> Result<(), ForwardError> {
        let moe = &self.scratch.moe;
        match &mut self.routing {
            // A step of adaptation, whose tokens are counted where they are served.
            Some(all) => all.push(self.ops.read_routing(index, &moe.logits, &moe.routing)?),
            None => (self.ops).count_experts(&moe.routing, index, &self.expert_load)?,
        }
        Ok(())
    }

    /// A layer's attention up to its result; its queries stay in the scratch.
    pub(in crate::model) fn attend(
        &mut self,
        index: usize,
        batch: &ForwardBatch<'_>,
        stopwatch: &mut Stopwatch<'_>,
    ) -> Result<(), ForwardError> {
        let local = batch.local_view();
        let is_local = self.layers[index].attention.is_local;
        let batch = local.as_ref().filter(|_| is_local).unwrap_or(batch);
        let LayerParts {
            layer,
            mut step,
            rope,
            cache,
        } = self.layer(index, batch, stopwatch);
        let cache = cache.as_mut().ok_or(ForwardError::NoKvCache)?;
        step.attend(&layer.attention, rope, cache)
    }

    fn layer<'a, 't>(
        &'a mut self,
        index: usize,
        batch: &'a ForwardBatch<'a>,
        stopwatch: &'a mut Stopwatch<'t>,
    ) -> LayerParts<'a, 't, O> {
        let (cache_layer, is_local) = self.cache_layer(index);
        let layer = &self.layers[index];
        let rope = self.rope.of(&layer.attention);
        let step = LayerStep {
            ops: &mut self.ops,
            config: &self.config,
            scratch: &mut self.scratch,
            adapters: &self.adapters,
            step: Step {
                batch,
                groups: &self.adapters.groups,
                inputs: &self.inputs,
                rows: RowSet::All,
            },
            index,
            cache_layer,
            stopwatch,
        };
        LayerParts {
            layer,
            step,
            rope,
            cache: match is_local {
                true => &mut self.local_pool.cache,
                false => &mut self.kv_cache,
            },
        }
    }

    /// Final norm and head over the rows left in `x`; the logits stay in the scratch.
    fn project(&mut self, batch: &ForwardBatch<'_>) -> Result<(), ForwardError> {
        let (transform, eps) = (self.logits_transform(), self.config.rms_norm_eps);
        let step = Step {
            batch,
            groups: &self.adapters.groups,
            inputs: &self.inputs,
            rows: RowSet::Kept,
        };
        let Scratch {
            activations,
            x,
            logits: rows,
            ..
        } = &mut self.scratch;
        let head = self.head.as_ref().unwrap_or(&self.embeddings);
        self.ops
            .final_norm(step, x, &self.output_norm, eps, activations)?;
        self.ops.head(activations, head, &transform, rows)?;
        Ok(())
    }

    /// Every operation of a batch that was prepared, up to its logits, which stay where the operations run.
    pub(in crate::model) fn run(
        &mut self,
        batch: &ForwardBatch<'_>,
        stopwatch: &mut Stopwatch<'_>,
    ) -> Result<(), ForwardError> {
        self.embed(batch)?;
        stopwatch.mark(Operator::Embed);
        let last_layer = self.layers.len() - 1;
        for index in 0..self.layers.len() {
            let left = match index == last_layer {
                true => RowSet::Kept,
                false => RowSet::All,
            };
            for sub_layer in [SubLayer::Attention(index), SubLayer::Mlp(index)] {
                if batch.skip.is_none_or(|skip| !skip.skips(sub_layer)) {
                    self.run_sub_layer(sub_layer, batch, left, stopwatch)?;
                }
            }
        }
        if !batch.logits_rows.is_empty() {
            self.project(batch)?;
            stopwatch.mark(Operator::Head);
        }
        Ok(())
    }
}

impl<O: Ops> CausalLm for Decoder<O> {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn allocate_kv_cache(
        &mut self,
        num_blocks: usize,
        block_size: usize,
        max_num_rows: usize,
    ) -> Result<(), ForwardError> {
        self.allocate_pools(num_blocks, block_size)?;
        Ok(self.allocate_scratch(max_num_rows)?)
    }

    fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), ForwardError> {
        let shape = self.kv_shape.ok_or(ForwardError::NoKvCache)?;
        Self::check_copies(copies, &shape)?;
        let cache = self.kv_cache.as_mut().ok_or(ForwardError::NoKvCache)?;
        Ok(self.ops.copy_blocks(cache, copies)?)
    }

    fn forward(
        &mut self,
        batch: &ForwardBatch<'_>,
        logits: &mut Vec<f32>,
    ) -> Result<(), ForwardError> {
        let times = self.operator_times.clone();
        let mut stopwatch = Stopwatch::start(times.as_deref());
        self.prepare(batch)?;
        self.run(batch, &mut stopwatch)?;
        match batch.logits_rows.is_empty() {
            true => logits.clear(),
            false => self.ops.take(&mut self.scratch.logits, logits)?,
        }
        Ok(())
    }

    fn expert_load(&self) -> Option<Arc<ExpertLoad>> {
        self.info.num_experts.map(|_| Arc::clone(&self.expert_load))
    }

    fn local_cache(&mut self) -> Option<&mut dyn LocalCache> {
        match self.info.local {
            Some(_) => Some(self),
            None => None,
        }
    }

    fn adapters(&mut self) -> Option<&mut dyn AdapterStore> {
        Some(self)
    }

    fn adaptation(&mut self) -> Option<&mut dyn Adaptable> {
        O::adaptable(self)
    }

    fn sub_layers(&mut self) -> Option<&mut dyn SkipsSubLayers> {
        Some(self)
    }

    fn hidden_state(&self, index: usize) -> Option<Vec<f32>> {
        let (x, norm) = (&self.scratch.x, &self.output_norm);
        let row = self
            .ops
            .read_normed(x, index, norm, self.config.rms_norm_eps);
        row.ok().flatten()
    }
}

impl<O: Ops> AdapterStore for Decoder<O> {
    fn load(&mut self, id: AdapterId, adapter: &LoraAdapter) -> Result<(), ForwardError> {
        self.adapters.load(&self.ops, id, adapter, &self.layers)
    }

    fn unload(&mut self, id: AdapterId) {
        self.adapters.unload(id);
    }
}

impl<O: Ops> SkipsSubLayers for Decoder<O> {
    fn skip_sets(
        &mut self,
        probes: &[Probe<'_>],
        costs: SkipCosts,
        first_scratch: BlockId,
    ) -> Result<Vec<Option<SkipSet>>, ForwardError> {
        self.search_skip_sets(probes, costs, first_scratch)
    }
}
