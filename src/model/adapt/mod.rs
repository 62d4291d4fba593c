//! Test-time adaptation: before a sequence goes on, vectors that steer it take a few gradient steps on the cross-entropy of its
//! own context. The model's weights stay as they are.
//!
//! Router adaptation is "Rewiring Experts on the Fly" (<https://arxiv.org/abs/2510.14853>): a vector on the router logits of some
//! layers. SLOT (<https://arxiv.org/abs/2505.12392>) is one vector on the final hidden state.

mod attention_backward;
mod backward;
mod config;
mod feed_forward_backward;
mod loss;
mod optimiser;
mod parallel;
mod phase;
mod window;

pub use config::{
    AdaptationConfig, AdaptationConfigError, AdaptationMethod, KvPolicy, LayerScore, MIN_CONTEXT,
    RouterGradient, RouterLayers, ScoreOrder,
};
pub(super) use loss::add_offset;
pub use phase::{AdaptationPhase, AdaptationReport};

use super::causal_lm::{ForwardBatch, ForwardError};

/// A model that gradients go back through.
pub trait Adaptable {
    /// One step of `phase`: the window's rows are computed under the current steering, and, unless it was the last, the steering
    /// moves. Row `i` predicts `targets[i]`. When the phase is done, the window's keys and values are those that its policy asks
    /// for.
    fn step_adaptation(
        &mut self,
        batch: &ForwardBatch<'_>,
        targets: &[u32],
        phase: &mut AdaptationPhase,
    ) -> Result<(), ForwardError>;
}
