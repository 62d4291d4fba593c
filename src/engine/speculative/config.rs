//! What an operator or a request chooses.

use std::sync::{Mutex, PoisonError};

use crate::model::SkipSet;

/// Draft tokens of one sequence in one step, at most: with the row they follow they fill one tile of sixteen rows.
pub const DEFAULT_NUM_SPECULATIVE_TOKENS: usize = 15;
/// More would be verified in vain, and each takes a row of logits.
pub const MAX_NUM_SPECULATIVE_TOKENS: usize = 63;
/// Fewer tokens in a row are found too often in a text to say how it goes on.
pub const DEFAULT_PROMPT_LOOKUP_MIN: usize = 2;

/// Who drafts the tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Speculative {
    /// Nobody: every step yields one token.
    #[default]
    Off,
    /// What followed the same tokens earlier in the prompt, the answer or the request's prediction.
    PromptLookup,
    /// The model itself without some of its sub-layers.
    Swift,
    /// A small model with the same tokenizer.
    DraftModel,
    /// Whichever is expected to be fastest, and nobody when drafting would not pay.
    Auto,
}

impl Speculative {
    pub const ALL: [Self; 5] = [
        Self::Off,
        Self::PromptLookup,
        Self::Swift,
        Self::DraftModel,
        Self::Auto,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::PromptLookup => "prompt-lookup",
            Self::Swift => "swift",
            Self::DraftModel => "draft-model",
            Self::Auto => "auto",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|choice| choice.name() == name)
    }

    /// Whether it names who drafts, instead of leaving it to the engine.
    pub fn names_drafter(self) -> bool {
        !matches!(self, Self::Off | Self::Auto)
    }

    /// Whether this drafter may draft.
    pub(in crate::engine) fn allows(self, drafter: Drafter) -> bool {
        match self {
            Self::Off => false,
            _ if drafter == Drafter::Forced => true,
            // SWIFT has not been the fastest on any model measured so far (docs/benchmarks.md).
            Self::Auto => drafter != Drafter::Swift,
            Self::PromptLookup => drafter == Drafter::PromptLookup,
            Self::Swift => drafter == Drafter::Swift,
            Self::DraftModel => drafter == Drafter::DraftModel,
        }
    }
}

/// How an engine drafts.
#[derive(Debug, Clone, PartialEq)]
pub struct SpeculativeConfig {
    /// For requests that choose nothing.
    pub default: Speculative,
    /// Draft tokens of one sequence in one step, at most.
    pub num_speculative_tokens: usize,
    /// Tokens that must be found again before what followed them is drafted.
    pub prompt_lookup_min: usize,
    /// Sub-layers that a SWIFT draft leaves out.
    pub skip_set: Option<SkipSet>,
    /// Draft whenever there is something to draft, whatever it costs (tests and measurements).
    pub ignores_costs: bool,
}

impl Default for SpeculativeConfig {
    fn default() -> Self {
        Self {
            default: Speculative::Off,
            num_speculative_tokens: DEFAULT_NUM_SPECULATIVE_TOKENS,
            prompt_lookup_min: DEFAULT_PROMPT_LOOKUP_MIN,
            skip_set: None,
            ignores_costs: false,
        }
    }
}

/// Who drafted a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Drafter {
    PromptLookup,
    Swift,
    DraftModel,
    /// The constraint on the answer, where only one text may come next. It drafts before all
    /// others.
    Forced,
}

impl Drafter {
    pub const ALL: [Self; 4] = [
        Self::PromptLookup,
        Self::Swift,
        Self::DraftModel,
        Self::Forced,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::PromptLookup => "prompt-lookup",
            Self::Swift => "swift",
            Self::DraftModel => "draft-model",
            Self::Forced => "forced",
        }
    }
}

/// What came of drafts. Counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DraftCounts {
    /// Steps that verified a draft of a sequence.
    pub num_drafts: u64,
    /// Tokens in them.
    pub num_draft_tokens: u64,
    /// Those of the tokens that the model chose too.
    pub num_accepted_tokens: u64,
}

impl std::ops::AddAssign for DraftCounts {
    fn add_assign(&mut self, other: Self) {
        self.num_drafts += other.num_drafts;
        self.num_draft_tokens += other.num_draft_tokens;
        self.num_accepted_tokens += other.num_accepted_tokens;
    }
}

/// [`DraftCounts`] that several readers of streams add to.
#[derive(Debug, Default)]
pub struct SharedDrafts(Mutex<DraftCounts>);

impl SharedDrafts {
    pub fn add(&self, counts: DraftCounts) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += counts;
    }

    pub fn total(&self) -> DraftCounts {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DraftCounts {
    pub(in crate::engine) fn count(&mut self, num_draft_tokens: usize, num_accepted: usize) {
        self.num_drafts += 1;
        self.num_draft_tokens += num_draft_tokens as u64;
        self.num_accepted_tokens += num_accepted as u64;
    }
}
