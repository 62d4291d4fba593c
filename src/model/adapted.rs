//! Adapters in the forward pass: what they add to the products of the rows that use them.

use std::collections::HashMap;

use ponder_kernels::DType;

use super::causal_lm::{AdapterId, ForwardBatch, ForwardError};
use super::lora::{LoraAdapter, LowRank, Target};
use super::ops::{AdaptedInput, AdapterRows, LowRankFactors, Ops, OpsError, Step};

/// One by [`Target`].
type LayerFactors<O> = [Option<LowRankFactors<O>>; Target::ALL.len()];

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
    pub fn load(
        &mut self,
        ops: &O,
        id: AdapterId,
        adapter: &LoraAdapter,
    ) -> Result<(), ForwardError> {
        let mut layers = Vec::with_capacity(adapter.layers.len());
        for parts in &adapter.layers {
            let mut layer = LayerFactors::default();
            for (target, part) in parts {
                layer[*target as usize] = Some(pack(ops, part)?);
            }
            layers.push(layer);
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

    /// Whether a row of the step uses an adapter.
    pub fn are_used(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Adds what the step's adapters change in products of the same input of a layer.
    pub fn add<const N: usize>(
        &self,
        ops: &mut O,
        step: Step<'_, O>,
        layer: usize,
        input: &AdaptedInput<'_, O>,
        mut products: [(Target, &mut O::Rows); N],
    ) -> Result<(), OpsError> {
        for (index, group) in self.groups.iter().enumerate() {
            let Some(layers) = self.loaded.get(&group.adapter) else {
                continue;
            };
            let of_layer = &layers[layer];
            let products = products
                .each_mut()
                .map(|(target, out)| (of_layer[*target as usize].as_ref(), &mut **out));
            if products.iter().any(|(factors, _)| factors.is_some()) {
                ops.add_low_rank(step, index, input, products)?;
            }
        }
        Ok(())
    }
}

fn pack<O: Ops>(ops: &O, part: &LowRank) -> Result<LowRankFactors<O>, OpsError> {
    let matrix = |values: &[f32], shape| {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        ops.matrix(DType::F32, &bytes.collect::<Vec<u8>>(), shape)
    };
    Ok(LowRankFactors {
        down: matrix(&part.a, [part.rank, part.in_features])?,
        up: matrix(&part.b, [part.out_features, part.rank])?,
    })
}
