//! What an executor needs that keeps logits where they are computed.

use super::Decoder;
use crate::model::causal_lm::{ForwardBatch, ForwardError};
use crate::model::ops::{AttentionShape, CudaOps, Ops, StepKey};
use crate::model::profile::Stopwatch;

/// Bytes of a value of rows, and of activations.
const ROW_BYTES: usize = 4;
const ACTIVATION_BYTES: usize = 2;

/// Rows whose sums are computed in parts, and most parts of a sum.
const APART_ROWS: usize = 256;
const MAX_PARTS: usize = 8;

impl<O: Ops> Decoder<O> {
    /// Queues all operations of a step that was prepared.
    pub fn run_step(&mut self, batch: &ForwardBatch<'_>) -> Result<(), ForwardError> {
        let times = self.operator_times.clone();
        self.run(batch, &mut Stopwatch::start(times.as_deref()))
    }

    /// The last step's logits, `[num_logits_rows, vocab_size]`.
    pub fn logits(&self) -> &O::Rows {
        &self.scratch.logits
    }

    pub fn ops_mut(&mut self) -> &mut O {
        &mut self.ops
    }

    /// Bytes of the buffers that steps of so many rows need beside weights and KV cache.
    pub fn step_bytes(&self, max_num_rows: usize) -> usize {
        let config = &self.config;
        let heads = config.num_heads + config.num_kv_heads;
        let attention = 2 * heads * config.head_dim;
        let widest = config
            .intermediate_size
            .max(config.num_heads * config.head_dim);
        // Gate and up are rows where an adapter changes them, or experts have several of a row.
        let num_copies = config
            .moe
            .as_ref()
            .map_or(1, |moe| moe.gating.num_experts_per_tok);
        let rows = 4 * config.hidden_size + attention + num_copies * 2 * widest;
        let activations = config.hidden_size + (1 + num_copies) * widest;
        let logits = config.vocab_size * 2;
        let of_rows = (rows + logits) * ROW_BYTES + activations * ACTIVATION_BYTES;
        // Parts of sums of a gated unit, which are the most.
        let parts = APART_ROWS * MAX_PARTS * 2 * config.intermediate_size * ROW_BYTES;
        max_num_rows * of_rows + parts
    }
}

impl Decoder<CudaOps> {
    /// Checks a step and copies what its operations read to the device. What a recording of it is good for.
    pub fn prepare_step(
        &mut self,
        batch: &ForwardBatch<'_>,
    ) -> Result<Option<StepKey>, ForwardError> {
        self.prepare(batch)?;
        Ok(self.inputs.key())
    }

    /// Makes room for what a step's attention reads, after the KV cache was allocated.
    pub fn reserve_step(&mut self, max_num_rows: usize) -> Result<(), ForwardError> {
        let shape = AttentionShape {
            num_heads: self.config.num_heads,
            cache: self.kv_shape.ok_or(ForwardError::NoKvCache)?,
        };
        Ok(self.ops.reserve(&mut self.inputs, shape, max_num_rows)?)
    }

    /// A recorded step ran: what is read after it has this many rows.
    pub fn replayed(&mut self, num_logits_rows: usize) -> Result<(), ForwardError> {
        let (ops, scratch) = (&self.ops, &mut self.scratch);
        let widths = [self.config.hidden_size, self.config.vocab_size];
        for (rows, width) in [&mut scratch.x, &mut scratch.logits]
            .into_iter()
            .zip(widths)
        {
            rows.reshape(ops.gpu(), num_logits_rows, width)?;
        }
        Ok(())
    }
}
