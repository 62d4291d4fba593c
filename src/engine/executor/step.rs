//! A step as data: what an executor gets and what it gives back.

use std::ops::Range;
use std::sync::Arc;

use crate::engine::block_tables::BlockCopies;
use crate::engine::request::{
    AdapterId, ConstraintError, PoolingParams, SamplingParams, Steering, TokenId, TokenLogprobs,
};
use crate::model::{BlockId, SkipSet};

/// One ragged step: prefill chunks, decode rows and rows of drafts mix freely. It owns all that it names.
#[derive(Debug, Clone, Default)]
pub struct StepInput {
    /// To be made before anything is computed.
    pub block_copies: BlockCopies,
    /// `[num_rows]`
    pub token_ids: Vec<TokenId>,
    /// `[num_rows]`, position of each row in its sequence.
    pub positions: Vec<u32>,
    /// `[num_rows]`, `block_id * block_size + offset` where the row's K and V are written.
    pub slot_mapping: Vec<u32>,
    /// The same in the pool of the layers with a sliding window; empty where there is none.
    pub local_slot_mapping: Vec<u32>,
    /// In the order of their rows.
    pub sequences: Vec<StepSequence>,
    /// Block tables of all sequences, one after the other.
    pub block_tables: Vec<BlockId>,
    /// The same in the pool of the layers with a sliding window, with [`crate::model::NO_BLOCK`]
    /// behind the window; empty where there is none.
    pub local_tables: Vec<BlockId>,
    /// Positions of the leaves of all sequences' drafts, one after the other.
    pub leaf_positions: Vec<u32>,
    /// Sub-layers left out. Nothing that such a step writes to the cache may outlive the draft that it is for.
    pub skip: Option<Arc<SkipSet>>,
    /// Ascending rows whose logits are read; `samples`, `scores` and `pools` count among them.
    pub logits_rows: Vec<u32>,
    pub samples: Vec<SampleSpec>,
    pub scores: Vec<ScoreSpec>,
    pub pools: Vec<PoolSpec>,
}

/// The rows of one sequence.
#[derive(Debug, Clone)]
pub struct StepSequence {
    pub num_rows: usize,
    /// Tokens in the KV cache once the step has run, leaves of a draft included.
    pub context_len: usize,
    /// Its part of [`StepInput::block_tables`], and of [`StepInput::local_tables`].
    pub block_table: Range<usize>,
    /// Its part of [`StepInput::leaf_positions`].
    pub leaves: Range<usize>,
    pub adapter: Option<AdapterId>,
    /// What adaptation changes for it.
    pub steering: Option<Arc<Steering>>,
}

/// How one token is drawn from one row of logits.
///
/// Rows of a draft form a tree: a spec with `after` counts only if that spec drew that token. An executor may leave it out
/// otherwise ([`Sampled::Skipped`]), or draw all and let the engine choose.
#[derive(Debug, Clone)]
pub struct SampleSpec {
    /// Which of the step's logits.
    pub row: u32,
    /// The spec before it in its draft, and the token that makes this one count.
    pub after: Option<(u32, TokenId)>,
    pub params: Arc<SamplingParams>,
    /// In `0..1`, drawn from the counter-based generator; only read when the temperature is above 0.
    pub uniform: f64,
    /// End-of-sequence and stop tokens are out of reach ([`SamplingParams::min_tokens`]). A spec
    /// with a mask has none: its mask says so.
    pub masks_ends: bool,
    /// Tokens of the prompt and the output so far, and how often the output has them; empty without penalties.
    pub counts: Vec<(TokenId, u32)>,
    /// Which of the step's masks.
    pub mask: Option<u32>,
    /// `Some(k)`: the token's logprob and the top `k` alternatives.
    pub num_logprobs: Option<usize>,
    /// Report the final hidden state of the row.
    pub hidden_state: bool,
    /// `Some(k)`: the token's probability and the `k` likeliest tokens beside it (drafts).
    pub num_alternatives: Option<usize>,
}

/// What came of a [`SampleSpec`].
#[derive(Debug, Clone, PartialEq)]
pub enum Sampled {
    Token {
        token_id: TokenId,
        logprobs: Option<TokenLogprobs>,
        /// `[hidden_size]`
        hidden_state: Option<Vec<f32>>,
        alternatives: Option<Alternatives>,
    },
    /// The row does not follow from what was drawn before it.
    Skipped,
    /// The logits are not finite numbers.
    NotFinite,
    /// Masks leave no token.
    NothingAllowed,
    /// Its constraint gives no mask. Executors never say this.
    Unmasked(ConstraintError),
}

/// How sure the model is of a token, and what else it might have been.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Alternatives {
    /// Under unmodified logits.
    pub probability: f32,
    /// `(token_id, probability)`, likeliest first, without the token itself.
    pub others: Vec<(TokenId, f32)>,
}

/// A token whose logprob is wanted: one of a prompt.
#[derive(Debug, Clone, Copy)]
pub struct ScoreSpec {
    /// Which of the step's logits.
    pub row: u32,
    pub token_id: TokenId,
    /// Likeliest tokens reported beside it.
    pub num_top: usize,
}

/// A row that is read as it is.
#[derive(Debug, Clone)]
pub struct PoolSpec {
    /// Which of the step's logits.
    pub row: u32,
    /// Which of its logits are reported, and whether its hidden state is.
    pub params: Arc<PoolingParams>,
}

/// What a [`PoolSpec`] reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Pooled {
    /// One of each of [`PoolingParams::token_ids`].
    pub logits: Vec<f32>,
    /// `[hidden_size]`
    pub hidden_state: Option<Vec<f32>>,
}

/// What came of a step.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// One of each of [`StepInput::samples`].
    pub samples: Vec<Sampled>,
    /// One of each of [`StepInput::scores`]; `None` where the logits are not finite.
    pub scores: Vec<Option<TokenLogprobs>>,
    /// One of each of [`StepInput::pools`].
    pub pools: Vec<Pooled>,
    /// The step itself, so that its memory serves the next one.
    pub input: StepInput,
}

impl StepInput {
    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        let Self {
            block_copies,
            token_ids,
            positions,
            slot_mapping,
            local_slot_mapping,
            sequences,
            block_tables,
            local_tables,
            leaf_positions,
            skip,
            logits_rows,
            samples,
            scores,
            pools,
        } = self;
        block_copies.clear();
        token_ids.clear();
        positions.clear();
        slot_mapping.clear();
        local_slot_mapping.clear();
        sequences.clear();
        block_tables.clear();
        local_tables.clear();
        leaf_positions.clear();
        *skip = None;
        logits_rows.clear();
        samples.clear();
        scores.clear();
        pools.clear();
    }

    pub fn num_rows(&self) -> usize {
        self.token_ids.len()
    }

    /// Adds a sequence whose rows are pushed next. `local_table` is as long as `block_table`, or
    /// empty where there is no pool for sliding windows.
    pub fn push_sequence(
        &mut self,
        [block_table, local_table]: [&[BlockId]; 2],
        leaf_positions: &[u32],
        rows: StepSequence,
    ) {
        let table = self.block_tables.len();
        self.block_tables.extend_from_slice(block_table);
        self.local_tables.extend_from_slice(local_table);
        let leaves = self.leaf_positions.len();
        self.leaf_positions.extend_from_slice(leaf_positions);
        self.sequences.push(StepSequence {
            block_table: table..self.block_tables.len(),
            leaves: leaves..self.leaf_positions.len(),
            ..rows
        });
    }

    /// Reads the logits of a row of the step; returns which of the step's logits they are.
    pub fn read_row(&mut self, row: usize) -> u32 {
        self.logits_rows.push(row as u32);
        self.logits_rows.len() as u32 - 1
    }
}

impl StepSequence {
    /// Rows of the model itself: no adapter, nothing steered.
    pub fn plain(num_rows: usize, context_len: usize) -> Self {
        Self {
            num_rows,
            context_len,
            block_table: 0..0,
            leaves: 0..0,
            adapter: None,
            steering: None,
        }
    }
}

impl SampleSpec {
    /// The likeliest token of logits row `row`.
    pub fn greedy(row: u32, params: &Arc<SamplingParams>) -> Self {
        Self {
            row,
            after: None,
            params: Arc::clone(params),
            uniform: 0.0,
            masks_ends: false,
            counts: Vec::new(),
            mask: None,
            num_logprobs: None,
            hidden_state: false,
            num_alternatives: None,
        }
    }
}

impl SampleSpec {
    /// The same under one of the step's masks, if it has one.
    pub fn masked(self, mask: Option<u32>) -> Self {
        Self {
            mask,
            masks_ends: self.masks_ends && mask.is_none(),
            ..self
        }
    }
}

impl Sampled {
    pub fn token_id(&self) -> Option<TokenId> {
        match self {
            Self::Token { token_id, .. } => Some(*token_id),
            _ => None,
        }
    }
}
