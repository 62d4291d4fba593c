//! The executor of a GPU: launches return at once, tokens are drawn where the logits are, and a
//! step's results come back in one copy.

mod graphs;
mod sampling;

use std::sync::Arc;

use ponder_kernels_cuda::{CudaError, Gpu};

use self::graphs::Graphs;
use self::sampling::DeviceSampler;
use super::batch::BatchBuffers;
use super::{Executor, ExecutorError, StepInput, StepOutput, Ticket};
use crate::engine::request::TokenMask;
use crate::model::ops::OpsError;
use crate::model::{
    Adaptable, AdapterStore, CausalLm, CudaOps, Decoder, ExpertLoad, ForwardError, ModelInfo,
};

/// Runs a [`Decoder`] on a GPU.
pub struct CudaExecutor {
    decoder: Decoder<CudaOps>,
    gpu: Gpu,
    sampler: DeviceSampler,
    graphs: Graphs,
    batch: BatchBuffers,
    launched: Option<StepInput>,
    num_launched: u64,
    /// Whether the launched step's tokens are being drawn already.
    is_sampled: bool,
}

impl From<CudaError> for ExecutorError {
    fn from(error: CudaError) -> Self {
        Self::Forward(error.into())
    }
}

impl From<CudaError> for ForwardError {
    fn from(error: CudaError) -> Self {
        OpsError::from(error).into()
    }
}

impl CudaExecutor {
    pub fn new(mut decoder: Decoder<CudaOps>) -> Self {
        decoder.ops_mut().counts_later = true;
        let gpu = decoder.ops_mut().gpu().clone();
        Self {
            decoder,
            sampler: DeviceSampler::default(),
            graphs: Graphs::default(),
            batch: BatchBuffers::default(),
            launched: None,
            num_launched: 0,
            is_sampled: false,
            gpu,
        }
    }

    /// Queues the step's operations.
    fn forward(&mut self, step: &StepInput) -> Result<(), ForwardError> {
        let (decoder, graphs, gpu) = (&mut self.decoder, &mut self.graphs, &self.gpu);
        self.batch.with(step, |batch| {
            let key = decoder.prepare_step(batch)?;
            let run = || decoder.run_step(batch);
            match graphs.run(gpu, key, step.skip.as_ref(), run)? {
                true => decoder.replayed(batch.logits_rows.len()),
                false => Ok(()),
            }
        })
    }

    fn sample(&mut self, step: &StepInput, masks: &[TokenMask]) -> Result<(), ExecutorError> {
        let logits = self.decoder.logits();
        self.sampler.launch(&self.gpu, logits, step, masks)?;
        self.is_sampled = true;
        Ok(())
    }
}

impl Executor for CudaExecutor {
    fn info(&self) -> &ModelInfo {
        self.decoder.info()
    }

    fn allocate(
        &mut self,
        num_blocks: usize,
        block_size: usize,
        max_num_rows: usize,
    ) -> Result<(), ExecutorError> {
        let decoder = &mut self.decoder;
        decoder.allocate_kv_cache(num_blocks, block_size, max_num_rows)?;
        Ok(decoder.reserve_step(max_num_rows)?)
    }

    fn step_bytes(&self, max_num_rows: usize) -> usize {
        self.decoder.step_bytes(max_num_rows)
    }

    fn launch(&mut self, step: StepInput) -> Result<Ticket, ExecutorError> {
        // There is one pool: steps have no local copies.
        if !step.block_copies.blocks.is_empty() {
            self.decoder.copy_blocks(&step.block_copies.blocks)?;
        }
        self.is_sampled = false;
        if !step.token_ids.is_empty() {
            self.forward(&step)?;
            // Masks are made while the step runs; without any its tokens can be drawn at once.
            if step.samples.iter().all(|spec| spec.mask.is_none()) {
                self.sample(&step, &[])?;
            }
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
        if !self.is_sampled && !input.token_ids.is_empty() {
            self.sample(&input, masks)?;
        }
        let output = self
            .sampler
            .finish(&self.gpu, &self.decoder, input, masks)?;
        self.decoder
            .ops_mut()
            .flush_counts()
            .map_err(ForwardError::from)?;
        Ok(output)
    }

    fn expert_load(&self) -> Option<Arc<ExpertLoad>> {
        self.decoder.expert_load()
    }

    fn skips_sub_layers(&mut self) -> bool {
        self.decoder.sub_layers().is_some()
    }

    fn adapters(&mut self) -> Option<&mut dyn AdapterStore> {
        self.decoder.adapters()
    }

    fn adaptation(&mut self) -> Option<&mut dyn Adaptable> {
        self.decoder.adaptation()
    }
}

#[cfg(test)]
mod tests;
