//! The forward pass over a ragged batch.

use ponder_kernels::dense::{dense, dense_add_norm, feed_forward, layer_norm};
use ponder_kernels::{SelfAttention, self_attention};

use super::{Classifier, EncodeError, Encoder, EncoderInput, Pooling, pooling};

/// Memory that batches share.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[rows, hidden_size]`
    hidden: Vec<f32>,
    /// `[rows, 3, hidden_size]`
    qkv: Vec<f32>,
    /// `[rows, hidden_size]`
    seen: Vec<f32>,
    /// Where each sequence ends.
    ends: Vec<usize>,
}

impl Encoder {
    /// One vector of each sequence, as `pooling` makes it. Not normalised.
    ///
    /// # Errors
    /// When a sequence is empty, too long, or has tokens that the model does not know.
    pub fn embed(
        &mut self,
        inputs: &[EncoderInput<'_>],
        pooling: Pooling,
    ) -> Result<Vec<Vec<f32>>, EncodeError> {
        self.forward(inputs)?;
        let width = self.config.hidden_size;
        let states =
            |(start, end): (usize, usize)| &self.scratch.hidden[start * width..end * width];
        let pooled = self
            .ranges()
            .map(|range| pooling::pool(states(range), width, pooling));
        Ok(pooled.collect())
    }

    /// A cross-encoder's logits of each sequence; empty ones where the model is none.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn classify(&mut self, inputs: &[EncoderInput<'_>]) -> Result<Vec<Vec<f32>>, EncodeError> {
        self.forward(inputs)?;
        let width = self.config.hidden_size;
        let Some(Classifier { pooler, head }) = &self.classifier else {
            return Ok(vec![Vec::new(); inputs.len()]);
        };
        let starts = self.ranges().map(|(start, _)| start);
        let states = starts.flat_map(|start| &self.scratch.hidden[start * width..][..width]);
        let firsts: Vec<f32> = states.copied().collect();
        let mut pooled = vec![0.0; firsts.len()];
        dense(&self.pool, &firsts, pooler, &mut pooled);
        pooled.iter_mut().for_each(|value| *value = value.tanh());
        let mut logits = vec![0.0; inputs.len() * head.out_features()];
        dense(&self.pool, &pooled, head, &mut logits);
        let rows = logits.chunks_exact(head.out_features());
        Ok(rows.map(<[f32]>::to_vec).collect())
    }

    fn ranges(&self) -> impl Iterator<Item = (usize, usize)> {
        let ends = &self.scratch.ends;
        std::iter::once(0)
            .chain(ends.iter().copied())
            .zip(ends.iter().copied())
    }

    /// Leaves the last layer's states in the scratch.
    fn forward(&mut self, inputs: &[EncoderInput<'_>]) -> Result<(), EncodeError> {
        for input in inputs {
            self.config.check(*input)?;
        }
        let width = self.config.hidden_size;
        let Self {
            config,
            pool,
            words,
            positions,
            types,
            embedding_norm,
            layers,
            scratch,
            ..
        } = self;
        let Scratch {
            hidden,
            qkv,
            seen,
            ends,
        } = scratch;
        hidden.clear();
        ends.clear();
        for input in inputs {
            for (position, id) in input.token_ids.iter().enumerate() {
                let kind = usize::from(position >= input.second_from);
                let row =
                    |table: &[f32], at: usize| at * width..at * width + table.len().min(width);
                let word = &words[row(words, *id as usize)];
                let place = &positions[row(positions, position)];
                let kind = &types[row(types, kind)];
                let parts = word.iter().zip(place).zip(kind);
                hidden.extend(parts.map(|((word, place), kind)| word + kind + place));
            }
            ends.push(ends.last().copied().unwrap_or(0) + input.token_ids.len());
        }
        let num_rows = ends.last().copied().unwrap_or(0);
        if num_rows == 0 {
            return Ok(());
        }
        layer_norm(pool, embedding_norm, hidden);
        qkv.resize(num_rows * 3 * width, 0.0);
        seen.resize(num_rows * width, 0.0);
        for layer in layers {
            dense(pool, hidden, &layer.qkv, qkv);
            let input = SelfAttention {
                qkv,
                ends,
                num_heads: config.num_heads,
                head_dim: config.head_dim(),
            };
            self_attention(pool, &input, seen);
            dense_add_norm(pool, seen, &layer.output, &layer.output_norm, hidden);
            feed_forward(pool, &layer.feed_forward, &layer.feed_forward_norm, hidden);
        }
        Ok(())
    }
}
