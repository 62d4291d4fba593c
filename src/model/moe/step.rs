//! A mixture-of-experts sub-layer over the rows of a step.

use super::{Moe, SharedExpert};
use crate::model::causal_lm::ForwardError;
use crate::model::layer_step::LayerStep;
use crate::model::ops::{Ops, Residual};
use crate::model::profile::Operator;

/// Buffers of a step; they stay as the last mixture-of-experts layer left them.
pub(in crate::model) struct MoeScratch<O: Ops> {
    /// `[rows, num_experts]`, steering included.
    pub logits: O::Rows,
    pub routing: O::Routing,
    /// `[rows, 1]`: logits of the shared expert's weight.
    shared_weights: O::Rows,
}

impl<O: Ops> Default for MoeScratch<O> {
    fn default() -> Self {
        Self {
            logits: O::Rows::default(),
            routing: O::Routing::default(),
            shared_weights: O::Rows::default(),
        }
    }
}

impl<O: Ops> LayerStep<'_, '_, O> {
    /// Norm, router, experts and the shared expert.
    pub fn add_moe(&mut self, layer: &Moe<O>) -> Result<(), ForwardError> {
        let eps = self.config.rms_norm_eps;
        let Some(config) = &self.config.moe else {
            return Ok(());
        };
        let s = &mut *self.scratch;
        self.ops.norm(&s.x, &layer.norm, eps, &mut s.activations)?;
        self.stopwatch.mark(Operator::Norm);
        let logits = &mut s.moe.logits;
        self.ops
            .project(&s.activations, [&layer.router], [&mut *logits])?;
        self.ops.steer_router(self.step, self.index, logits)?;
        self.stopwatch.mark(Operator::Router);
        let (bias, routing) = (layer.correction_bias.as_ref(), &mut s.moe.routing);
        self.ops.route(&config.gating, logits, bias, routing)?;
        if self.step.num_rows() == 0 {
            // Nobody wants logits of this chunk of a prompt.
            return Ok(());
        }
        if let Some(shared) = &layer.shared {
            self.add_shared(shared)?;
        }
        let s = &mut *self.scratch;
        let scale = self.config.residual_scale;
        let experts = layer.experts(self.config.family.glu);
        let (x, routing) = (&s.activations, &mut s.moe.routing);
        self.ops
            .add_experts(x, routing, &experts, scale, &mut s.x)?;
        self.stopwatch.mark(Operator::Experts);
        Ok(())
    }

    fn add_shared(&mut self, layer: &SharedExpert<O>) -> Result<(), ForwardError> {
        let (s, scale) = (&mut *self.scratch, self.config.residual_scale);
        let weights = [&layer.gate, &layer.up];
        self.ops.gate_up(
            &s.activations,
            weights,
            self.config.family.glu,
            &mut s.gated,
        )?;
        if layer.weight.is_none() && scale == 1.0 {
            return Ok(self.ops.project_add(&s.gated, &layer.down, &mut s.x)?);
        }
        self.ops.project(&s.gated, [&layer.down], [&mut s.h])?;
        match &layer.weight {
            Some(weight) => {
                let logits = &mut s.moe.shared_weights;
                self.ops.project(&s.activations, [weight], [&mut *logits])?;
                self.ops.add_weighted(&s.h, logits, scale, &mut s.x)?;
            }
            None => {
                let residual = Residual {
                    post_norm: None,
                    eps: self.config.rms_norm_eps,
                    scale,
                };
                self.ops.add_residual(&mut s.h, &residual, &mut s.x)?;
            }
        }
        Ok(())
    }
}
