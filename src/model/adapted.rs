//! Adapters in the forward pass: what they add to the products of the rows that use them.

use std::collections::HashMap;

use ponder_kernels::{Activations, DType, PackedMatrix, Product, ThreadPool, matmul, matmul_many};

use super::causal_lm::{AdapterId, ForwardBatch, ForwardError};
use super::lora::{LoraAdapter, LowRank, Target};

/// The two factors of one matrix's change, in kernel layout.
struct Factors {
    /// `[rank, in_features]`
    down: PackedMatrix,
    /// `[out_features, rank]`, scaled.
    up: PackedMatrix,
}

/// One by [`Target`].
type LayerFactors = [Option<Factors>; Target::ALL.len()];

/// The adapters that are loaded, and buffers.
#[derive(Default)]
pub(super) struct Adapters {
    loaded: HashMap<AdapterId, Vec<LayerFactors>>,
    buffers: Buffers,
    groups: Vec<Group>,
}

/// The rows of a step that use one adapter.
struct Group {
    adapter: AdapterId,
    /// Ascending.
    rows: Vec<usize>,
    /// Those of them that are left after the last layer's attention, counted among what is left.
    kept: Vec<usize>,
}

struct Buffers {
    input: Activations,
    /// `[group's rows, in_features]`
    gathered: Vec<f32>,
    low: Vec<f32>,
    low_activations: Activations,
    delta: Vec<f32>,
}

impl Default for Buffers {
    fn default() -> Self {
        // Float matrices read values.
        let floats = || Activations::with_capacity(0, 0, true);
        Self {
            input: floats(),
            gathered: Vec::new(),
            low: Vec::new(),
            low_activations: floats(),
            delta: Vec::new(),
        }
    }
}

/// What the adapted products of a sub-layer read.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    /// The rows as they are; their width.
    Plain(&'a [f32], usize),
    /// Their RMS norm with this weight.
    Normed(&'a [f32], &'a [f32], f32),
}

impl Adapters {
    pub fn load(
        &mut self,
        pool: &ThreadPool,
        id: AdapterId,
        adapter: &LoraAdapter,
    ) -> Result<(), ForwardError> {
        let mut layers = Vec::with_capacity(adapter.layers.len());
        for parts in &adapter.layers {
            let mut layer = LayerFactors::default();
            for (target, part) in parts {
                layer[*target as usize] = Some(pack(pool, part)?);
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
                None => self.groups.push(Group {
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

    /// Adds what the step's adapters change in products of the same input. `is_kept`: only the rows whose logits are
    /// wanted are left.
    pub fn add<const N: usize>(
        &mut self,
        pool: &ThreadPool,
        layer: usize,
        is_kept: bool,
        input: Input<'_>,
        mut products: [(Target, &mut [f32]); N],
    ) {
        for group in &self.groups {
            let rows = if is_kept { &group.kept } else { &group.rows };
            let Some(layers) = self.loaded.get(&group.adapter).filter(|_| !rows.is_empty()) else {
                continue;
            };
            let factors = &layers[layer];
            if products
                .iter()
                .all(|(target, _)| factors[*target as usize].is_none())
            {
                continue;
            }
            self.buffers.take(pool, input, rows);
            for (target, out) in &mut products {
                if let Some(factors) = &factors[*target as usize] {
                    self.buffers.add(pool, factors, rows, out);
                }
            }
        }
    }
}

impl Buffers {
    fn take(&mut self, pool: &ThreadPool, input: Input<'_>, rows: &[usize]) {
        let (x, width) = match input {
            Input::Plain(x, width) => (x, width),
            Input::Normed(x, norm, _) => (x, norm.len()),
        };
        self.gathered.clear();
        for row in rows {
            self.gathered.extend_from_slice(&x[row * width..][..width]);
        }
        match input {
            Input::Plain(..) => self.input.load(pool, &self.gathered, rows.len(), width),
            Input::Normed(_, norm, eps) => {
                self.input.load_normed(pool, &self.gathered, norm, eps);
            }
        }
    }

    fn add(&mut self, pool: &ThreadPool, factors: &Factors, rows: &[usize], out: &mut [f32]) {
        let (rank, width) = (factors.down.out_features(), factors.up.out_features());
        // Every value is overwritten.
        self.low.resize(rows.len() * rank, 0.0);
        matmul(pool, &self.input, &factors.down, None, &mut self.low);
        self.low_activations.load(pool, &self.low, rows.len(), rank);
        if rows.len() * width == out.len() {
            let product = Product {
                weights: &factors.up,
                bias: None,
                out,
                accumulate: true,
            };
            return matmul_many(pool, &self.low_activations, [product]);
        }
        self.delta.resize(rows.len() * width, 0.0);
        matmul(
            pool,
            &self.low_activations,
            &factors.up,
            None,
            &mut self.delta,
        );
        for (row, delta) in rows.iter().zip(self.delta.chunks_exact(width)) {
            let out = &mut out[row * width..][..width];
            for (out, delta) in out.iter_mut().zip(delta) {
                *out += delta;
            }
        }
    }
}

fn pack(pool: &ThreadPool, part: &LowRank) -> Result<Factors, ForwardError> {
    let matrix = |values: &[f32], out_features, in_features| {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        PackedMatrix::pack(pool, DType::F32, &bytes, out_features, in_features)
            .map_err(|error| ForwardError::Internal(error.to_string()))
    };
    Ok(Factors {
        down: matrix(&part.a, part.rank, part.in_features)?,
        up: matrix(&part.b, part.out_features, part.rank)?,
    })
}
