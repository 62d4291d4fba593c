//! What a device would read or write out of bounds for is refused before: a scheduler's mistake
//! ends the step, not the process.

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
        check_slots(batch.slot_mapping, &shape)?;
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
        let mut sequences = batch.sequences.iter();
        sequences.try_for_each(|rows| check_sequence(rows, &shape, usize::MAX))?;
        self.check_local(batch)
    }

    /// The same of the places of rows in the pool of the layers with a window, where they have
    /// one.
    fn check_local(&self, batch: &ForwardBatch<'_>) -> Result<(), ForwardError> {
        let Some(shape) = &self.local_pool.shape else {
            return match batch.local {
                None => Ok(()),
                Some(_) => refuse("places in a pool that is not there".to_owned()),
            };
        };
        let (Some(local), Some(window)) = (batch.local, self.config.sliding_window) else {
            return refuse("rows without a place behind their window".to_owned());
        };
        let is_alike = |(a, b): (&SequenceRows<'_>, &SequenceRows<'_>)| {
            (a.num_rows, a.context_len, a.leaves) == (b.num_rows, b.context_len, b.leaves)
        };
        let mut pairs = local.sequences.iter().zip(batch.sequences);
        if local.slot_mapping.len() != batch.slot_mapping.len()
            || local.sequences.len() != batch.sequences.len()
            || !pairs.all(is_alike)
        {
            return refuse("other rows in the pool of the layers with a window".to_owned());
        }
        check_slots(local.slot_mapping, shape)?;
        let mut sequences = local.sequences.iter();
        sequences.try_for_each(|rows| check_sequence(rows, shape, window))
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
    pub(super) fn check_copies(
        copies: &[(BlockId, BlockId)],
        shape: &KvShape,
    ) -> Result<(), ForwardError> {
        let is_there = |block: BlockId| (block as usize) < shape.num_blocks;
        match copies.iter().find(|(a, b)| !is_there(*a) || !is_there(*b)) {
            Some(copy) => refuse(format!("copy {copy:?} of {} blocks", shape.num_blocks)),
            None => Ok(()),
        }
    }
}

fn check_slots(slot_mapping: &[u32], shape: &KvShape) -> Result<(), ForwardError> {
    let num_slots = shape.num_blocks * shape.block_size;
    let is_outside = |slot: &&u32| **slot as usize >= num_slots;
    match slot_mapping.iter().find(is_outside) {
        Some(slot) => refuse(format!("slot {slot} of {num_slots}")),
        None => Ok(()),
    }
}

/// Each row sees `window` tokens: only the blocks that some row sees must exist.
fn check_sequence(
    rows: &SequenceRows<'_>,
    shape: &KvShape,
    window: usize,
) -> Result<(), ForwardError> {
    let (table, context_len) = (rows.block_table, rows.context_len);
    if context_len > table.len() * shape.block_size || rows.num_rows > context_len {
        let (num_rows, num_blocks) = (rows.num_rows, table.len());
        return refuse(format!(
            "{num_rows} rows of {context_len} tokens in {num_blocks} blocks"
        ));
    }
    let leaves = rows.leaves.iter().map(|at| *at as usize);
    let first_row = leaves.fold(context_len - rows.num_rows, usize::min);
    let first_seen = (first_row + 1).saturating_sub(window) / shape.block_size;
    let used = table[..context_len.div_ceil(shape.block_size)].get(first_seen..);
    let used = used.unwrap_or_default();
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
