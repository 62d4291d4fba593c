//! The executor of a model that hands its logits to the host: the CPU's.

use std::sync::Arc;

use super::{
    Alternatives, Executor, ExecutorError, PoolSpec, Pooled, SampleSpec, Sampled, ScoreSpec,
    StepInput, StepOutput, Ticket,
};
use crate::engine::logprobs::token_logprobs;
use crate::engine::request::{AdapterId, Steering, TokenMask};
use crate::engine::sampler::{SampleError, Sampler, confidence};
use crate::model::{
    Adaptable, AdapterStore, CausalLm, ExpertLoad, ForwardBatch, ForwardError, ModelInfo,
    SequenceRows,
};

/// Runs a [`CausalLm`] and samples on the calling thread.
pub struct ModelExecutor {
    model: Box<dyn CausalLm>,
    sampler: Sampler,
    /// Of the step that was launched last.
    logits: Vec<f32>,
    launched: Option<StepInput>,
    num_launched: u64,
    /// Empty between steps; keep their memory.
    sequences: Vec<SequenceRows<'static>>,
    adapters: Vec<Option<AdapterId>>,
}

impl ModelExecutor {
    pub fn new(model: Box<dyn CausalLm>) -> Self {
        Self {
            model,
            sampler: Sampler::default(),
            logits: Vec::new(),
            launched: None,
            num_launched: 0,
            sequences: Vec::new(),
            adapters: Vec::new(),
        }
    }

    pub fn model(&mut self) -> &mut dyn CausalLm {
        &mut *self.model
    }

    fn forward(&mut self, step: &StepInput) -> Result<(), ForwardError> {
        let mut sequences = recycle(std::mem::take(&mut self.sequences));
        self.adapters.clear();
        for rows in &step.sequences {
            self.adapters.push(rows.adapter);
            sequences.push(SequenceRows {
                block_table: &step.block_tables[rows.block_table.clone()],
                num_rows: rows.num_rows,
                context_len: rows.context_len,
                leaves: &step.leaf_positions[rows.leaves.clone()],
            });
        }
        let is_steered = step.sequences.iter().any(|rows| rows.steering.is_some());
        let steering: Vec<Option<&Steering>> = match is_steered {
            true => (step.sequences.iter())
                .map(|rows| rows.steering.as_deref())
                .collect(),
            false => Vec::new(),
        };
        let batch = ForwardBatch {
            token_ids: &step.token_ids,
            positions: &step.positions,
            slot_mapping: &step.slot_mapping,
            sequences: &sequences,
            adapters: &self.adapters,
            steering: &steering,
            logits_rows: &step.logits_rows,
            skip: step.skip.as_deref(),
        };
        let result = self.model.forward(&batch, &mut self.logits);
        self.sequences = recycle(sequences);
        result
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
        let mask = spec.mask.map(|index| &masks[index as usize]);
        let token_id = match self.sampler.sample(spec, mask, row) {
            Ok(token_id) => token_id,
            Err(SampleError::NotFinite) => return Sampled::NotFinite,
            Err(SampleError::NothingAllowed) => return Sampled::NothingAllowed,
        };
        let num_top = spec.num_logprobs;
        let alternatives = spec.num_alternatives.map(|count| Alternatives {
            probability: confidence(row, token_id),
            others: (ponder_kernels::logits::top(row, 1 + count).into_iter())
                .filter(|other| *other != token_id)
                .map(|other| (other, confidence(row, other)))
                .collect(),
        });
        Sampled::Token {
            token_id,
            logprobs: num_top.and_then(|num_top| token_logprobs(row, token_id, num_top)),
            hidden_state: (spec.hidden_state)
                .then(|| self.model.hidden_state(spec.row as usize))
                .flatten(),
            alternatives,
        }
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
        if !step.block_copies.is_empty() {
            self.model.copy_blocks(&step.block_copies)?;
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

    fn adapters(&mut self) -> Option<&mut dyn AdapterStore> {
        self.model.adapters()
    }

    fn adaptation(&mut self) -> Option<&mut dyn Adaptable> {
        self.model.adaptation()
    }
}

/// An empty vector in the memory of another whose elements borrow from something else: collecting in place
/// keeps the allocation.
fn recycle<'b>(mut old: Vec<SequenceRows<'_>>) -> Vec<SequenceRows<'b>> {
    old.clear();
    old.into_iter()
        .map(|_| unreachable!("the vector is empty"))
        .collect()
}
