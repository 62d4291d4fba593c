//! What one step will run.

use crate::model::BlockId;

/// The rows of one running sequence: its next `num_rows` uncomputed tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ScheduledRows {
    /// Position in the scheduler's running list.
    pub running_index: usize,
    pub num_rows: usize,
}

/// One step: the rows to run, and the blocks to copy before (copy-on-write).
#[derive(Debug, Default)]
pub(super) struct ScheduledBatch {
    pub rows: Vec<ScheduledRows>,
    pub block_copies: Vec<(BlockId, BlockId)>,
}
