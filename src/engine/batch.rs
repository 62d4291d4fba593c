//! What one step will run.

use super::block_tables::BlockCopies;
use super::sequence::SeqId;

/// The rows of one running sequence: its next `num_rows` uncomputed tokens, then those of its draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ScheduledRows {
    pub seq: SeqId,
    pub num_rows: usize,
}

/// One step: the rows to run in order of admission, and the blocks to copy before (copy-on-write).
#[derive(Debug, Default)]
pub(super) struct ScheduledBatch {
    pub rows: Vec<ScheduledRows>,
    pub block_copies: BlockCopies,
}
