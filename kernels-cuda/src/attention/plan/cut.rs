//! How large units are: enough of them to fill the device, and no more states than need be.

use std::ops::Range;

use super::{AttentionPlan, Piece, PlanShape, THIN_QUERIES, WIDE_QUERIES};

/// Blocks that a multiprocessor should have, at least, when work is cut.
const BLOCKS_PER_MULTIPROCESSOR: usize = 2;
/// States of wide units take at most so much memory where folding avoids it.
const STATE_BYTES_MAX: usize = 256 << 20;

/// How pieces are cut into units.
pub(super) struct Cut {
    /// Heads of a KV head: at most 16 each.
    pub parts: Vec<Range<usize>>,
    pub rows_per_wide: usize,
    /// Of wide units whose states are kept apart.
    pub splits_per_unit: usize,
    /// A wide unit of at most so many splits merges them itself.
    max_folded: usize,
}

impl Cut {
    pub fn new(plan: &AttentionPlan, shape: &PlanShape) -> Self {
        let parts = parts_of(shape);
        let mut cut = Self {
            rows_per_wide: WIDE_QUERIES / parts[0].len(),
            parts,
            splits_per_unit: 1,
            max_folded: 0,
        };
        // Splits of all blocks of wide units, and the states of their rows.
        let (mut work, mut num_states) = (0, 0);
        for piece in plan.pieces.iter().filter(|piece| !cut.is_thin(piece)) {
            let num_chunks = piece.rows.len().div_ceil(cut.rows_per_wide);
            work += num_chunks * piece.splits.len() * cut.parts.len() * shape.num_kv_heads;
            num_states += piece.rows.len() * piece.splits.len();
        }
        let per_block = work / (shape.num_multiprocessors.max(1) * BLOCKS_PER_MULTIPROCESSOR);
        cut.splits_per_unit = (per_block / 4).max(1);
        cut.max_folded = match num_states * shape.state_len() * size_of::<f32>() {
            nbytes if nbytes > STATE_BYTES_MAX => usize::MAX,
            _ => 2 * per_block,
        };
        cut
    }

    pub fn is_thin(&self, piece: &Piece) -> bool {
        piece.rows.len() * self.parts[0].len() <= THIN_QUERIES
    }

    pub fn folds(&self, num_splits: usize) -> bool {
        num_splits <= self.max_folded
    }
}

/// The heads of a KV head in parts of at most 16, the largest first.
pub(super) fn parts_of(shape: &PlanShape) -> Vec<Range<usize>> {
    let group = shape.num_heads / shape.num_kv_heads;
    let len = group.div_ceil(group.div_ceil(THIN_QUERIES));
    let starts = (0..group).step_by(len);
    starts.map(|start| start..group.min(start + len)).collect()
}
