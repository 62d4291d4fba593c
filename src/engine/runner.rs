//! Turns a scheduled batch into the model's flat arrays and runs it.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::batch::{ScheduledBatch, ScheduledRows};
use super::request::EngineConfig;
use super::sequence::Sequence;
use crate::model::{AdapterId, CausalLm, ForwardBatch, ForwardError, LoraAdapter, SequenceRows};

/// Tokens that have a place in the KV cache beside the blocks of sequences.
const SCRATCH_TOKENS: usize = 64;
/// Repetitions of which the fastest counts: the first reads weights from memory that may not be there yet.
const TIMED_STEPS: usize = 2;

/// The model and the buffers of a step.
pub(super) struct Runner {
    model: Box<dyn CausalLm>,
    block_size: usize,
    /// The blocks past those of sequences are for measurements.
    first_scratch_block: usize,
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
        if !batch.block_copies.is_empty() {
            self.model.copy_blocks(&batch.block_copies)?;
        }
        self.token_ids.clear();
        self.positions.clear();
        self.slot_mapping.clear();
        self.logits_rows.clear();
        self.logits_of.clear();
        self.adapters.clear();
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
            });
        }
        let forward = ForwardBatch {
            token_ids: &self.token_ids,
            positions: &self.positions,
            slot_mapping: &self.slot_mapping,
            sequences: &sequences,
            adapters: &self.adapters,
            logits_rows: &self.logits_rows,
            skip: None,
        };
        let result = self.model.forward(&forward, &mut self.logits);
        self.sequences = recycle(sequences);
        result
    }

    fn push_rows(&mut self, rows: ScheduledRows, sequence: &Sequence) -> LogitsOf {
        let start = sequence.num_computed_tokens;
        let end = start + rows.num_rows;
        let first_row = self.token_ids.len();
        for position in start..end {
            let block = sequence.block_table[position / self.block_size] as usize;
            let slot = block * self.block_size + position % self.block_size;
            self.token_ids.push(sequence.token_at(position));
            self.positions.push(position as u32);
            self.slot_mapping.push(slot as u32);
        }
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

    /// How long a step of `rows` decoded tokens takes, at most [`SCRATCH_TOKENS`]; `None` when it fails.
    pub(super) fn time_rows(&mut self, rows: usize) -> Option<Duration> {
        let num_blocks = rows.div_ceil(self.block_size);
        let block_table: Vec<_> = (0..num_blocks)
            .map(|block| (self.first_scratch_block + block) as u32)
            .collect();
        let numbers: Vec<u32> = (0..rows as u32).collect();
        let first_slot = (self.first_scratch_block * self.block_size) as u32;
        let slot_mapping: Vec<u32> = numbers.iter().map(|n| first_slot + n).collect();
        let sequence = SequenceRows {
            block_table: &block_table,
            num_rows: rows,
            context_len: rows,
        };
        let vocab_size = self.model.info().vocab_size as u32;
        let token_ids: Vec<u32> = numbers.iter().map(|n| n * 7919 % vocab_size).collect();
        let batch = ForwardBatch {
            token_ids: &token_ids,
            positions: &numbers,
            slot_mapping: &slot_mapping,
            sequences: &[sequence],
            adapters: &[None],
            logits_rows: &numbers,
            skip: None,
        };
        let mut times = (0..TIMED_STEPS).map(|_| {
            let started = Instant::now();
            self.model.forward(&batch, &mut self.logits).ok()?;
            Some(started.elapsed())
        });
        times.try_fold(Duration::MAX, |least, time| Some(least.min(time?)))
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
