//! The executor of a model that hands its logits to the host: the CPU's.

use std::sync::Arc;

use super::batch::BatchBuffers;
use super::draw::draw;
use super::{
    Executor, ExecutorError, PoolSpec, Pooled, SampleSpec, Sampled, ScoreSpec, StepInput,
    StepOutput, Ticket,
};
use crate::engine::logprobs::token_logprobs;
use crate::engine::request::TokenMask;
use crate::engine::sampler::Sampler;
use crate::model::{
    Adaptable, AdapterStore, CausalLm, ExpertLoad, ForwardError, LocalCache, ModelInfo,
};

/// Runs a [`CausalLm`] and samples on the calling thread.
pub struct ModelExecutor {
    model: Box<dyn CausalLm>,
    sampler: Sampler,
    /// Of the step that was launched last.
    logits: Vec<f32>,
    launched: Option<StepInput>,
    num_launched: u64,
    batch: BatchBuffers,
}

impl ModelExecutor {
    pub fn new(model: Box<dyn CausalLm>) -> Self {
        Self {
            model,
            sampler: Sampler::default(),
            logits: Vec::new(),
            launched: None,
            num_launched: 0,
            batch: BatchBuffers::default(),
        }
    }

    pub fn model(&mut self) -> &mut dyn CausalLm {
        &mut *self.model
    }

    fn forward(&mut self, step: &StepInput) -> Result<(), ForwardError> {
        let (model, logits) = (&mut self.model, &mut self.logits);
        self.batch.with(step, |batch| model.forward(batch, logits))
    }

    fn row(&self, index: u32) -> &[f32] {
        let vocab_size = self.model.info().vocab_size;
        let start = index as usize * vocab_size;
        &self.logits[start..start + vocab_size]
    }

    fn sample(&mut self, spec: &SampleSpec, masks: &[TokenMask], drawn: &[Sampled]) -> Sampled {
        if let Some((before, token_id)) = spec.after
            && drawn[before as usize].token_id() != Some(token_id)
        {
            return Sampled::Skipped;
        }
        let vocab_size = self.model.info().vocab_size;
        let start = spec.row as usize * vocab_size;
        let row = &self.logits[start..start + vocab_size];
        let model = &self.model;
        let hidden_state = |row| model.hidden_state(row);
        draw(&mut self.sampler, spec, masks, row, hidden_state)
    }

    fn pool(&self, spec: &PoolSpec) -> Pooled {
        let row = self.row(spec.row);
        Pooled {
            logits: (spec.params.token_ids.iter())
                .map(|id| row[*id as usize])
                .collect(),
            hidden_state: (spec.params.hidden_state)
                .then(|| self.model.hidden_state(spec.row as usize))
                .flatten(),
        }
    }
}

impl Executor for ModelExecutor {
    fn info(&self) -> &ModelInfo {
        self.model.info()
    }

    fn allocate(
        &mut self,
        num_blocks: usize,
        block_size: usize,
        max_num_rows: usize,
    ) -> Result<(), ExecutorError> {
        let model = &mut self.model;
        Ok(model.allocate_kv_cache(num_blocks, block_size, max_num_rows)?)
    }

    fn launch(&mut self, step: StepInput) -> Result<Ticket, ExecutorError> {
        if !step.block_copies.blocks.is_empty() {
            self.model.copy_blocks(&step.block_copies.blocks)?;
        }
        if !step.block_copies.local.is_empty() {
            let pool = self.model.local_cache();
            let pool = pool.ok_or(ForwardError::Lacks("a pool for sliding windows"))?;
            pool.copy_local_blocks(&step.block_copies.local)?;
        }
        if !step.token_ids.is_empty() {
            self.forward(&step)?;
        }
        self.launched = Some(step);
        self.num_launched += 1;
        Ok(Ticket(self.num_launched))
    }

    fn finish(&mut self, ticket: Ticket, masks: &[TokenMask]) -> Result<StepOutput, ExecutorError> {
        let launched = self.launched.take();
        let launched = launched.filter(|_| ticket.0 == self.num_launched);
        let Some(input) = launched else {
            return Err(ExecutorError::UnknownTicket(ticket.0));
        };
        let mut samples = Vec::with_capacity(input.samples.len());
        for spec in &input.samples {
            let sampled = self.sample(spec, masks, &samples);
            samples.push(sampled);
        }
        let score =
            |spec: &ScoreSpec| token_logprobs(self.row(spec.row), spec.token_id, spec.num_top);
        Ok(StepOutput {
            scores: input.scores.iter().map(score).collect(),
            pools: input.pools.iter().map(|spec| self.pool(spec)).collect(),
            samples,
            input,
        })
    }

    fn expert_load(&self) -> Option<Arc<ExpertLoad>> {
        self.model.expert_load()
    }

    fn skips_sub_layers(&mut self) -> bool {
        self.model.sub_layers().is_some()
    }

    fn local_cache(&mut self) -> Option<&mut dyn LocalCache> {
        self.model.local_cache()
    }

    fn adapters(&mut self) -> Option<&mut dyn AdapterStore> {
        self.model.adapters()
    }

    fn adaptation(&mut self) -> Option<&mut dyn Adaptable> {
        self.model.adaptation()
    }
}
