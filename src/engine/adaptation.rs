//! A sequence's test-time adaptation: when phases begin, and what steers it meanwhile.

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::model::adapt::MIN_CONTEXT;
use crate::model::{AdaptationConfig, AdaptationPhase, AdaptationReport, Steering};

/// What a sequence asks for, and how far it is.
#[derive(Debug, Clone)]
pub(super) struct Adaptation {
    config: Arc<AdaptationConfig>,
    /// The one that runs: no token is computed meanwhile.
    pub phase: Option<AdaptationPhase>,
    num_phases: usize,
    /// Tokens of the sequence at which the next phase begins.
    next_at: usize,
}

impl Adaptation {
    pub(super) fn new(config: Arc<AdaptationConfig>) -> Self {
        Self {
            config,
            phase: None,
            num_phases: 0,
            next_at: 0,
        }
    }

    /// Whether a phase is to begin before another token is sampled.
    pub(super) fn is_due(&self, num_tokens: usize, num_output_tokens: usize) -> bool {
        let is_again = self.num_phases > 0 || num_output_tokens > 0;
        num_tokens > MIN_CONTEXT
            && num_tokens >= self.next_at
            && self.num_phases < self.config.max_phases
            && (self.config.interval > 0 || !is_again)
    }

    /// Tokens that a phase learns from.
    pub(super) fn window(&self) -> usize {
        self.config.window
    }

    /// The first token of the window that a phase over `num_tokens` tokens learns from.
    pub(super) fn window_start(&self, num_tokens: usize) -> usize {
        (num_tokens - 1).saturating_sub(self.config.window)
    }

    pub(super) fn begin(&mut self, steering: Option<&Steering>) {
        let start = steering.cloned().unwrap_or_default();
        self.phase = Some(AdaptationPhase::new(Arc::clone(&self.config), start));
    }

    /// Takes the result of the phase that is done.
    pub(super) fn end(&mut self, num_tokens: usize) -> Option<(Steering, AdaptationReport)> {
        let phase = self.phase.take()?;
        self.skip(num_tokens);
        Some(phase.finish())
    }

    /// Counts a phase, run or not.
    pub(super) fn skip(&mut self, num_tokens: usize) {
        self.num_phases += 1;
        self.next_at = num_tokens + self.config.interval;
    }

    /// Whether more phases may come while tokens are generated.
    pub(super) fn is_repeated(&self) -> bool {
        self.config.interval > 0 && self.config.max_phases > 1
    }
}

/// Tells apart the keys and values that steerings make; `None` where they make none of their own.
pub(super) fn fingerprint(steering: Option<&Steering>) -> Option<u64> {
    let steering = steering.filter(|steering| steering.changes_kv())?;
    let mut hasher = Xxh3::new();
    for (layer, delta) in steering.router.iter().enumerate() {
        for value in delta.iter().flatten() {
            hasher.update(&(layer as u32).to_le_bytes());
            hasher.update(&value.to_le_bytes());
        }
    }
    Some(hasher.digest())
}
