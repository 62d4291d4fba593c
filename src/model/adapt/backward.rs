//! The gradient by router logits, and back through layers: only by activations, never by weights.
//!
//! Choices of experts are constants of a step. Products run on 8-bit activations forward; the
//! gradient is that of the same products of floats, which are rounded to bf16 where weights are
//! quantised and the machine multiplies bf16.

use ponder_kernels::GradientRows;
use ponder_kernels::gradients::{AttentionGradients, add_norm_gradient};

use super::config::RouterGradient;
use super::feed_forward_backward::{GatedRoom, Gradient, SubLayerInput};
use super::window::{Recorded, Tape};
use crate::model::causal_lm::{ForwardBatch, ForwardError};
use crate::model::decoder::Decoder;
use crate::model::layers::FeedForward;

/// Buffers that the layers share.
#[derive(Default)]
pub(super) struct Room {
    /// What products read.
    pub rows: GradientRows,
    pub gated: GatedRoom,
    pub attention: AttentionGradients,
    /// `[rows, num_heads * head_dim]`
    pub by_attended: Vec<f32>,
    /// The gradient by what a sub-layer adds, where that is not the residual stream's.
    scaled: Vec<f32>,
}

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
            units: is_exact,
        };
        let mut tape = Tape::default();
        self.run_window(batch, &mut tape, None, recorded)?;
        let mut loss = self.loss(targets, None, true);
        self.through_final_norm(&tape.last, &mut loss.gradient);
        let gradients = self.router_gradients(batch, &mut tape, layers, is_exact, loss.gradient)?;
        Ok((loss.mean, gradients))
    }

    /// The gradient by what is added to the router logits of each of `chosen` layers (ascending), summed over the rows.
    /// `gradient` is that by the rows after the last layer.
    pub(super) fn router_gradients(
        &mut self,
        batch: &ForwardBatch<'_>,
        tape: &mut Tape,
        chosen: &[usize],
        is_exact: bool,
        mut gradient: Vec<f32>,
    ) -> Result<Vec<Vec<f32>>, ForwardError> {
        let mut gradients = vec![Vec::new(); chosen.len()];
        let Some(lowest) = chosen.first().copied() else {
            return Ok(gradients);
        };
        self.prepare(batch)?;
        let mut room = Room::default();
        let mut by_normed = Vec::new();
        for index in (lowest..self.layers.len()).rev() {
            let place = chosen.iter().position(|layer| *layer == index);
            let goes_on = is_exact && index > lowest;
            if place.is_none() && !goes_on {
                continue;
            }
            let mut units = std::mem::take(&mut tape.units[index]);
            let were_kept = units.len() > 0;
            let mid = &tape.mid[index];
            by_normed.clear();
            by_normed.resize(if goes_on { mid.len() } else { 0 }, 0.0);
            let by_result = self.by_result(&gradient, &mut room);
            let sub_layer = Gradient {
                by_result: by_result.as_deref().unwrap_or(&gradient),
                by_normed: &mut by_normed,
            };
            let at = SubLayerInput {
                rows: mid,
                units: &mut units,
            };
            let own = self.back_through_feed_forward(batch, index, at, sub_layer, &mut room)?;
            if were_kept {
                // The room for the next step's.
                tape.units[index] = units;
            }
            room.scaled = by_result.unwrap_or_default();
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
            by_normed.fill(0.0);
            let by_result = self.by_result(&gradient, &mut room);
            let sub_layer = Gradient {
                by_result: by_result.as_deref().unwrap_or(&gradient),
                by_normed: &mut by_normed,
            };
            self.back_through_attention(batch, index, tape, sub_layer, &mut room)?;
            room.scaled = by_result.unwrap_or_default();
            let norm = &self.layers[index].attention.norm;
            self.add_normed(&tape.input[index], norm, &by_normed, &mut gradient);
        }
        Ok(gradients)
    }

    /// The gradient by what a sub-layer adds to the residual stream; `None` where it is the
    /// stream's own.
    fn by_result(&self, gradient: &[f32], room: &mut Room) -> Option<Vec<f32>> {
        let scale = self.config.residual_scale;
        (scale != 1.0).then(|| {
            let mut scaled = std::mem::take(&mut room.scaled);
            scaled.clear();
            scaled.extend(gradient.iter().map(|value| scale * value));
            scaled
        })
    }

    /// Adds what goes through a sub-layer's norm to the residual stream's gradient.
    fn add_normed(&self, x: &[f32], norm: &[f32], by_normed: &[f32], gradient: &mut [f32]) {
        let eps = self.config.rms_norm_eps;
        add_norm_gradient(&self.ops.pool, x, norm, eps, by_normed, gradient);
    }
}
