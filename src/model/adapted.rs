//! Adapters in the forward pass: what they add to the products of the rows that use them.

use std::collections::HashMap;

use super::causal_lm::{AdapterId, ForwardBatch, ForwardError};
use super::layers::{FeedForward, Layer, Projections};
use super::lora::{LoraAdapter, Target};
use super::ops::{AdaptedInput, AdapterRows, Additions, Linear, Ops, Step, WeightMatrix};

/// The products of a layer that read the same input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Site {
    Qkv,
    Output,
    GateUp,
    Down,
}

impl Site {
    const ALL: [Self; 4] = [Self::Qkv, Self::Output, Self::GateUp, Self::Down];

    fn targets(self) -> &'static [Target] {
        match self {
            Self::Qkv => &[Target::Q, Target::K, Target::V],
            Self::Output => &[Target::Output],
            Self::GateUp => &[Target::Gate, Target::Up],
            Self::Down => &[Target::Down],
        }
    }

    /// Whether a matrix of the site reads floats; false where a layer has another kind of product
    /// there, which no adapter changes.
    fn reads_floats<O: Ops>(self, layer: &Layer<O>) -> bool {
        let any = |linears: &[&Linear<O>]| linears.iter().any(|l| l.weights.reads_floats());
        match (self, &layer.attention.projections, &layer.feed_forward) {
            (Self::Qkv, Projections::Plain { q, k, v }, _) => any(&[q, k, v]),
            (Self::Output, _, _) => any(&[&layer.attention.output]),
            (Self::GateUp, _, FeedForward::Mlp(mlp)) => any(&[&mlp.gate, &mlp.up]),
            (Self::Down, _, FeedForward::Mlp(mlp)) => any(&[&mlp.down]),
            _ => false,
        }
    }
}

/// One by [`Site`]; `None` where the adapter changes nothing.
type LayerFactors<O> = [Option<<O as super::ops::Device>::LowRank>; Site::ALL.len()];

/// The adapters that are loaded, and which rows of the step use them.
pub(super) struct Adapters<O: Ops> {
    loaded: HashMap<AdapterId, Vec<LayerFactors<O>>>,
    pub groups: Vec<AdapterRows>,
}

impl<O: Ops> Default for Adapters<O> {
    fn default() -> Self {
        Self {
            loaded: HashMap::new(),
            groups: Vec::new(),
        }
    }
}

impl<O: Ops> Adapters<O> {
    /// Packs an adapter of a model of these layers.
    pub fn load(
        &mut self,
        ops: &O,
        id: AdapterId,
        adapter: &LoraAdapter,
        of_model: &[Layer<O>],
    ) -> Result<(), ForwardError> {
        let mut layers = Vec::with_capacity(adapter.layers.len());
        for (parts, layer) in adapter.layers.iter().zip(of_model) {
            let mut factors = LayerFactors::<O>::default();
            for site in Site::ALL {
                let parts = site.targets().iter().map(|target| parts.get(target));
                let parts: Vec<_> = parts.collect();
                if parts.iter().any(Option::is_some) {
                    let packed = ops.low_rank(&parts, site.reads_floats(layer))?;
                    factors[site as usize] = Some(packed);
                }
            }
            layers.push(factors);
        }
        self.loaded.insert(id, layers);
        Ok(())
    }

    pub fn unload(&mut self, id: AdapterId) {
        self.loaded.remove(&id);
    }

    /// Finds which rows of a step use which adapter.
    pub fn plan(&mut self, batch: &ForwardBatch<'_>) -> Result<(), ForwardError> {
        self.groups.clear();
        let mut first = 0;
        for (sequence, adapter) in batch.sequences.iter().zip(batch.adapters) {
            let rows = first..first + sequence.num_rows;
            first = rows.end;
            let Some(adapter) = *adapter else { continue };
            if !self.loaded.contains_key(&adapter) {
                let message = format!("adapter {} is not loaded", adapter.0);
                return Err(ForwardError::Internal(message));
            }
            let known = self.groups.iter_mut().find(|g| g.adapter == adapter);
            match known {
                Some(group) => group.rows.extend(rows),
                None => self.groups.push(AdapterRows {
                    adapter,
                    rows: rows.collect(),
                    kept: Vec::new(),
                }),
            }
        }
        for group in &mut self.groups {
            let logits_rows = batch.logits_rows.iter().enumerate();
            let is_own = |row: &u32| group.rows.binary_search(&(*row as usize)).is_ok();
            let kept = logits_rows.filter(|(_, row)| is_own(row));
            group.kept = kept.map(|(index, _)| index).collect();
        }
        Ok(())
    }

    /// What the step's adapters add to the products of a site; `None` when that is nothing. An
    /// adapted down product reads rows that the adapted gate and up leave behind, so then these are
    /// [`Some`] as well.
    pub fn additions<'a>(
        &'a self,
        step: Step<'a, O>,
        layer: usize,
        site: Site,
        input: AdaptedInput<'a, O>,
    ) -> Option<Additions<'a, O>> {
        if self.groups.is_empty() {
            return None;
        }
        let of_group = |group: &AdapterRows, site: Site| {
            let layers = self.loaded.get(&group.adapter)?;
            layers.get(layer)?[site as usize].as_ref()
        };
        let of_site = self.groups.iter().map(|group| of_group(group, site));
        let factors: Vec<_> = of_site.collect();
        let mut groups = self.groups.iter();
        let is_read = site == Site::GateUp && groups.any(|g| of_group(g, Site::Down).is_some());
        let is_changed = factors.iter().any(Option::is_some);
        (is_changed || is_read).then_some(Additions {
            step,
            input,
            factors,
        })
    }
}
