//! A step as the model takes it.

use super::StepInput;
use crate::engine::request::{AdapterId, Steering};
use crate::model::{ForwardBatch, SequenceRows};

/// Memory that batches are made in. Empty between steps.
#[derive(Default)]
pub(super) struct BatchBuffers {
    sequences: Vec<SequenceRows<'static>>,
    adapters: Vec<Option<AdapterId>>,
}

impl BatchBuffers {
    /// Hands a step over to the model.
    pub fn with<R>(&mut self, step: &StepInput, run: impl FnOnce(&ForwardBatch<'_>) -> R) -> R {
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
        let result = run(&ForwardBatch {
            token_ids: &step.token_ids,
            positions: &step.positions,
            slot_mapping: &step.slot_mapping,
            sequences: &sequences,
            adapters: &self.adapters,
            steering: &steering,
            logits_rows: &step.logits_rows,
            skip: step.skip.as_deref(),
        });
        self.sequences = recycle(sequences);
        result
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
