//! The gradient by router logits, and back through layers: only by activations, never by weights.
//!
//! Choices of experts are constants of a step. Products run on 8-bit activations forward; the gradient is that of the same
//! products of floats.

use crate::model::causal_lm::{ForwardBatch, ForwardError};
use crate::model::decoder::Decoder;
use crate::model::layers::FeedForward;

use super::config::RouterGradient;
use super::loss::add_norm_gradient;
use super::window::{Recorded, Tape};

impl Decoder {
    /// The mean loss of the rows of `batch` (all of one sequence, from its first token on, steered as the batch says; row `i`
    /// predicts `targets[i]`), and its gradient by what is added to the router logits of each of `layers` (ascending).
    pub fn router_gradient(
        &mut self,
        batch: &ForwardBatch<'_>,
        targets: &[u32],
        layers: &[usize],
        gradient: RouterGradient,
    ) -> Result<(f32, Vec<Vec<f32>>), ForwardError> {
        let is_exact = gradient == RouterGradient::Exact;
        let recorded = Recorded {
            lowest: layers.first().copied().unwrap_or(self.layers.len()),
            inputs: is_exact,
        };
        let mut tape = Tape::default();
        self.run_window(batch, &mut tape, None, recorded)?;
        let mut loss = self.loss(targets, None, true);
        self.through_final_norm(&tape.last, &mut loss.gradient);
        let gradients = self.router_gradients(batch, &tape, layers, is_exact, loss.gradient)?;
        Ok((loss.mean, gradients))
    }

    /// The gradient by what is added to the router logits of each of `chosen` layers (ascending), summed over the rows.
    /// `gradient` is that by the rows after the last layer.
    pub(super) fn router_gradients(
        &mut self,
        batch: &ForwardBatch<'_>,
        tape: &Tape,
        chosen: &[usize],
        is_exact: bool,
        mut gradient: Vec<f32>,
    ) -> Result<Vec<Vec<f32>>, ForwardError> {
        let mut gradients = vec![Vec::new(); chosen.len()];
        let Some(lowest) = chosen.first().copied() else {
            return Ok(gradients);
        };
        self.prepare(batch)?;
        for index in (lowest..self.layers.len()).rev() {
            let place = chosen.iter().position(|layer| *layer == index);
            let goes_on = is_exact && index > lowest;
            if place.is_none() && !goes_on {
                continue;
            }
            let mid = &tape.mid[index];
            let mut by_normed = if goes_on {
                vec![0.0; mid.len()]
            } else {
                Vec::new()
            };
            let own =
                self.back_through_feed_forward(batch, index, mid, &gradient, &mut by_normed)?;
            if let (Some(place), Some(own)) = (place, own) {
                gradients[place] = own;
            }
            if !goes_on {
                continue;
            }
            let norm = match &self.layers[index].feed_forward {
                FeedForward::Mlp(mlp) => &mlp.norm,
                FeedForward::Moe(moe) => &moe.norm,
            };
            self.add_normed(mid, norm, &by_normed, &mut gradient);
            let input = &tape.input[index];
            by_normed.fill(0.0);
            self.back_through_attention(batch, index, input, &gradient, &mut by_normed)?;
            let norm = &self.layers[index].attention.norm;
            self.add_normed(input, norm, &by_normed, &mut gradient);
        }
        Ok(gradients)
    }

    /// Adds what goes through a sub-layer's norm to the residual stream's gradient.
    fn add_normed(&self, x: &[f32], norm: &[f32], by_normed: &[f32], gradient: &mut [f32]) {
        let width = norm.len();
        let eps = self.config.rms_norm_eps;
        let rows = x.chunks_exact(width).zip(by_normed.chunks_exact(width));
        for ((x, by_normed), gradient) in rows.zip(gradient.chunks_exact_mut(width)) {
            add_norm_gradient(x, norm, eps, by_normed, gradient);
        }
    }
}
