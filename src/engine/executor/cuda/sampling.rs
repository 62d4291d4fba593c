//! A step's samples, scores and pools from logits that stay on the device.

use ponder_kernels_cuda::sample::{SampleBuffers, SampleRow, SampledRow, ScoreRow, SlotSpec};
use ponder_kernels_cuda::{CudaError, Gpu, Rows};

use crate::engine::executor::draw::draw;
use crate::engine::executor::{
    Alternatives, ExecutorError, PoolSpec, Pooled, SampleSpec, Sampled, StepInput, StepOutput,
};
use crate::engine::logprobs::token_logprobs;
use crate::engine::request::{TokenLogprobs, TokenMask};
use crate::engine::sampler::Sampler;
use crate::model::{CausalLm, CudaOps, Decoder};

/// Tokens and scores that are decided in one go; a step with more takes several.
const MAX_SLOTS: usize = 256;

/// Draws tokens on the device. What the device leaves to the host is drawn there, from the row's logits.
#[derive(Default)]
pub(super) struct DeviceSampler {
    buffers: Option<SampleBuffers>,
    host: Sampler,
    /// Whether the first slots of the step were launched.
    is_launched: bool,
    /// Logits of one row.
    row: Vec<f32>,
}

fn sample_row(spec: &SampleSpec) -> SampleRow<'_> {
    let params = &*spec.params;
    let ends: [&[u32]; 2] = match spec.masks_ends {
        true => [&params.eos_token_ids, &params.stop_token_ids],
        false => [&[], &[]],
    };
    SampleRow {
        row: spec.row,
        temperature: params.temperature,
        top_k: params.top_k,
        top_p: params.top_p,
        min_p: params.min_p,
        uniform: spec.uniform,
        logit_bias: &params.logit_bias,
        counts: &spec.counts,
        repetition_penalty: params.repetition_penalty,
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        ends,
        mask: spec.mask,
        num_logprobs: spec.num_logprobs,
        num_alternatives: spec.num_alternatives,
    }
}

/// Samples, then scores.
fn slots(step: &StepInput) -> Vec<SlotSpec<'_>> {
    let samples = step
        .samples
        .iter()
        .map(|spec| SlotSpec::Sample(sample_row(spec)));
    let scores = step.scores.iter().map(|spec| {
        SlotSpec::Score(ScoreRow {
            row: spec.row,
            token_id: spec.token_id,
            num_top: spec.num_top,
        })
    });
    samples.chain(scores).collect()
}

fn logprobs_of(logprobs: ponder_kernels_cuda::sample::Logprobs) -> TokenLogprobs {
    TokenLogprobs {
        token_id: logprobs.token_id,
        logprob: logprobs.logprob,
        top: logprobs.top,
    }
}

impl DeviceSampler {
    fn buffers(&mut self, gpu: &Gpu, vocab_size: usize) -> Result<&mut SampleBuffers, CudaError> {
        if self.buffers.is_none() {
            self.buffers = Some(SampleBuffers::new(gpu, MAX_SLOTS, vocab_size)?);
        }
        Ok(self.buffers.as_mut().expect("it was made above"))
    }

    /// Queues the step's draws, as many as are decided in one go.
    pub fn launch(
        &mut self,
        gpu: &Gpu,
        logits: &Rows,
        step: &StepInput,
        masks: &[TokenMask],
    ) -> Result<(), CudaError> {
        self.is_launched = false;
        let slots = slots(step);
        if slots.is_empty() {
            return Ok(());
        }
        let masks: Vec<&[u32]> = masks.iter().map(TokenMask::words).collect();
        let first = &slots[..slots.len().min(MAX_SLOTS)];
        let buffers = self.buffers(gpu, logits.width())?;
        buffers.sample(gpu, logits, first, &masks)?;
        self.is_launched = true;
        Ok(())
    }

    /// What came of every slot.
    fn read(
        &mut self,
        gpu: &Gpu,
        logits: &Rows,
        step: &StepInput,
        masks: &[TokenMask],
    ) -> Result<Vec<SampledRow>, CudaError> {
        let slots = slots(step);
        let masks: Vec<&[u32]> = masks.iter().map(TokenMask::words).collect();
        let mut is_launched = self.is_launched;
        let mut all = Vec::with_capacity(slots.len());
        for chunk in slots.chunks(MAX_SLOTS) {
            let buffers = self.buffers(gpu, logits.width())?;
            if !std::mem::take(&mut is_launched) {
                buffers.sample(gpu, logits, chunk, &masks)?;
            }
            all.extend(buffers.read(gpu)?);
        }
        Ok(all)
    }

    /// Waits for the step, and gives what came of it.
    pub fn finish(
        &mut self,
        gpu: &Gpu,
        decoder: &Decoder<CudaOps>,
        input: StepInput,
        masks: &[TokenMask],
    ) -> Result<StepOutput, ExecutorError> {
        let logits = decoder.logits();
        let mut rows = self.read(gpu, logits, &input, masks)?.into_iter();
        let mut samples = Vec::with_capacity(input.samples.len());
        for spec in &input.samples {
            let sampled = rows.next().unwrap_or(SampledRow::Host);
            let is_next = spec.after.is_none_or(|(before, token_id)| {
                Sampled::token_id(&samples[before as usize]) == Some(token_id)
            });
            samples.push(match is_next {
                true => self.sampled(gpu, decoder, spec, masks, sampled)?,
                false => Sampled::Skipped,
            });
        }
        let mut scores = Vec::with_capacity(input.scores.len());
        for spec in &input.scores {
            scores.push(match rows.next() {
                Some(SampledRow::Score(logprobs)) => logprobs.map(logprobs_of),
                _ => {
                    self.read_row(gpu, logits, spec.row)?;
                    token_logprobs(&self.row, spec.token_id, spec.num_top)
                }
            });
        }
        let mut pools = Vec::with_capacity(input.pools.len());
        for spec in &input.pools {
            pools.push(self.pool(gpu, decoder, spec)?);
        }
        Ok(StepOutput {
            samples,
            scores,
            pools,
            input,
        })
    }

    fn read_row(&mut self, gpu: &Gpu, logits: &Rows, row: u32) -> Result<(), CudaError> {
        let width = logits.width();
        self.row.resize(width, 0.0);
        match logits.buffer() {
            Some(buffer) => gpu.read(buffer, row as usize * width, &mut self.row),
            None => Ok(()),
        }
    }

    fn sampled(
        &mut self,
        gpu: &Gpu,
        decoder: &Decoder<CudaOps>,
        spec: &SampleSpec,
        masks: &[TokenMask],
        row: SampledRow,
    ) -> Result<Sampled, CudaError> {
        Ok(match row {
            SampledRow::Token {
                token_id,
                logprobs,
                alternatives,
            } => Sampled::Token {
                token_id,
                logprobs: logprobs.map(logprobs_of),
                hidden_state: (spec.hidden_state)
                    .then(|| decoder.hidden_state(spec.row as usize))
                    .flatten(),
                alternatives: alternatives.map(|alternatives| Alternatives {
                    probability: alternatives.probability,
                    others: alternatives.others,
                }),
            },
            SampledRow::NotFinite => Sampled::NotFinite,
            SampledRow::NothingAllowed => Sampled::NothingAllowed,
            SampledRow::Host | SampledRow::Score(_) => {
                self.read_row(gpu, decoder.logits(), spec.row)?;
                let hidden_state = |row| decoder.hidden_state(row);
                draw(&mut self.host, spec, masks, &self.row, hidden_state)
            }
        })
    }

    fn pool(
        &mut self,
        gpu: &Gpu,
        decoder: &Decoder<CudaOps>,
        spec: &PoolSpec,
    ) -> Result<Pooled, CudaError> {
        let ids = &spec.params.token_ids;
        if !ids.is_empty() {
            self.read_row(gpu, decoder.logits(), spec.row)?;
        }
        Ok(Pooled {
            logits: ids.iter().map(|id| self.row[*id as usize]).collect(),
            hidden_state: (spec.params.hidden_state)
                .then(|| decoder.hidden_state(spec.row as usize))
                .flatten(),
        })
    }
}
