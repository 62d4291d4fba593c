//! What a sequence carries of its drafts.

use std::sync::Arc;

use super::acceptance::AcceptanceTable;
use super::config::{DraftCounts, Drafter, Speculative};
use crate::engine::request::TokenId;

/// A token that a draft might have had instead of one of its own: with them a draft is a caterpillar (SWIFT, section 3.3).
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) struct Leaf {
    /// Draft tokens before it.
    pub depth: usize,
    pub token_id: TokenId,
    /// What speaks for it, see [`AcceptanceTable`].
    pub(super) kind: usize,
}

/// What came of verifying a draft.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) struct Verdict {
    pub num_draft_tokens: usize,
    /// Of the draft's own tokens.
    pub num_accepted: usize,
    /// Which leaf was accepted after them.
    pub leaf: Option<usize>,
    /// Whether the sequence ended with its newest token.
    pub is_ended: bool,
}

/// The tokens that a sequence is expected to go on with, and what came of earlier ones.
#[derive(Debug, Clone, Default)]
pub(in crate::engine) struct Draft {
    /// Who may draft.
    pub speculative: Speculative,
    /// Text that the client expects the answer to repeat.
    pub prediction: Option<Arc<[TokenId]>>,
    /// To be verified in this step; empty between steps.
    pub token_ids: Vec<TokenId>,
    /// Other tokens for positions of the draft, verified beside it.
    pub leaves: Vec<Leaf>,
    /// Their positions in the sequence.
    pub leaf_positions: Vec<u32>,
    /// Tokens that a model will draft once the step is scheduled.
    pub num_planned: usize,
    /// Tokens whose KV the draft model has.
    pub num_computed_tokens: usize,
    pub(super) drafter: Option<Drafter>,
    /// What speaks for each of `token_ids`, see [`AcceptanceTable`].
    pub(super) kinds: Vec<usize>,
    /// Steps since something was drafted, though something could have been.
    pub(super) num_idle_steps: u32,
    /// Steps since something was looked up.
    pub(super) num_steps_without_lookup: u32,
    pub counts: DraftCounts,
    pub(super) acceptance: [AcceptanceTable; Drafter::ALL.len()],
}

impl Draft {
    pub(in crate::engine) fn new(speculative: Speculative, prediction: Vec<TokenId>) -> Self {
        Self {
            speculative,
            prediction: (!prediction.is_empty()).then(|| prediction.into()),
            ..Self::default()
        }
    }

    /// Rows that the draft takes in the step.
    pub(in crate::engine) fn num_rows(&self) -> usize {
        self.token_ids.len() + self.leaves.len() + self.num_planned
    }

    /// Drafts nothing in this step.
    pub(in crate::engine) fn clear(&mut self) {
        self.token_ids.clear();
        self.kinds.clear();
        self.leaves.clear();
        self.leaf_positions.clear();
        self.num_planned = 0;
        self.drafter = None;
    }
}
