//! Back through attention. Keys and values of tokens before the window are constants.

use ponder_kernels::gradients::{AttentionRow, AttentionSums, attention_gradient};
use ponder_kernels::{KvCache, ThreadPool, matmul, matmul_transposed};

use super::loss::add_norm_gradient;
use super::parallel;
use crate::model::causal_lm::{ForwardBatch, ForwardError};
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::families::QkNorm;
use crate::model::layers::Projections;
use crate::model::profile::Stopwatch;

/// One KV head's part: what its queries' heads read, and the gradients by their inputs.
struct HeadGroup {
    /// `[context, head_dim]`
    keys: Vec<f32>,
    values: Vec<f32>,
    /// `[rows, queries a KV head, head_dim]`
    by_q: Vec<f32>,
    /// `[rows, head_dim]`
    by_k: Vec<f32>,
    by_v: Vec<f32>,
}

impl Decoder {
    /// Adds the gradient by the normed rows that goes through attention. `input` is what the layer read, `[rows, hidden_size]`.
    /// Only for one sequence.
    pub(super) fn back_through_attention(
        &mut self,
        batch: &ForwardBatch<'_>,
        index: usize,
        input: &[f32],
        gradient: &[f32],
        by_normed: &mut [f32],
    ) -> Result<(), ForwardError> {
        let attention = &self.layers[index].attention;
        let is_plain = matches!(attention.projections, Projections::Plain { .. });
        if !is_plain || attention.sinks.is_some() {
            let message = "there is no exact gradient through this attention".to_owned();
            return Err(ForwardError::Internal(message));
        }
        // Queries as they were rotated, and the same keys and values in the cache as before.
        self.put_rows(input);
        self.attend(index, batch, &mut Stopwatch::start(None))?;
        let config = &self.config;
        let attention = &self.layers[index].attention;
        let scale = config.residual_scale;
        let scaled: Vec<f32> = gradient.iter().map(|value| scale * value).collect();
        let num_rows = batch.token_ids.len();
        let mut by_attended = vec![0.0; num_rows * config.num_heads * config.head_dim];
        matmul_transposed(
            &self.ops.pool,
            &scaled,
            &attention.output.weights,
            &mut by_attended,
        );
        let cache = self.kv_cache.as_ref().ok_or(ForwardError::NoKvCache)?;
        let queries = &self.scratch.q.values;
        let groups = backward_heads(
            &self.ops.pool,
            config,
            cache,
            batch,
            index,
            queries,
            &by_attended,
        );
        let [mut by_q, mut by_k, by_v] = joined(config, num_rows, &groups);
        self.rotate_back(batch, index, &mut by_q, &mut by_k);
        self.back_through_qk_norms(index, input, &mut by_q, &mut by_k);
        let attention = &self.layers[index].attention;
        if let Projections::Plain { q, k, v } = &attention.projections {
            for (linear, rows) in [(q, &by_q), (k, &by_k), (v, &by_v)] {
                matmul_transposed(&self.ops.pool, rows, &linear.weights, by_normed);
            }
        }
        Ok(())
    }

    fn rotate_back(
        &self,
        batch: &ForwardBatch<'_>,
        index: usize,
        by_q: &mut [f32],
        by_k: &mut [f32],
    ) {
        let head_dim = self.config.head_dim;
        let num_rows = batch.positions.len();
        let rope = self.rope.of(&self.layers[index].attention);
        for rows in [by_q, by_k] {
            let width = rows.len() / num_rows.max(1);
            for (row, position) in rows.chunks_exact_mut(width).zip(batch.positions) {
                let kind = self.config.rope.kind();
                rope.rotate_back(kind, row, head_dim, *position);
            }
        }
    }

    /// Through the norms of queries and keys, where there are any: they are computed again up to there.
    fn back_through_qk_norms(
        &mut self,
        index: usize,
        input: &[f32],
        by_q: &mut Vec<f32>,
        by_k: &mut Vec<f32>,
    ) {
        if self.config.family.qk_norm == QkNorm::None {
            return;
        }
        let (pool, eps) = (&*self.ops.pool, self.config.rms_norm_eps);
        let attention = &self.layers[index].attention;
        let Projections::Plain { q, k, .. } = &attention.projections else {
            return;
        };
        let x = &mut self.scratch.activations;
        x.load_normed(pool, input, &attention.norm, eps);
        let norms = [&attention.q_norm, &attention.k_norm];
        for ((linear, norm), gradient) in [q, k].into_iter().zip(norms).zip([by_q, by_k]) {
            let Some(norm) = norm else { continue };
            let mut rows = vec![0.0; gradient.len()];
            matmul(pool, x, &linear.weights, linear.bias.as_deref(), &mut rows);
            let by_normed = std::mem::replace(gradient, vec![0.0; rows.len()]);
            let width = norm.len();
            let rows = rows.chunks_exact(width).zip(by_normed.chunks_exact(width));
            for ((x, by_normed), out) in rows.zip(gradient.chunks_exact_mut(width)) {
                add_norm_gradient(x, norm, eps, by_normed, out);
            }
        }
    }
}

/// The gradients of every KV head's group.
fn backward_heads(
    pool: &ThreadPool,
    config: &ModelConfig,
    cache: &KvCache,
    batch: &ForwardBatch<'_>,
    layer: usize,
    queries: &[f32],
    by_attended: &[f32],
) -> Vec<HeadGroup> {
    let sequence = &batch.sequences[0];
    let block_size = cache.block_size();
    let slot = |token: usize| {
        sequence.block_table[token / block_size] * block_size as u32 + (token % block_size) as u32
    };
    let slots: Vec<u32> = (0..sequence.context_len).map(slot).collect();
    let run = |kv_head: usize| {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        cache.read(layer, kv_head, &slots, &mut keys, &mut values);
        let num_rows = batch.token_ids.len();
        let heads = config.num_heads / config.num_kv_heads;
        let mut group = HeadGroup {
            keys,
            values,
            by_q: vec![0.0; num_rows * heads * config.head_dim],
            by_k: vec![0.0; num_rows * config.head_dim],
            by_v: vec![0.0; num_rows * config.head_dim],
        };
        group.run(config, sequence.context_len, kv_head, queries, by_attended);
        group
    };
    parallel::map(pool, (0..config.num_kv_heads).collect(), run)
}

impl HeadGroup {
    fn run(
        &mut self,
        config: &ModelConfig,
        context_len: usize,
        kv_head: usize,
        queries: &[f32],
        by_attended: &[f32],
    ) {
        let dim = config.head_dim;
        let heads = config.num_heads / config.num_kv_heads;
        let num_rows = self.by_k.len() / dim;
        let first = context_len - num_rows;
        let (mut weights, mut slopes) = (Vec::new(), Vec::new());
        for row in 0..num_rows {
            let visible = (first + row + 1) * dim;
            for head in 0..heads {
                let place = (row * config.num_heads + kv_head * heads + head) * dim;
                let read = AttentionRow {
                    query: &queries[place..place + dim],
                    by_result: &by_attended[place..place + dim],
                    keys: &self.keys[..visible],
                    values: &self.values[..visible],
                    scale: config.attention_scale,
                    first,
                };
                let mut sums = AttentionSums {
                    by_query: &mut self.by_q[(row * heads + head) * dim..][..dim],
                    by_keys: &mut self.by_k,
                    by_values: &mut self.by_v,
                    weights: &mut weights,
                    slopes: &mut slopes,
                };
                attention_gradient(&read, &mut sums);
            }
        }
    }
}

/// The groups' gradients side by side: by queries, keys and values, row by row.
fn joined(config: &ModelConfig, num_rows: usize, groups: &[HeadGroup]) -> [Vec<f32>; 3] {
    let dim = config.head_dim;
    let side_by_side = |width: usize, part: fn(&HeadGroup) -> &[f32]| {
        let mut out = Vec::with_capacity(num_rows * width * groups.len());
        for row in 0..num_rows {
            for group in groups {
                out.extend_from_slice(&part(group)[row * width..][..width]);
            }
        }
        out
    };
    let heads = config.num_heads / config.num_kv_heads;
    [
        side_by_side(heads * dim, |group| &group.by_q),
        side_by_side(dim, |group| &group.by_k),
        side_by_side(dim, |group| &group.by_v),
    ]
}
