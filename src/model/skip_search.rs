//! Skip sets by dynamic programming over the sub-layers: CLaSp (Chen et al. 2025) with attention
//! and MLP apart and weighted by what they cost, as KnapSpec (2026) does. No text has to be
//! generated for it: the sets are those whose hidden states stay closest to the whole model's.

use super::causal_lm::{BlockId, ForwardBatch, ForwardError, SequenceRows};
use super::decoder::Decoder;
use super::ops::{Ops, RowSet};
use super::profile::Stopwatch;
use super::skip::{SkipSet, SubLayer};

/// States whose hidden rows are less alike than this (cosine) lead nowhere (KnapSpec's bound).
const LEAST_SIMILARITY: f32 = 0.5;

/// A token that hidden states are compared at.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    pub token_id: u32,
    /// The first of a block, so that a state needs no more than a block of its own.
    pub position: usize,
    /// Blocks of all positions before it.
    pub block_table: &'a [BlockId],
}

/// What a skipped sub-layer saves, in whole units, and how many units a set may save.
#[derive(Debug, Clone, Copy)]
pub struct SkipCosts {
    pub attention: usize,
    pub mlp: usize,
    pub most: usize,
}

/// The best way found to save some units.
#[derive(Clone)]
struct State {
    skipped: Vec<SubLayer>,
    /// `[probes, hidden_size]`
    rows: Vec<f32>,
}

impl<O: Ops> Decoder<O> {
    /// The best skip set for every number of saved units, from 0 on; `None` where there is none. Blocks from `first_scratch` on,
    /// `probes.len() * (costs.most + 1)` of them, are written to.
    pub(super) fn search_skip_sets(
        &mut self,
        probes: &[Probe<'_>],
        costs: SkipCosts,
        first_scratch: BlockId,
    ) -> Result<Vec<Option<SkipSet>>, ForwardError> {
        self.with_probes(probes, 1, first_scratch, |model, batch| model.embed(batch))?;
        let mut rows = Vec::new();
        self.ops.read(&self.scratch.x, &mut rows)?;
        let mut states: Vec<Option<State>> = vec![None; costs.most + 1];
        states[0] = Some(State {
            skipped: Vec::new(),
            rows,
        });
        let num_layers = self.layers.len();
        let all =
            (0..num_layers).flat_map(|layer| [SubLayer::Attention(layer), SubLayer::Mlp(layer)]);
        for sub_layer in all {
            let kept = self.apply(sub_layer, &states, probes, first_scratch)?;
            let cost = match sub_layer {
                SubLayer::Attention(_) => costs.attention,
                SubLayer::Mlp(_) => costs.mlp,
            };
            let is_skippable = !SkipSet::new(num_layers, [sub_layer]).is_empty();
            states = advance(
                states,
                kept,
                is_skippable.then_some((sub_layer, cost)),
                probes.len(),
            );
        }
        let set = |state: State| SkipSet::new(num_layers, state.skipped);
        Ok(states.into_iter().map(|state| state.map(set)).collect())
    }

    /// The states after a sub-layer.
    fn apply(
        &mut self,
        sub_layer: SubLayer,
        states: &[Option<State>],
        probes: &[Probe<'_>],
        first_scratch: BlockId,
    ) -> Result<Vec<Option<State>>, ForwardError> {
        let present: Vec<&State> = states.iter().flatten().collect();
        let all: Vec<f32> = present
            .iter()
            .flat_map(|state| &state.rows)
            .copied()
            .collect();
        let hidden = self.config.hidden_size;
        self.ops.write(&all, hidden, &mut self.scratch.x)?;
        self.with_probes(probes, present.len(), first_scratch, |model, batch| {
            model.run_sub_layer(sub_layer, batch, RowSet::All, &mut Stopwatch::start(None))
        })?;
        let mut all = Vec::new();
        self.ops.read(&self.scratch.x, &mut all)?;
        let mut rows = all.chunks_exact(probes.len() * hidden);
        let after = |state: &State| {
            rows.next().map(|rows| State {
                skipped: state.skipped.clone(),
                rows: rows.to_vec(),
            })
        };
        let mut after = present
            .into_iter()
            .map(after)
            .collect::<Vec<_>>()
            .into_iter();
        Ok(states
            .iter()
            .map(|state| state.as_ref().and_then(|_| after.next().flatten()))
            .collect())
    }

    /// Prepares a step over the probes' rows of so many states, and runs it.
    fn with_probes(
        &mut self,
        probes: &[Probe<'_>],
        num_states: usize,
        first_scratch: BlockId,
        run: impl FnOnce(&mut Self, &ForwardBatch<'_>) -> Result<(), ForwardError>,
    ) -> Result<(), ForwardError> {
        let num_rows = num_states * probes.len();
        let block_size = self.kv_shape.ok_or(ForwardError::NoKvCache)?.block_size;
        // A row's table: what is before its probe, and a block of its own.
        let tables: Vec<Vec<BlockId>> = (0..num_rows)
            .map(|row| {
                let own = first_scratch + row as BlockId;
                [probes[row % probes.len()].block_table, &[own]].concat()
            })
            .collect();
        let of_row = |row: usize| &probes[row % probes.len()];
        let token_ids: Vec<u32> = (0..num_rows).map(|row| of_row(row).token_id).collect();
        let positions: Vec<u32> = (0..num_rows)
            .map(|row| of_row(row).position as u32)
            .collect();
        let own_slot = |row: usize| (first_scratch as usize + row) * block_size;
        let slot_mapping: Vec<u32> = (0..num_rows).map(|row| own_slot(row) as u32).collect();
        let sequences: Vec<SequenceRows<'_>> = tables
            .iter()
            .zip(&positions)
            .map(|(block_table, position)| SequenceRows {
                block_table,
                num_rows: 1,
                context_len: *position as usize + 1,
                leaves: &[],
            })
            .collect();
        let batch = ForwardBatch {
            token_ids: &token_ids,
            positions: &positions,
            slot_mapping: &slot_mapping,
            sequences: &sequences,
            adapters: &vec![None; num_rows],
            steering: &[],
            logits_rows: &[],
            skip: None,
            local: None,
        };
        self.prepare(&batch)?;
        run(self, &batch)
    }
}

/// Of every number of saved units the better of two: the sub-layer computed, or left out.
fn advance(
    before: Vec<Option<State>>,
    kept: Vec<Option<State>>,
    skippable: Option<(SubLayer, usize)>,
    num_probes: usize,
) -> Vec<Option<State>> {
    let Some((sub_layer, cost)) = skippable else {
        return kept;
    };
    let Some(whole) = kept[0].as_ref().map(|state| state.rows.clone()) else {
        return kept;
    };
    let score = |state: &State| similarity(&state.rows, &whole, num_probes);
    let best = kept.into_iter().enumerate().map(|(saved, kept)| {
        let skipped = saved
            .checked_sub(cost)
            .and_then(|from| before[from].clone());
        let skipped = skipped.map(|mut state| {
            state.skipped.push(sub_layer);
            state
        });
        let candidates = [kept, skipped].into_iter().flatten();
        let scored = candidates.map(|state| (score(&state), state));
        let best = scored.max_by(|a, b| a.0.total_cmp(&b.0));
        best.filter(|(score, _)| *score >= LEAST_SIMILARITY)
            .map(|(_, state)| state)
    });
    best.collect()
}

/// The mean cosine between the probes' rows.
fn similarity(a: &[f32], b: &[f32], num_probes: usize) -> f32 {
    let width = a.len() / num_probes.max(1);
    let cosine = |(a, b): (&[f32], &[f32])| {
        let dot = |x: &[f32], y: &[f32]| -> f64 {
            let pairs = x.iter().zip(y);
            pairs.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
        };
        (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-30)) as f32
    };
    let rows = a.chunks_exact(width).zip(b.chunks_exact(width));
    rows.map(cosine).sum::<f32>() / num_probes as f32
}
