//! Back through attention. Keys and values of tokens before the window are constants.

use ponder_kernels::gradients::{AttentionGradient, NO_SLOT, add_norm_gradient};
use ponder_kernels::{matmul, matmul_transposed};

use super::backward::Room;
use super::feed_forward_backward::Gradient;
use super::window::Tape;
use crate::model::causal_lm::{ForwardBatch, ForwardError, NO_BLOCK};
use crate::model::decoder::Decoder;
use crate::model::families::QkNorm;
use crate::model::layers::Projections;

impl Decoder {
    /// Adds the gradient by the normed rows that goes through attention. Only for one sequence,
    /// whose keys and values are in the cache as the tape's pass left them.
    pub(super) fn back_through_attention(
        &mut self,
        batch: &ForwardBatch<'_>,
        index: usize,
        tape: &Tape,
        gradient: Gradient<'_>,
        room: &mut Room,
    ) -> Result<(), ForwardError> {
        let config = &self.config;
        let attention = &self.layers[index].attention;
        let is_plain = matches!(attention.projections, Projections::Plain { .. });
        if !is_plain || attention.sinks.is_some() || config.attention_softcap.is_some() {
            let message = "there is no exact gradient through this attention".to_owned();
            return Err(ForwardError::Internal(message));
        }
        let Gradient {
            by_result,
            by_normed,
        } = gradient;
        let pool = &*self.ops.pool;
        let output = [&attention.output.weights];
        let by_attended = &mut room.by_attended;
        by_attended.clear();
        by_attended.resize(tape.queries[index].len(), 0.0);
        matmul_transposed(pool, [by_result], output, &mut room.rows, by_attended);
        let (cache, cache_layer) = self.cache_of(index).ok_or(ForwardError::NoKvCache)?;
        let local = batch.local_view().filter(|_| attention.is_local);
        let params = config.attention_params(attention.is_local);
        let read = AttentionGradient {
            params: &params,
            queries: &tape.queries[index],
            by_result: by_attended,
            slots: &slots(local.as_ref().unwrap_or(batch), cache.block_size()),
        };
        room.attention.run(pool, &read, cache, cache_layer);
        let by = &mut room.attention;
        self.rotate_back(batch, index, &mut by.by_queries, &mut by.by_keys);
        let input = &tape.input[index];
        self.back_through_qk_norms(index, input, &mut by.by_queries, &mut by.by_keys);
        let attention = &self.layers[index].attention;
        if let Projections::Plain { q, k, v } = &attention.projections {
            let x = [&by.by_queries[..], &by.by_keys, &by.by_values];
            let weights = [q, k, v].map(|linear| &linear.weights);
            matmul_transposed(&self.ops.pool, x, weights, &mut room.rows, by_normed);
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
            add_norm_gradient(pool, &rows, norm, eps, &by_normed, gradient);
        }
    }
}

/// Where the sequence's tokens lie in the cache; [`NO_SLOT`] for those that it has given back.
fn slots(batch: &ForwardBatch<'_>, block_size: usize) -> Vec<u32> {
    let sequence = &batch.sequences[0];
    let slot = |token: usize| match sequence.block_table[token / block_size] {
        NO_BLOCK => NO_SLOT,
        block => block * block_size as u32 + (token % block_size) as u32,
    };
    (0..sequence.context_len).map(slot).collect()
}
