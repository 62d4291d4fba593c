//! How much rewards read: tokens that the models behind them computed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A reward whose model reads prompts of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadingKind {
    Judge,
    Prm,
    ValueModel,
}

impl ReadingKind {
    pub const ALL: [Self; 3] = [Self::Judge, Self::Prm, Self::ValueModel];

    /// The reward's name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Judge => "judge",
            Self::Prm => "prm",
            Self::ValueModel => "value_model",
        }
    }
}

/// Tokens that rewards computed beside the policy's own; what a cache had is not counted.
#[derive(Debug, Default)]
pub struct ScorerTokens {
    /// By [`ReadingKind`].
    by_kind: [AtomicU64; ReadingKind::ALL.len()],
    all: Option<Arc<Self>>,
}

impl ScorerTokens {
    /// A count of its own that counts in `all` too.
    pub fn within(all: &Arc<Self>) -> Self {
        Self {
            all: Some(Arc::clone(all)),
            ..Self::default()
        }
    }

    pub(super) fn add(&self, kind: ReadingKind, num_tokens: usize) {
        self.by_kind[kind as usize].fetch_add(num_tokens as u64, Ordering::Relaxed);
        if let Some(all) = &self.all {
            all.add(kind, num_tokens);
        }
    }

    pub fn of(&self, kind: ReadingKind) -> u64 {
        self.by_kind[kind as usize].load(Ordering::Relaxed)
    }

    pub fn total(&self) -> u64 {
        ReadingKind::ALL.iter().map(|kind| self.of(*kind)).sum()
    }
}
