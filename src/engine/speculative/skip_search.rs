//! Which sub-layers a SWIFT draft may leave out: how often a model without them agrees with the text that the whole model
//! wrote ("matchness", Xia et al. 2025, section 3.2).

use std::time::{Duration, Instant};

use ponder_kernels::logits;

use crate::model::{BlockId, CausalLm, ForwardBatch, ForwardError, SequenceRows, SkipSet};

/// A step is repeated, and the fastest counts: the first ones read weights that the caches don't have, at the clock rate that other
/// work has left. Short steps are repeated more often.
const FEWEST_STEPS: usize = 2;
const MOST_STEPS: usize = 12;
const TIMED: Duration = Duration::from_millis(40);

/// Blocks of a model's cache that no text lies in.
#[derive(Debug, Clone, Copy)]
pub struct Scratch {
    pub first_block: usize,
    pub block_size: usize,
}

/// How long a step of `rows` rows without `skip` takes, all of them with logits; `None` when it fails.
pub fn time_rows(
    model: &mut dyn CausalLm,
    rows: usize,
    skip: Option<&SkipSet>,
    scratch: Scratch,
    buffer: &mut Vec<f32>,
) -> Option<Duration> {
    let num_blocks = rows.div_ceil(scratch.block_size);
    let block_table: Vec<_> = (scratch.first_block..scratch.first_block + num_blocks)
        .map(|block| block as BlockId)
        .collect();
    let numbers: Vec<u32> = (0..rows as u32).collect();
    let first_slot = (scratch.first_block * scratch.block_size) as u32;
    let slot_mapping: Vec<u32> = numbers.iter().map(|n| first_slot + n).collect();
    let vocab_size = model.info().vocab_size as u32;
    let token_ids: Vec<u32> = numbers.iter().map(|n| n * 7919 % vocab_size).collect();
    let batch = ForwardBatch {
        token_ids: &token_ids,
        positions: &numbers,
        slot_mapping: &slot_mapping,
        sequences: &[SequenceRows {
            block_table: &block_table,
            num_rows: rows,
            context_len: rows,
            leaves: &[],
        }],
        adapters: &[None],
        steering: &[],
        logits_rows: &numbers,
        skip,
    };
    let (mut least, mut total) = (Duration::MAX, Duration::ZERO);
    for repeat in 0..MOST_STEPS {
        if repeat >= FEWEST_STEPS && total >= TIMED {
            break;
        }
        let started = Instant::now();
        model.forward(&batch, buffer).ok()?;
        let elapsed = started.elapsed();
        least = least.min(elapsed);
        total += elapsed;
    }
    Some(least)
}

/// The end of a text whose KV is in the model's cache.
#[derive(Debug, Clone, Copy)]
pub struct Window<'a> {
    pub token_ids: &'a [u32],
    /// The first position that is computed again, a multiple of the block size: what is before it is read from the cache.
    pub start: usize,
    /// The first position whose next token is compared.
    pub first_compared: usize,
    /// Blocks of all positions. Those from `start` on are written to: they must not be the text's own.
    pub block_table: &'a [BlockId],
    pub block_size: usize,
}

/// The share of the window's tokens that the model without `skip` predicts, each from the text before it.
pub fn matchness(
    model: &mut dyn CausalLm,
    window: &Window<'_>,
    skip: Option<&SkipSet>,
    buffer: &mut Vec<f32>,
) -> Result<f64, ForwardError> {
    // The last token predicts nothing that is known.
    let end = window.token_ids.len() - 1;
    let positions: Vec<u32> = (window.start..end)
        .map(|position| position as u32)
        .collect();
    let slot = |position: &u32| {
        let position = *position as usize;
        let block = window.block_table[position / window.block_size] as usize;
        (block * window.block_size + position % window.block_size) as u32
    };
    let slot_mapping: Vec<u32> = positions.iter().map(slot).collect();
    let first_row = window.first_compared - window.start;
    let logits_rows: Vec<u32> = (first_row as u32..positions.len() as u32).collect();
    let batch = ForwardBatch {
        token_ids: &window.token_ids[window.start..end],
        positions: &positions,
        slot_mapping: &slot_mapping,
        sequences: &[SequenceRows {
            block_table: window.block_table,
            num_rows: positions.len(),
            context_len: end,
            leaves: &[],
        }],
        adapters: &[None],
        steering: &[],
        logits_rows: &logits_rows,
        skip,
    };
    model.forward(&batch, buffer)?;
    let expected = &window.token_ids[window.first_compared + 1..];
    let rows = buffer.chunks_exact(model.info().vocab_size);
    let is_match = |(row, token_id): &(&[f32], &u32)| {
        logits::argmax(row).is_some_and(|(best, _)| best == **token_id as usize)
    };
    let num_matches = rows.zip(expected).filter(is_match).count();
    Ok(num_matches as f64 / expected.len().max(1) as f64)
}
