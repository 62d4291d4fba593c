//! Test-time adaptation: before a sequence goes on, vectors that steer it take a few gradient steps
//! on the cross-entropy of its own context. The model's weights stay as they are.
//!
//! Router adaptation is "Rewiring Experts on the Fly" (<https://arxiv.org/abs/2510.14853>): a
//! vector on the router logits of some layers. SLOT (<https://arxiv.org/abs/2505.12392>) is one
//! vector on the final hidden state.

mod attention_backward;
mod backward;
mod config;
mod feed_forward_backward;
mod foreign;
mod loss;
mod optimiser;
mod phase;
mod window;

pub use config::{
    AdaptationConfig, AdaptationConfigError, AdaptationMethod, KvPolicy, LayerScore, MIN_CONTEXT,
    RouterGradient, RouterLayers, ScoreOrder,
};
pub(super) use loss::add_offset;
pub use phase::{AdaptationPhase, AdaptationReport};
