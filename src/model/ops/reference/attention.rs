//! Rotation, the cache and attention by their definitions.

use std::collections::HashMap;
use std::ops::Range;

use half::f16;
use ponder_kernels::{KvDtype, RopeKind};

use super::super::{KvShape, LayerAttention, RopeParams};
use super::{ReferenceOps, Sequence, dot};
use crate::model::causal_lm::BlockId;

/// The angle a position turns each pair by.
pub(in crate::model) struct Angles {
    frequencies: Vec<f64>,
    magnitude: f64,
}

impl Angles {
    pub(super) fn new(params: &RopeParams<'_>) -> Self {
        let frequency = |index: usize| {
            let power = -2.0 * index as f64 / params.rotary_dim as f64;
            let factor = params.freq_factors.map_or(1.0, |factors| factors[index]);
            let divisor = f64::from(factor) * f64::from(params.linear_scale);
            f64::from(params.theta).powf(power) / divisor
        };
        Self {
            frequencies: (0..params.rotary_dim / 2).map(frequency).collect(),
            magnitude: f64::from(params.magnitude),
        }
    }

    pub(super) fn rotate(&self, kind: RopeKind, position: u32, head: &mut [f32]) {
        for (pair, frequency) in self.frequencies.iter().enumerate() {
            let (low, high) = match kind {
                RopeKind::Norm => (2 * pair, 2 * pair + 1),
                RopeKind::Neox => (pair, pair + self.frequencies.len()),
            };
            let (sin, cos) = (f64::from(position) * frequency).sin_cos();
            let (a, b) = (f64::from(head[low]), f64::from(head[high]));
            let (a, b) = (self.magnitude * a, self.magnitude * b);
            head[low] = (a * cos - b * sin) as f32;
            head[high] = (a * sin + b * cos) as f32;
        }
    }
}

/// Keys and values by layer and slot.
pub(in crate::model) struct Cache {
    block_size: usize,
    num_layers: usize,
    pub(super) head_dim: usize,
    dtype: KvDtype,
    entries: HashMap<(usize, u32), [Vec<f32>; 2]>,
}

impl Cache {
    pub(super) fn new(shape: &KvShape) -> Self {
        Self {
            block_size: shape.block_size,
            num_layers: shape.num_layers,
            head_dim: shape.head_dim,
            dtype: shape.dtype,
            entries: HashMap::new(),
        }
    }

    pub(super) fn write(&mut self, layer: usize, slot: u32, k: &[f32], v: &[f32]) {
        let mut entry = [k.to_vec(), v.to_vec()];
        if self.dtype == KvDtype::Q8_0 {
            for head in entry.iter_mut().flat_map(|x| x.chunks_mut(self.head_dim)) {
                round_to_codes(head, scale_above);
            }
        }
        self.entries.insert((layer, slot), entry);
    }

    pub(super) fn copy(&mut self, (from, to): (BlockId, BlockId)) {
        let size = self.block_size as u32;
        for layer in 0..self.num_layers {
            for offset in 0..size {
                if let Some(entry) = self.entries.get(&(layer, from * size + offset)) {
                    let entry = entry.clone();
                    self.entries.insert((layer, to * size + offset), entry);
                }
            }
        }
    }

    /// The key and value of a token of a sequence.
    fn token(&self, layer: usize, sequence: &Sequence, token: usize) -> &[Vec<f32>; 2] {
        let block = sequence.block_table[token / self.block_size];
        let slot = block * self.block_size as u32 + (token % self.block_size) as u32;
        &self.entries[&(layer, slot)]
    }
}

/// Values that share a scale in [`KvDtype::Q8_0`].
const GROUP: usize = 32;
const LARGEST_CODE: f32 = 127.0;

/// The f16 nearest to a scale that is not below it.
fn scale_above(scale: f32) -> f32 {
    let nearest = f16::from_f32(scale);
    let is_below = nearest.to_f32() < scale;
    f16::from_bits(nearest.to_bits() + u16::from(is_below)).to_f32()
}

/// Each value as a whole multiple of its group's scale.
fn round_to_codes(x: &mut [f32], scale: impl Fn(f32) -> f32) {
    for group in x.chunks_mut(GROUP) {
        let largest = group.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let scale = scale(largest / LARGEST_CODE);
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        for x in group {
            let code = (*x * inverse).clamp(-LARGEST_CODE, LARGEST_CODE);
            *x = code.round_ties_even() * scale;
        }
    }
}

/// The tokens that a row sees, and where the last of them lies for a leaf.
pub(super) fn visible(
    sequence: &Sequence,
    row: usize,
    window: Option<usize>,
) -> (Range<usize>, Option<usize>) {
    let place = sequence.context_len - sequence.num_rows + row;
    let leaf = (row + sequence.leaves.len()).checked_sub(sequence.num_rows);
    let position = leaf.map_or(place, |leaf| sequence.leaves[leaf] as usize);
    let start = window.map_or(0, |window| (position + 1).saturating_sub(window));
    (start..position + 1, leaf.map(|_| place))
}

/// Softmax of the scores of the visible tokens, and the head's sink, applied to the tokens' values.
pub(super) fn attend(
    attention: &LayerAttention<'_, ReferenceOps>,
    cache: &Cache,
    sequence: &Sequence,
    tokens: Range<usize>,
    own: Option<usize>,
    q: &[f32],
) -> Vec<f32> {
    let params = attention.params;
    let dim = params.head_dim;
    let place = |token: usize| match own {
        Some(own) if token + 1 == tokens.end => own,
        _ => token,
    };
    let entries = tokens
        .clone()
        .map(|token| cache.token(attention.layer, sequence, place(token)));
    let entries: Vec<_> = entries.collect();
    let group = params.num_heads / params.num_kv_heads;
    let mut out = Vec::new();
    for (head, q) in q.chunks_exact(dim).enumerate() {
        let mut q = q.to_vec();
        if cache.dtype == KvDtype::Q8_0 {
            round_to_codes(&mut q, |scale| scale);
        }
        let of_head = head / group * dim..(head / group + 1) * dim;
        let scores: Vec<f64> = entries
            .iter()
            .map(|[key, _]| {
                let score = params.scale * dot(&q, &key[of_head.clone()]);
                let score = params
                    .softcap
                    .map_or(score, |cap| cap * (score / cap).tanh());
                f64::from(score)
            })
            .collect();
        let sink = attention.sinks.map(|sinks| f64::from(sinks[head]));
        let all = scores.iter().copied().chain(sink);
        let max = all.clone().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let sum: f64 = all.map(|score| (score - max).exp()).sum();
        out.extend(of_head.map(|index| {
            let values = entries.iter().map(|[_, value]| f64::from(value[index]));
            let weighted = values.zip(&weights).map(|(value, weight)| value * weight);
            (weighted.sum::<f64>() / sum) as f32
        }));
    }
    out
}
