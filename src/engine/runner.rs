//! Turns a scheduled batch into the model's flat arrays and runs it.

use std::ops::Range;

use super::batch::{ScheduledBatch, ScheduledRows};
use super::sequence::Sequence;
use crate::model::{CausalLm, ForwardBatch, ForwardError, SequenceRows};

/// The model and the buffers of a step.
pub(super) struct Runner {
    model: Box<dyn CausalLm>,
    block_size: usize,
    token_ids: Vec<u32>,
    positions: Vec<u32>,
    slot_mapping: Vec<u32>,
    logits_rows: Vec<u32>,
    logits: Vec<f32>,
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
    pub(super) fn new(model: Box<dyn CausalLm>, block_size: usize) -> Self {
        Self {
            model,
            block_size,
            token_ids: Vec::new(),
            positions: Vec::new(),
            slot_mapping: Vec::new(),
            logits_rows: Vec::new(),
            logits: Vec::new(),
        }
    }

    /// Runs the batch; one entry a scheduled sequence comes back, in order.
    pub(super) fn run(
        &mut self,
        batch: &ScheduledBatch,
        running: &[Sequence],
    ) -> Result<Vec<LogitsOf>, ForwardError> {
        if !batch.block_copies.is_empty() {
            self.model.copy_blocks(&batch.block_copies)?;
        }
        self.token_ids.clear();
        self.positions.clear();
        self.slot_mapping.clear();
        self.logits_rows.clear();
        let mut sequences = Vec::with_capacity(batch.rows.len());
        let mut logits_of = Vec::with_capacity(batch.rows.len());
        for rows in &batch.rows {
            let sequence = &running[rows.running_index];
            logits_of.push(self.push_rows(*rows, sequence));
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
            logits_rows: &self.logits_rows,
        };
        self.model.forward(&forward, &mut self.logits)?;
        Ok(logits_of)
    }

    fn push_rows(&mut self, rows: ScheduledRows, sequence: &Sequence) -> LogitsOf {
        let start = sequence.num_computed_tokens;
        let end = start + rows.num_rows;
        let first_row = self.token_ids.len();
        for position in start..end {
            let block = sequence.block_table[position / self.block_size] as usize;
            let slot = block * self.block_size + position % self.block_size;
            self.token_ids.push(sequence.token_ids[position]);
            self.positions.push(position as u32);
            self.slot_mapping.push(slot as u32);
        }
        let is_complete = end == sequence.token_ids.len();
        let wanted = if sequence.wants_prompt_logprobs() {
            start..end
        } else if is_complete {
            end - 1..end
        } else {
            end..end
        };
        let first = self.logits_rows.len();
        let rows = wanted
            .clone()
            .map(|position| (first_row + position - start) as u32);
        self.logits_rows.extend(rows);
        LogitsOf {
            first,
            positions: wanted,
        }
    }

    /// Row `index` of the last step's logits.
    pub(super) fn logits(&self, index: usize) -> &[f32] {
        let vocab_size = self.model.info().vocab_size;
        &self.logits[index * vocab_size..(index + 1) * vocab_size]
    }
}
