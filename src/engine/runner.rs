//! Turns a scheduled batch into the model's flat arrays and runs it.

use std::ops::Range;
use std::time::Duration;

use super::batch::{ScheduledBatch, ScheduledRows};
use super::request::EngineConfig;
use super::sequence::Sequence;
use super::speculative::skip_search::{Scratch, Window, matchness, time_rows};
use crate::model::{
    AdaptationPhase, AdapterId, BlockId, CausalLm, ForwardBatch, ForwardError, LoraAdapter,
    SequenceRows, SkipSet, Steering,
};

/// Tokens that have a place in the KV cache beside the blocks of sequences.
const SCRATCH_TOKENS: usize = 64;

/// The model and the buffers of a step.
pub(super) struct Runner {
    model: Box<dyn CausalLm>,
    block_size: usize,
    /// The blocks past those of sequences are for measurements.
    first_scratch_block: usize,
    /// There are positions for so many tokens.
    max_model_len: usize,
    token_ids: Vec<u32>,
    positions: Vec<u32>,
    slot_mapping: Vec<u32>,
    logits_rows: Vec<u32>,
    logits: Vec<f32>,
    logits_of: Vec<LogitsOf>,
    /// Empty between steps; keeps its memory.
    sequences: Vec<SequenceRows<'static>>,
    adapters: Vec<Option<AdapterId>>,
}

/// Positions of a running sequence that a draft computes.
#[derive(Debug, Clone, Copy)]
pub(super) struct DraftRows {
    pub running_index: usize,
    pub start: usize,
    pub end: usize,
}

/// Where the logits of one scheduled sequence lie.
#[derive(Debug, Clone)]
pub(super) struct LogitsOf {
    /// Index of the first of them in the step's logits.
    pub first: usize,
    /// Positions in the sequence whose next token they predict.
    pub positions: Range<usize>,
}

impl Runner {
    pub(super) fn new(model: Box<dyn CausalLm>, config: &EngineConfig) -> Self {
        Self {
            model,
            block_size: config.block_size,
            first_scratch_block: config.num_blocks,
            max_model_len: config.max_model_len,
            token_ids: Vec::new(),
            positions: Vec::new(),
            slot_mapping: Vec::new(),
            logits_rows: Vec::new(),
            logits: Vec::new(),
            logits_of: Vec::new(),
            sequences: Vec::new(),
            adapters: Vec::new(),
        }
    }

    /// Runs the batch; [`Self::logits_of`] then tells where each scheduled sequence's logits are.
    pub(super) fn run(
        &mut self,
        batch: &ScheduledBatch,
        running: &[Sequence],
    ) -> Result<(), ForwardError> {
        self.clear();
        let mut sequences = recycle(std::mem::take(&mut self.sequences));
        for rows in &batch.rows {
            let sequence = &running[rows.running_index];
            let logits_of = self.push_rows(*rows, sequence);
            self.logits_of.push(logits_of);
            self.adapters.push(sequence.adapter);
            sequences.push(SequenceRows {
                block_table: &sequence.block_table,
                num_rows: rows.num_rows,
                context_len: sequence.num_computed_tokens + rows.num_rows,
                leaves: &sequence.draft.leaf_positions,
            });
        }
        let steering = steering(running, batch.rows.iter().map(|rows| rows.running_index));
        self.forward(sequences, &steering, None)
    }

    fn clear(&mut self) {
        self.token_ids.clear();
        self.positions.clear();
        self.slot_mapping.clear();
        self.logits_rows.clear();
        self.logits_of.clear();
        self.adapters.clear();
    }

    fn forward(
        &mut self,
        sequences: Vec<SequenceRows<'_>>,
        steering: &[Option<&Steering>],
        skip: Option<&SkipSet>,
    ) -> Result<(), ForwardError> {
        let forward = ForwardBatch {
            token_ids: &self.token_ids,
            positions: &self.positions,
            slot_mapping: &self.slot_mapping,
            sequences: &sequences,
            adapters: &self.adapters,
            steering,
            logits_rows: &self.logits_rows,
            skip,
        };
        let result = self.model.forward(&forward, &mut self.logits);
        self.sequences = recycle(sequences);
        result
    }

    /// Computes rows of a draft; [`Self::logits`] then has one row for each sequence, that of its last token.
    pub(super) fn run_draft(
        &mut self,
        rows: &[DraftRows],
        running: &[Sequence],
        skip: Option<&SkipSet>,
        is_other_model: bool,
    ) -> Result<(), ForwardError> {
        self.clear();
        let mut sequences = recycle(std::mem::take(&mut self.sequences));
        for rows in rows {
            let sequence = &running[rows.running_index];
            self.push_tokens(sequence, rows.start, rows.end);
            self.logits_rows.push(self.token_ids.len() as u32 - 1);
            // Adapters are made for the target.
            self.adapters
                .push(sequence.adapter.filter(|_| !is_other_model));
            sequences.push(SequenceRows {
                block_table: &sequence.block_table,
                num_rows: rows.end - rows.start,
                context_len: rows.end,
                leaves: &[],
            });
        }
        let rows = rows.iter().map(|rows| rows.running_index);
        let own = rows.filter(|_| !is_other_model);
        self.forward(sequences, &steering(running, own), skip)
    }

    /// One gradient step over a sequence's tokens from `start` up to its newest.
    pub(super) fn adapt(
        &mut self,
        sequence: &Sequence,
        start: usize,
        phase: &mut AdaptationPhase,
    ) -> Result<(), ForwardError> {
        self.clear();
        let end = sequence.token_ids.len() - 1;
        self.push_tokens(sequence, start, end);
        let rows = SequenceRows {
            block_table: &sequence.block_table,
            num_rows: end - start,
            context_len: end,
            leaves: &[],
        };
        let batch = ForwardBatch {
            token_ids: &self.token_ids,
            positions: &self.positions,
            slot_mapping: &self.slot_mapping,
            sequences: &[rows],
            adapters: &[sequence.adapter],
            steering: &[],
            logits_rows: &[],
            skip: None,
        };
        let targets = &sequence.token_ids[start + 1..];
        self.model.adapt(&batch, targets, phase)
    }

    /// Copies blocks between two steps.
    pub(super) fn copy(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), ForwardError> {
        self.model.copy_blocks(copies)
    }

    /// Copies the blocks that the batch's rows will be written to.
    pub(super) fn copy_blocks(&mut self, batch: &ScheduledBatch) -> Result<(), ForwardError> {
        if batch.block_copies.is_empty() {
            return Ok(());
        }
        self.model.copy_blocks(&batch.block_copies)
    }

    fn push_tokens(&mut self, sequence: &Sequence, start: usize, end: usize) {
        for index in start..end {
            let block = sequence.block_table[index / self.block_size] as usize;
            let slot = block * self.block_size + index % self.block_size;
            let (token_id, position) = sequence.token_at(index);
            self.token_ids.push(token_id);
            self.positions.push(position as u32);
            self.slot_mapping.push(slot as u32);
        }
    }

    fn push_rows(&mut self, rows: ScheduledRows, sequence: &Sequence) -> LogitsOf {
        let start = sequence.num_computed_tokens;
        let end = start + rows.num_rows;
        let first_row = self.token_ids.len();
        self.push_tokens(sequence, start, end);
        let num_tokens = sequence.token_ids.len();
        let wanted = if sequence.wants_prompt_logprobs() {
            start..end
        } else if end >= num_tokens && sequence.pooling.is_none() {
            // The newest token's, and those of the draft after it.
            num_tokens - 1..end
        } else {
            end..end
        };
        let first = self.logits_rows.len();
        let pending = sequence.pending_positions().iter();
        let pooled = pending.take_while(|position| **position < end);
        self.logits_rows
            .extend(pooled.map(|position| (first_row + position - start) as u32));
        let rows = wanted
            .clone()
            .map(|position| (first_row + position - start) as u32);
        self.logits_rows.extend(rows);
        LogitsOf {
            first,
            positions: wanted,
        }
    }

    pub(super) fn num_layers(&self) -> usize {
        self.model.info().num_layers
    }

    /// How many of the newest `window` tokens of a sequence the model without `skip` predicts. The sequence has that many.
    pub(super) fn matchness(
        &mut self,
        sequence: &Sequence,
        window: usize,
        skip: &SkipSet,
    ) -> Result<f64, ForwardError> {
        let end = sequence.num_computed_tokens + 1;
        let first_compared = end - 1 - window;
        let start = first_compared / self.block_size * self.block_size;
        let num_own = (end - start).div_ceil(self.block_size);
        let own = self.first_scratch_block..self.first_scratch_block + num_own;
        let kept = sequence.block_table[..start / self.block_size].iter();
        let block_table: Vec<_> = kept.copied().chain(own.map(|b| b as BlockId)).collect();
        let window = Window {
            token_ids: &sequence.token_ids[..end],
            start,
            first_compared,
            block_table: &block_table,
            block_size: self.block_size,
        };
        matchness(&mut *self.model, &window, Some(skip), &mut self.logits)
    }

    /// How long a step of `rows` decoded tokens takes, at most [`SCRATCH_TOKENS`]; `None` when it fails or there is no room.
    pub(super) fn time_rows(&mut self, rows: usize, skip: Option<&SkipSet>) -> Option<Duration> {
        if rows > self.max_model_len {
            return None;
        }
        let scratch = Scratch {
            first_block: self.first_scratch_block,
            block_size: self.block_size,
        };
        time_rows(&mut *self.model, rows, skip, scratch, &mut self.logits)
    }

    pub(super) fn load_adapter(
        &mut self,
        id: AdapterId,
        adapter: &LoraAdapter,
    ) -> Result<(), ForwardError> {
        self.model.load_adapter(id, adapter)
    }

    pub(super) fn unload_adapter(&mut self, id: AdapterId) {
        self.model.unload_adapter(id);
    }

    /// The final hidden state behind row `index` of the last step's logits.
    pub(super) fn hidden_state(&self, index: usize) -> Option<Vec<f32>> {
        self.model.hidden_state(index)
    }

    /// The logits of scheduled sequence `index` of the last step.
    pub(super) fn logits_of(&self, index: usize) -> LogitsOf {
        self.logits_of[index].clone()
    }

    /// Row `index` of the last step's logits.
    pub(super) fn logits(&self, index: usize) -> &[f32] {
        let vocab_size = self.model.info().vocab_size;
        &self.logits[index * vocab_size..(index + 1) * vocab_size]
    }
}

/// What steers the sequences at some places in the running list; empty when nothing steers any.
fn steering(
    running: &[Sequence],
    indices: impl Iterator<Item = usize> + Clone,
) -> Vec<Option<&Steering>> {
    let of = |index: usize| running[index].active_steering();
    if indices.clone().all(|index| of(index).is_none()) {
        return Vec::new();
    }
    indices.map(of).collect()
}

/// Blocks of the KV cache beside those of sequences.
pub(super) fn num_scratch_blocks(block_size: usize) -> usize {
    SCRATCH_TOKENS.div_ceil(block_size)
}

/// An empty vector in the memory of another whose elements borrow from something else: collecting in place
/// keeps the allocation.
fn recycle<'b>(mut old: Vec<SequenceRows<'_>>) -> Vec<SequenceRows<'b>> {
    old.clear();
    old.into_iter()
        .map(|_| unreachable!("the vector is empty"))
        .collect()
}
