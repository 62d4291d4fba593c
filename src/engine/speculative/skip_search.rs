//! Which sub-layers a SWIFT draft may leave out: how often a model without them agrees with the
//! text that the whole model wrote ("matchness", Xia et al. 2025, section 3.2).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::executor::{
    Executor, ExecutorError, SampleSpec, Sampled, StepInput, StepSequence,
};
use crate::engine::request::SamplingParams;
use crate::model::{BlockId, SkipSet};

/// Tokens that a candidate must predict (`context_window` of SWIFT).
pub const MATCHNESS_WINDOW: usize = 32;
/// A step is repeated, and the fastest counts: the first ones read weights that the caches don't have, at the clock rate that other
/// work has left. Short steps are repeated more often.
const FEWEST_STEPS: usize = 2;
const MOST_STEPS: usize = 12;
const TIMED: Duration = Duration::from_millis(40);

/// Blocks of a model's cache that no text lies in.
#[derive(Debug, Clone, Copy)]
pub struct Scratch {
    pub first_block: usize,
    /// In the pool of the layers with a sliding window, where they have one.
    pub first_local_block: Option<usize>,
    pub block_size: usize,
}

/// How long a step of `rows` rows without `skip` takes, each with its likeliest token; `None` when it fails.
pub fn time_rows(
    executor: &mut dyn Executor,
    rows: usize,
    skip: Option<&Arc<SkipSet>>,
    scratch: Scratch,
) -> Option<Duration> {
    let num_blocks = rows.div_ceil(scratch.block_size);
    let table = |first: usize| -> Vec<_> {
        let blocks = first..first + num_blocks;
        blocks.map(|block| block as BlockId).collect()
    };
    let first_slot = |first: usize| (first * scratch.block_size) as u32;
    let block_table = table(scratch.first_block);
    let local_table = scratch.first_local_block.map(table).unwrap_or_default();
    let vocab_size = executor.info().vocab_size as u32;
    let mut step = StepInput {
        skip: skip.cloned(),
        ..StepInput::default()
    };
    let tables = [&block_table[..], &local_table];
    step.push_sequence(tables, &[], StepSequence::plain(rows, rows));
    let params = greedy();
    for row in 0..rows as u32 {
        step.token_ids
            .push((u64::from(row) * 7919 % u64::from(vocab_size)) as u32);
        step.positions.push(row);
        let slot = first_slot(scratch.first_block) + row;
        step.slot_mapping.push(slot);
        let local_slot = scratch
            .first_local_block
            .map(|first| first_slot(first) + row);
        step.local_slot_mapping.extend(local_slot);
        let logits = step.read_row(row as usize);
        step.samples.push(SampleSpec::greedy(logits, &params));
    }
    let (mut least, mut total) = (Duration::MAX, Duration::ZERO);
    for repeat in 0..MOST_STEPS {
        if repeat >= FEWEST_STEPS && total >= TIMED {
            break;
        }
        let started = Instant::now();
        let ticket = executor.launch(step).ok()?;
        step = executor.finish(ticket, &[]).ok()?.input;
        let elapsed = started.elapsed();
        least = least.min(elapsed);
        total += elapsed;
    }
    Some(least)
}

fn greedy() -> Arc<SamplingParams> {
    Arc::new(SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    })
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
    /// The same in the pool of the layers with a sliding window, where they have one.
    pub local_table: Option<&'a [BlockId]>,
    pub block_size: usize,
}

/// The share of the window's tokens that the model without `skip` predicts, each from the text before it.
pub fn matchness(
    executor: &mut dyn Executor,
    window: &Window<'_>,
    skip: Option<&Arc<SkipSet>>,
) -> Result<f64, ExecutorError> {
    // The last token predicts nothing that is known.
    let end = window.token_ids.len() - 1;
    let mut step = StepInput {
        skip: skip.cloned(),
        ..StepInput::default()
    };
    let rows = StepSequence::plain(end - window.start, end);
    let tables = [window.block_table, window.local_table.unwrap_or_default()];
    step.push_sequence(tables, &[], rows);
    let params = greedy();
    for position in window.start..end {
        let slot = |table: &[BlockId]| {
            let block = table[position / window.block_size] as usize;
            (block * window.block_size + position % window.block_size) as u32
        };
        step.token_ids.push(window.token_ids[position]);
        step.positions.push(position as u32);
        step.slot_mapping.push(slot(window.block_table));
        step.local_slot_mapping.extend(window.local_table.map(slot));
        if position >= window.first_compared {
            let logits = step.read_row(position - window.start);
            step.samples.push(SampleSpec::greedy(logits, &params));
        }
    }
    let ticket = executor.launch(step)?;
    let output = executor.finish(ticket, &[])?;
    let expected = &window.token_ids[window.first_compared + 1..];
    let pairs = output.samples.iter().map(Sampled::token_id).zip(expected);
    let num_matches = pairs.filter(|(drawn, token_id)| *drawn == Some(**token_id));
    Ok(num_matches.count() as f64 / expected.len().max(1) as f64)
}
