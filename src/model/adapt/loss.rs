//! Cross-entropy of the next tokens and its gradient at the final hidden state.

use ponder_kernels::cross_entropy::Head;
use ponder_kernels::gradients::add_norm_gradient;
use ponder_kernels::norm::rms_norm_in_place;

use crate::model::decoder::Decoder;

/// Tokens less likely than this are left out of the gradient: a large vocabulary has many of them
/// that hardly pull.
const MIN_PROBABILITY: f32 = 1e-4;

/// Over the rows of a window.
pub(super) struct Loss {
    /// Mean, in nats a token.
    pub mean: f32,
    /// Of the mean by each normed row with its offset, `[rows, hidden_size]`; empty unless wanted.
    pub gradient: Vec<f32>,
}

impl Decoder {
    /// The loss of the rows in the scratch (before the final norm); row `i` predicts `targets[i]`. `offset` is added to the normed
    /// rows.
    pub(super) fn loss(
        &mut self,
        targets: &[u32],
        offset: Option<&[f32]>,
        wants_gradient: bool,
    ) -> Loss {
        let (hidden, eps) = (self.config.hidden_size, self.config.rms_norm_eps);
        let pool = &*self.ops.pool;
        let mut rows = self.scratch.x.values[..targets.len() * hidden].to_vec();
        rms_norm_in_place(pool, &mut rows, &self.output_norm, eps);
        add_offset(&mut rows, offset);
        let activations = &mut self.scratch.activations;
        activations.load(pool, &rows, targets.len(), hidden);
        let head = Head {
            weights: self.head.as_ref().unwrap_or(&self.embeddings),
            divisor: self.config.logits_divisor,
            softcap: self.config.final_softcap,
        };
        let least = wants_gradient.then_some(MIN_PROBABILITY);
        let found = head.cross_entropy(pool, activations, targets, least);
        let mut gradient = Vec::new();
        if wants_gradient {
            // The rows are not needed any more.
            gradient = rows;
            gradient.fill(0.0);
            head.add_gradient(pool, &found.errors, &mut gradient);
        }
        let total: f64 = found.losses.iter().sum();
        Loss {
            mean: (total / targets.len() as f64) as f32,
            gradient,
        }
    }

    /// The gradient by the rows before the final norm, in place of that by the rows after it.
    pub(super) fn through_final_norm(&self, rows: &[f32], gradient: &mut [f32]) {
        let (pool, eps) = (&self.ops.pool, self.config.rms_norm_eps);
        let by_normed = gradient.to_vec();
        gradient.fill(0.0);
        add_norm_gradient(pool, rows, &self.output_norm, eps, &by_normed, gradient);
    }
}

/// Adds a vector to every row.
pub(in crate::model) fn add_offset(rows: &mut [f32], offset: Option<&[f32]>) {
    let Some(offset) = offset else { return };
    for row in rows.chunks_exact_mut(offset.len()) {
        for (x, offset) in row.iter_mut().zip(offset) {
            *x += offset;
        }
    }
}
