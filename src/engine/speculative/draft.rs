//! What a sequence carries of its drafts.

use std::sync::Arc;

use super::acceptance::AcceptanceTable;
use super::config::{DraftCounts, Drafter, Speculative};
use crate::engine::request::TokenId;

/// The tokens that a sequence is expected to go on with, and what came of earlier ones.
#[derive(Debug, Clone, Default)]
pub(in crate::engine) struct Draft {
    /// Who may draft.
    pub speculative: Speculative,
    /// Text that the client expects the answer to repeat.
    pub prediction: Option<Arc<[TokenId]>>,
    /// To be verified in this step; empty between steps.
    pub token_ids: Vec<TokenId>,
    pub drafter: Option<Drafter>,
    /// Tokens that agreed before the first draft token.
    pub match_len: usize,
    /// Steps since something was drafted, though something could have been.
    pub num_idle_steps: u32,
    pub counts: DraftCounts,
    pub(super) acceptance: AcceptanceTable,
}

impl Draft {
    pub(in crate::engine) fn new(speculative: Speculative, prediction: Vec<TokenId>) -> Self {
        Self {
            speculative,
            prediction: (!prediction.is_empty()).then(|| prediction.into()),
            ..Self::default()
        }
    }
}
