//! What a plan is made of, and how the kernels read it.

use super::super::cache::padded_dim;

/// No state, no token.
pub(in super::super) const NONE: u32 = u32::MAX;
/// In a unit's number of splits, and in a row's number of folded splits.
const FLAG: u32 = 1 << 31;
/// Floats of a state beside its sums of values.
const STATE_HEAD: usize = 4;

/// What a plan must know of a model, its cache and the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanShape {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub num_blocks: usize,
    pub block_size: usize,
    pub num_multiprocessors: usize,
}

impl PlanShape {
    /// Floats of one state: of all heads of a row over one split.
    pub(in super::super) fn state_len(&self) -> usize {
        let padded = padded_dim(self.head_dim).unwrap_or(self.head_dim);
        self.num_heads * (STATE_HEAD + padded)
    }
}

/// One row of the batch, as the kernels read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct PlannedRow {
    /// Index among the batch's rows.
    pub row: u32,
    /// It sees the tokens up to here.
    pub position: u32,
    /// Of its states; [`NONE`] where a unit writes the result itself.
    pub first_state: u32,
    /// Splits whose states are one, at least one.
    pub num_folded: u32,
    /// Its last split is a unit of its own, where its token stands in for another.
    pub is_leaf: bool,
}

impl PlannedRow {
    /// The splits that it reads with others: all, but for a leaf's last.
    pub fn num_shared_splits(&self, split_tokens: usize) -> usize {
        self.position as usize / split_tokens + usize::from(!self.is_leaf)
    }

    pub fn words(&self) -> [u32; 4] {
        let flag = if self.is_leaf { FLAG } else { 0 };
        [
            self.row,
            self.position,
            self.first_state,
            self.num_folded | flag,
        ]
    }
}

/// Rows, or some heads of them, that read a range of splits together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Unit {
    /// Among the planned rows.
    pub first_row: u32,
    pub num_rows: u32,
    /// Among the heads of one KV head.
    pub first_head: u32,
    pub num_heads: u32,
    /// Where the block table begins.
    pub table: u32,
    pub first_split: u32,
    pub num_splits: u32,
    pub is_folded: bool,
    /// Tokens from here on are seen by none of the rows.
    pub limit: u32,
    pub min_position: u32,
    /// The token that takes the place of the last one, for a leaf's own unit.
    pub own: u32,
}

impl Unit {
    pub fn words(&self) -> [u32; 8] {
        let flag = if self.is_folded { FLAG } else { 0 };
        [
            self.first_row,
            self.num_rows | self.num_heads << 8 | self.first_head << 16,
            self.table,
            self.first_split,
            self.num_splits | flag,
            self.limit,
            self.min_position,
            self.own,
        ]
    }
}
