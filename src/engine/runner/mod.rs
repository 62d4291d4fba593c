//! An executor and the steps that it is given.

mod masks;
mod measure;
mod plan;

use std::sync::Arc;
use std::time::Duration;

pub(super) use measure::num_scratch_blocks;
pub(super) use plan::PlannedRows;

use super::block_tables::BlockCopies;
use super::executor::{
    Executor, ExecutorError, SampleSpec, Sampled, StepInput, StepOutput, StepSequence, Ticket,
};
use super::request::EngineConfig;
use super::sequence::{SeqId, Sequence};
use super::sequences::Sequences;
use super::speculative::skip_search::{Scratch, Window, matchness, time_rows};
use crate::model::{
    AdaptationPhase, AdapterId, BlockId, ForwardBatch, ForwardError, LocalRows, LoraAdapter,
    SequenceRows, SkipSet,
};
use masks::Masks;

/// An executor and the buffers of a step.
pub(super) struct Runner {
    executor: Box<dyn Executor>,
    block_size: usize,
    /// The blocks past those of sequences are for measurements.
    first_scratch_block: usize,
    /// The same in the pool of the layers with a sliding window, where the executor has one.
    first_local_scratch_block: Option<usize>,
    /// There are positions for so many tokens.
    max_model_len: usize,
    /// Empty between steps; keeps its memory.
    input: StepInput,
    masks: Masks,
    planned: Vec<PlannedRows>,
}

/// Positions of a running sequence that a draft computes.
#[derive(Debug, Clone, Copy)]
pub(super) struct DraftRows {
    pub seq: SeqId,
    pub start: usize,
    pub end: usize,
}

/// How a draft's rows are run.
#[derive(Debug, Clone, Copy)]
pub(super) struct DraftBy<'a> {
    /// Sub-layers left out.
    pub skip: Option<&'a Arc<SkipSet>>,
    /// By a model that adapters and steering are not made for.
    pub is_other_model: bool,
    /// Likeliest tokens reported beside each.
    pub num_alternatives: usize,
}

impl Runner {
    pub(super) fn new(executor: Box<dyn Executor>, config: &EngineConfig) -> Self {
        Self {
            masks: Masks::new(executor.info().vocab_size),
            executor,
            block_size: config.block_size,
            first_scratch_block: config.num_blocks,
            first_local_scratch_block: config.local.map(|local| local.num_blocks),
            max_model_len: config.max_model_len,
            input: StepInput::default(),
            planned: Vec::new(),
        }
    }

    /// Begins the step that was planned.
    pub(super) fn launch(&mut self) -> Result<Ticket, ExecutorError> {
        self.executor.launch(std::mem::take(&mut self.input))
    }

    /// Waits for the masks of the step that was planned. Until then its sequences lack their
    /// constraints.
    pub(super) fn gather_masks(&mut self, sequences: &mut Sequences) {
        self.masks.gather(sequences);
    }

    /// Waits for a step.
    pub(super) fn finish(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        let mut output = self.executor.finish(ticket, self.masks.as_slice())?;
        self.masks.check(&output.input.samples, &mut output.samples);
        Ok(output)
    }

    /// Takes back the memory of a step that is over.
    pub(super) fn recycle(&mut self, mut output: StepOutput, planned: Vec<PlannedRows>) {
        output.input.clear();
        self.input = output.input;
        self.planned = planned;
    }

    /// Runs what was planned and waits for it.
    fn run(&mut self) -> Result<StepOutput, ExecutorError> {
        let ticket = self.launch()?;
        self.finish(ticket)
    }

    /// The rows of each sequence of the step that was planned; [`Self::recycle`] gives them back.
    pub(super) fn take_planned(&mut self) -> Vec<PlannedRows> {
        std::mem::take(&mut self.planned)
    }

    /// Computes rows of a draft. Sequences whose last token is among them get a token drawn as the target would draw it.
    pub(super) fn run_draft(
        &mut self,
        rows: &[DraftRows],
        sequences: &mut Sequences,
        by: DraftBy<'_>,
    ) -> Result<Vec<Sampled>, ExecutorError> {
        self.clear();
        self.input.skip = by.skip.cloned();
        for rows in rows {
            let sequence = &mut sequences[rows.seq];
            self.push_draft_rows(*rows, sequence, by.is_other_model);
            if rows.end == sequence.token_ids.len() {
                let row = self.input.read_row(self.input.num_rows() - 1);
                let mask = self.masks.plan(sequence, &[], &[]);
                let spec = SampleSpec {
                    num_logprobs: None,
                    hidden_state: false,
                    num_alternatives: Some(by.num_alternatives),
                    ..sequence.sample_spec(row, &[]).masked(mask)
                };
                self.input.samples.push(spec);
            }
        }
        let launched = self.launch();
        self.gather_masks(sequences);
        let mut output = self.finish(launched?)?;
        let samples = std::mem::take(&mut output.samples);
        self.recycle(output, Vec::new());
        Ok(samples)
    }

    /// Lets a draft model compute rows that nothing is drawn from.
    pub(super) fn follow(
        &mut self,
        rows: &[DraftRows],
        sequences: &Sequences,
    ) -> Result<(), ExecutorError> {
        self.clear();
        for rows in rows {
            self.push_draft_rows(*rows, &sequences[rows.seq], true);
        }
        let output = self.run()?;
        self.recycle(output, Vec::new());
        Ok(())
    }

    fn push_draft_rows(&mut self, rows: DraftRows, sequence: &Sequence, is_other_model: bool) {
        let is_own = !is_other_model;
        let step = StepSequence {
            adapter: sequence.adapter.filter(|_| is_own),
            steering: sequence.active_steering().filter(|_| is_own).cloned(),
            ..StepSequence::plain(rows.end - rows.start, rows.end)
        };
        self.push_sequence(sequence, &[], step);
        self.push_tokens(sequence, rows.start, rows.end);
    }

    /// One gradient step over a sequence's tokens from `start` up to its newest.
    pub(super) fn adapt(
        &mut self,
        sequence: &Sequence,
        start: usize,
        phase: &mut AdaptationPhase,
    ) -> Result<(), ExecutorError> {
        self.clear();
        let end = sequence.token_ids.len() - 1;
        self.push_tokens(sequence, start, end);
        let rows = SequenceRows {
            block_table: &sequence.tables.blocks,
            num_rows: end - start,
            context_len: end,
            leaves: &[],
        };
        let local_rows = SequenceRows {
            block_table: &sequence.tables.local,
            ..rows
        };
        let batch = ForwardBatch {
            token_ids: &self.input.token_ids,
            positions: &self.input.positions,
            slot_mapping: &self.input.slot_mapping,
            sequences: &[rows],
            adapters: &[sequence.adapter],
            steering: &[],
            logits_rows: &[],
            skip: None,
            local: (self.first_local_scratch_block).map(|_| LocalRows {
                slot_mapping: &self.input.local_slot_mapping,
                sequences: std::slice::from_ref(&local_rows),
            }),
        };
        let targets = &sequence.token_ids[start + 1..];
        let adaptation = self.executor.adaptation();
        let adaptation = adaptation.ok_or(ExecutorError::Lacks("adaptation"))?;
        adaptation.adapt(&batch, targets, phase)?;
        self.clear();
        Ok(())
    }

    /// Copies blocks between two steps.
    pub(super) fn copy(&mut self, copies: &BlockCopies) -> Result<(), ExecutorError> {
        if copies.is_empty() {
            return Ok(());
        }
        self.clear();
        self.input.block_copies.extend(copies);
        if self.first_local_scratch_block.is_none() {
            // A draft model keeps all its layers in one pool.
            self.input.block_copies.local.clear();
        }
        let output = self.run()?;
        self.recycle(output, Vec::new());
        Ok(())
    }

    fn clear(&mut self) {
        self.input.clear();
        self.masks.clear();
        self.planned.clear();
    }

    fn push_sequence(&mut self, sequence: &Sequence, leaves: &[u32], step: StepSequence) {
        let local: &[BlockId] = match self.first_local_scratch_block {
            Some(_) => &sequence.tables.local,
            None => &[],
        };
        let tables = [&sequence.tables.blocks, local];
        self.input.push_sequence(tables, leaves, step);
    }

    fn push_tokens(&mut self, sequence: &Sequence, start: usize, end: usize) {
        let block_size = self.block_size;
        let slot = |table: &[BlockId], index: usize| {
            table[index / block_size] as usize * block_size + index % block_size
        };
        let has_local = self.first_local_scratch_block.is_some();
        let tables = &sequence.tables;
        for index in start..end {
            let (token_id, position) = sequence.token_at(index);
            self.input.token_ids.push(token_id);
            self.input.positions.push(position as u32);
            let input = &mut self.input;
            input.slot_mapping.push(slot(&tables.blocks, index) as u32);
            if has_local {
                input
                    .local_slot_mapping
                    .push(slot(&tables.local, index) as u32);
            }
        }
    }

    pub(super) fn num_layers(&self) -> usize {
        self.executor.info().num_layers
    }

    pub(super) fn skips_sub_layers(&mut self) -> bool {
        self.executor.skips_sub_layers()
    }

    pub(super) fn load_adapter(
        &mut self,
        id: AdapterId,
        adapter: &LoraAdapter,
    ) -> Result<(), ForwardError> {
        match self.executor.adapters() {
            Some(adapters) => adapters.load(id, adapter),
            None => Err(ForwardError::Lacks("adapters")),
        }
    }

    pub(super) fn unload_adapter(&mut self, id: AdapterId) {
        if let Some(adapters) = self.executor.adapters() {
            adapters.unload(id);
        }
    }
}
