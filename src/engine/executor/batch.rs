//! A step as the model takes it.

use super::StepInput;
use crate::engine::request::{AdapterId, Steering};
use crate::model::{BlockId, ForwardBatch, LocalRows, SequenceRows};

/// Memory that batches are made in. Empty between steps.
#[derive(Default)]
pub(super) struct BatchBuffers {
    sequences: Vec<SequenceRows<'static>>,
    local_sequences: Vec<SequenceRows<'static>>,
    adapters: Vec<Option<AdapterId>>,
}

impl BatchBuffers {
    /// Hands a step over to the model.
    pub fn with<R>(&mut self, step: &StepInput, run: impl FnOnce(&ForwardBatch<'_>) -> R) -> R {
        let mut sequences = recycle(std::mem::take(&mut self.sequences));
        let mut local_sequences = recycle(std::mem::take(&mut self.local_sequences));
        push_rows(&mut sequences, step, &step.block_tables);
        let has_local = !step.local_tables.is_empty();
        if has_local {
            push_rows(&mut local_sequences, step, &step.local_tables);
        }
        self.adapters.clear();
        let adapters = step.sequences.iter().map(|rows| rows.adapter);
        self.adapters.extend(adapters);
        let is_steered = step.sequences.iter().any(|rows| rows.steering.is_some());
        let steering: Vec<Option<&Steering>> = match is_steered {
            true => (step.sequences.iter())
                .map(|rows| rows.steering.as_deref())
                .collect(),
            false => Vec::new(),
        };
        let result = run(&ForwardBatch {
            token_ids: &step.token_ids,
            positions: &step.positions,
            slot_mapping: &step.slot_mapping,
            sequences: &sequences,
            adapters: &self.adapters,
            steering: &steering,
            logits_rows: &step.logits_rows,
            skip: step.skip.as_deref(),
            local: has_local.then_some(LocalRows {
                slot_mapping: &step.local_slot_mapping,
                sequences: &local_sequences,
            }),
        });
        self.sequences = recycle(sequences);
        self.local_sequences = recycle(local_sequences);
        result
    }
}

/// The rows of a step's sequences, whose block tables are parts of `tables`.
fn push_rows<'a>(rows: &mut Vec<SequenceRows<'a>>, step: &'a StepInput, tables: &'a [BlockId]) {
    rows.extend(step.sequences.iter().map(|sequence| SequenceRows {
        block_table: &tables[sequence.block_table.clone()],
        num_rows: sequence.num_rows,
        context_len: sequence.context_len,
        leaves: &step.leaf_positions[sequence.leaves.clone()],
    }));
}

/// An empty vector in the memory of another whose elements borrow from something else: collecting in place
/// keeps the allocation.
fn recycle<'b>(mut old: Vec<SequenceRows<'_>>) -> Vec<SequenceRows<'b>> {
    old.clear();
    old.into_iter()
        .map(|_| unreachable!("the vector is empty"))
        .collect()
}
