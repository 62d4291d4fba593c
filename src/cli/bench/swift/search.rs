//! Ways to choose what a draft leaves out.

use anyhow::Context;

use super::bayes::Process;
use super::lab::{BLOCK_SIZE, Lab, MOST_MLP_UNITS, NUM_PROBES, Text};
use crate::cli::progress::Counter;
use crate::model::{BlockId, Probe, SkipCosts, SkipSet, SubLayer};

impl Lab {
    /// SWIFT's search: random subsets, and every `interval` one proposed by a Gaussian process.
    pub fn search(
        &mut self,
        num_skipped: usize,
        num_candidates: usize,
        interval: usize,
        bar: &Counter,
    ) -> anyhow::Result<(SkipSet, f64)> {
        let all = SkipSet::candidates(self.num_layers);
        let mut random = Random(self.seed);
        let mut process = Process::default();
        let mut best = (SkipSet::default(), -1.0);
        for index in 1..=num_candidates.max(1) {
            let chosen = if index % interval == 0 {
                process.suggest(|| random.subset(all.len(), num_skipped))
            } else {
                random.subset(all.len(), num_skipped)
            };
            let pairs = all.iter().zip(&chosen).filter(|(_, is_chosen)| **is_chosen);
            let skip = SkipSet::new(self.num_layers, pairs.map(|(sub_layer, _)| *sub_layer));
            let score = self.agreement(&skip, true)?;
            process.add(chosen, score);
            if score > best.1 {
                best = (skip, score);
            }
            bar.advance();
        }
        Ok(best)
    }

    /// A set for every number of saved units, up to half of them all.
    pub fn knapsack(&mut self) -> anyhow::Result<Vec<Option<SkipSet>>> {
        let inner = SkipSet::candidates(self.num_layers);
        let (attention, mlp): (Vec<_>, Vec<_>) = inner
            .into_iter()
            .partition(|s| matches!(s, SubLayer::Attention(_)));
        let mut saves = |sub_layers: Vec<SubLayer>| -> anyhow::Result<f64> {
            let skip = SkipSet::new(self.num_layers, sub_layers);
            let saved = self.seconds(1, None)? - self.seconds(1, Some(&skip))?;
            Ok(saved.max(1e-9))
        };
        let num_inner = mlp.len();
        let units = (saves(mlp)? / saves(attention)?).round() as usize;
        let units = units.clamp(1, MOST_MLP_UNITS);
        let costs = SkipCosts {
            attention: 1,
            mlp: units,
            most: num_inner * (1 + units) / 2,
        };
        let chosen: Vec<&Text> = self.texts.iter().step_by(2).take(NUM_PROBES).collect();
        let probes: Vec<Probe<'_>> = chosen
            .iter()
            .map(|text| {
                let position = (text.token_ids.len() - 1) / BLOCK_SIZE * BLOCK_SIZE;
                Probe {
                    token_id: text.token_ids[position],
                    position,
                    block_table: &text.block_table[..position / BLOCK_SIZE],
                }
            })
            .collect();
        let first = self.scratch.first_block as BlockId;
        let sub_layers = self.executor.model().sub_layers();
        let sub_layers = sub_layers.context("this model's sub-layers cannot be left out")?;
        Ok(sub_layers.skip_sets(&probes, costs, first)?)
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }

    /// `count` of `len`, as flags.
    fn subset(&mut self, len: usize, count: usize) -> Vec<bool> {
        let mut order: Vec<usize> = (0..len).collect();
        for i in 0..count.min(len) {
            let other = i + self.below(len - i);
            order.swap(i, other);
        }
        let mut flags = vec![false; len];
        for index in &order[..count.min(len)] {
            flags[*index] = true;
        }
        flags
    }
}
