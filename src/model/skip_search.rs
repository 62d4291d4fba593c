//! Skip sets by dynamic programming over the sub-layers: CLaSp (Chen et al. 2025) with attention and MLP apart and weighted by
//! what they cost, as KnapSpec (2026) does. No text has to be generated for it: the sets are those whose hidden states
//! stay closest to the whole model's.

use ponder_kernels::AttentionPlan;

use super::causal_lm::{BlockId, ForwardBatch, ForwardError, SequenceRows};
use super::decoder::Decoder;
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

impl Decoder {
    /// The best skip set for every number of saved units, from 0 on; `None` where there is none. Blocks from `first_scratch` on,
    /// `probes.len() * (costs.most + 1)` of them, are written to.
    pub(super) fn search_skip_sets(
        &mut self,
        probes: &[Probe<'_>],
        costs: SkipCosts,
        first_scratch: BlockId,
    ) -> Result<Vec<Option<SkipSet>>, ForwardError> {
        let token_ids: Vec<u32> = probes.iter().map(|probe| probe.token_id).collect();
        self.embed(&token_ids)?;
        let mut states: Vec<Option<State>> = vec![None; costs.most + 1];
        states[0] = Some(State {
            skipped: Vec::new(),
            rows: self.scratch.x.clone(),
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
        self.scratch.x.clear();
        for state in &present {
            self.scratch.x.extend_from_slice(&state.rows);
        }
        let num_rows = present.len() * probes.len();
        let cache = self.kv_cache.as_ref().ok_or(ForwardError::NoKvCache)?;
        let block_size = cache.block_size();
        // A row's table: what is before its probe, and a block of its own.
        let tables: Vec<Vec<BlockId>> = (0..num_rows)
            .map(|row| {
                let own = first_scratch + row as BlockId;
                [probes[row % probes.len()].block_table, &[own]].concat()
            })
            .collect();
        let position = |row: usize| probes[row % probes.len()].position as u32;
        let positions: Vec<u32> = (0..num_rows).map(position).collect();
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
        let adapters = vec![None; num_rows];
        let batch = ForwardBatch {
            // Only attention's shapes are read of it.
            token_ids: &positions,
            positions: &positions,
            slot_mapping: &slot_mapping,
            sequences: &sequences,
            adapters: &adapters,
            steering: &[],
            logits_rows: &[],
            skip: None,
        };
        self.adapters.plan(&batch)?;
        let num_kv_heads = self.config.num_kv_heads;
        let plan: &mut AttentionPlan = &mut self.scratch.attention;
        plan.plan(&sequences, num_kv_heads, self.pool.num_threads());
        let mut stopwatch = Stopwatch::start(None);
        self.run_sub_layer(sub_layer, &batch, None, &mut stopwatch)?;
        let width = probes.len() * self.config.hidden_size;
        let mut rows = self.scratch.x.chunks_exact(width);
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
