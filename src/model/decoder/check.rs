//! What a device would read or write out of bounds for is refused before: a scheduler's mistake ends the step, not the process.

use super::Decoder;
use crate::model::causal_lm::{BlockId, ForwardBatch, ForwardError, SequenceRows};
use crate::model::ops::{KvShape, Ops};
use crate::model::steering::Steering;

impl<O: Ops> Decoder<O> {
    /// Refuses a batch whose parts do not fit each other, the vocabulary, the tables of angles or the cache.
    pub(super) fn check(&self, batch: &ForwardBatch<'_>) -> Result<(), ForwardError> {
        let shape = self.kv_shape.ok_or(ForwardError::NoKvCache)?;
        let num_rows = batch.token_ids.len();
        let vocab_size = self.config.vocab_size;
        if let Some(token_id) = batch
            .token_ids
            .iter()
            .find(|id| **id as usize >= vocab_size)
        {
            return refuse(format!("no token {token_id}"));
        }
        if batch.positions.len() != num_rows || batch.slot_mapping.len() != num_rows {
            return refuse(format!(
                "{num_rows} rows without a position and a slot each"
            ));
        }
        let is_past = |position: &&u32| **position as usize >= self.num_positions;
        if let Some(position) = batch.positions.iter().find(is_past) {
            return refuse(format!("position {position} of {}", self.num_positions));
        }
        let num_slots = shape.num_blocks * shape.block_size;
        let is_outside = |slot: &&u32| **slot as usize >= num_slots;
        if let Some(slot) = batch.slot_mapping.iter().find(is_outside) {
            return refuse(format!("slot {slot} of {num_slots}"));
        }
        let of_sequences: usize = batch.sequences.iter().map(|rows| rows.num_rows).sum();
        if of_sequences != num_rows {
            return refuse(format!("{of_sequences} rows of sequences, not {num_rows}"));
        }
        let is_ascending = batch.logits_rows.is_sorted_by(|a, b| a < b);
        let last = batch.logits_rows.last();
        if !is_ascending || last.is_some_and(|row| *row as usize >= num_rows) {
            return refuse("logits of rows that are not there".to_owned());
        }
        if !batch
            .steering
            .iter()
            .flatten()
            .all(|steering| self.fits(steering))
        {
            return refuse("steering of another model".to_owned());
        }
        batch
            .sequences
            .iter()
            .try_for_each(|rows| check_sequence(rows, &shape))
    }

    /// Whether vectors have the widths of what they are added to.
    fn fits(&self, steering: &Steering) -> bool {
        let num_experts = self.config.moe.as_ref().map(|moe| moe.num_experts);
        let mut router = steering.router.iter().flatten();
        let hidden = steering.hidden.as_ref();
        router.all(|delta| num_experts.is_none_or(|count| delta.len() == count))
            && hidden.is_none_or(|offset| offset.len() == self.config.hidden_size)
    }

    /// Refuses copies of blocks that do not exist.
    pub(super) fn check_copies(&self, copies: &[(BlockId, BlockId)]) -> Result<(), ForwardError> {
        let shape = self.kv_shape.ok_or(ForwardError::NoKvCache)?;
        let is_there = |block: BlockId| (block as usize) < shape.num_blocks;
        match copies.iter().find(|(a, b)| !is_there(*a) || !is_there(*b)) {
            Some(copy) => refuse(format!("copy {copy:?} of {} blocks", shape.num_blocks)),
            None => Ok(()),
        }
    }
}

fn check_sequence(rows: &SequenceRows<'_>, shape: &KvShape) -> Result<(), ForwardError> {
    let (table, context_len) = (rows.block_table, rows.context_len);
    if context_len > table.len() * shape.block_size || rows.num_rows > context_len {
        let (num_rows, num_blocks) = (rows.num_rows, table.len());
        return refuse(format!(
            "{num_rows} rows of {context_len} tokens in {num_blocks} blocks"
        ));
    }
    let used = &table[..context_len.div_ceil(shape.block_size)];
    if let Some(block) = used
        .iter()
        .find(|block| **block as usize >= shape.num_blocks)
    {
        return refuse(format!("block {block} of {}", shape.num_blocks));
    }
    let num_others = context_len.checked_sub(rows.leaves.len());
    let is_beside = |at: &u32| num_others.is_some_and(|others| (*at as usize) < others);
    if rows.leaves.len() > rows.num_rows || !rows.leaves.iter().all(is_beside) {
        return refuse("leaves that stand beside no row".to_owned());
    }
    Ok(())
}

fn refuse<T>(message: String) -> Result<T, ForwardError> {
    Err(ForwardError::Internal(message))
}
