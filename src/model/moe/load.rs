//! How many tokens each expert has had.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that only grow, shared with who reads them.
#[derive(Debug, Default)]
pub struct ExpertLoad {
    /// Layers with experts, ascending.
    layers: Vec<usize>,
    num_experts: usize,
    /// `[layers, num_experts]`
    counts: Vec<AtomicU64>,
}

impl ExpertLoad {
    pub(in crate::model) fn new(layers: Vec<usize>, num_experts: usize) -> Self {
        let count = layers.len() * num_experts;
        Self {
            layers,
            num_experts,
            counts: (0..count).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Counts the rows that each expert of one layer got.
    pub(in crate::model) fn add(&self, layer: usize, num_rows: impl Fn(usize) -> usize) {
        let Ok(place) = self.layers.binary_search(&layer) else {
            return;
        };
        let counts = &self.counts[place * self.num_experts..][..self.num_experts];
        for (expert, count) in counts.iter().enumerate() {
            let rows = num_rows(expert) as u64;
            if rows > 0 {
                count.fetch_add(rows, Ordering::Relaxed);
            }
        }
    }

    /// Layers up to the last one with experts.
    pub(in crate::model) fn num_layers(&self) -> usize {
        self.layers.last().map_or(0, |last| last + 1)
    }

    /// `(layer, expert, tokens)` of every expert.
    pub fn counts(&self) -> impl Iterator<Item = (usize, usize, u64)> + '_ {
        let counts = self.counts.iter().enumerate();
        counts.map(|(index, count)| {
            let (layer, expert) = (index / self.num_experts, index % self.num_experts);
            (self.layers[layer], expert, count.load(Ordering::Relaxed))
        })
    }
}
