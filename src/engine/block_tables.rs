//! Where a sequence's keys and values lie, and which blocks are copied before a step.

use crate::model::{BlockId, NO_BLOCK};

/// The blocks of a sequence, and their places in the pool of the layers with a sliding window.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct BlockTables {
    pub blocks: Vec<BlockId>,
    /// As long as `blocks`, with [`NO_BLOCK`] where the sequence needs no place any more; empty
    /// where there is no such pool.
    pub local: Vec<BlockId>,
}

impl BlockTables {
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Adds a block with its place, where there is a pool of places.
    pub(super) fn push(&mut self, block: BlockId, place: Option<BlockId>) {
        self.blocks.push(block);
        self.local.extend(place);
    }

    /// Takes the last block, and its place or [`NO_BLOCK`].
    pub(super) fn pop(&mut self) -> Option<(BlockId, BlockId)> {
        let place = self.local.pop().unwrap_or(NO_BLOCK);
        Some((self.blocks.pop()?, place))
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.blocks.truncate(len);
        self.local.truncate(len);
    }

    /// Whether the sequence needs a place of the block at `index`. Without a pool it needs none.
    pub(super) fn has_place(&self, index: usize) -> bool {
        (self.local.get(index)).is_some_and(|place| *place != NO_BLOCK)
    }

    /// The blocks whose places it needs, with these.
    pub(super) fn needed_places(&self) -> impl Iterator<Item = (BlockId, BlockId)> + '_ {
        let pairs = self.blocks.iter().copied().zip(self.local.iter().copied());
        pairs.filter(|(_, place)| *place != NO_BLOCK)
    }
}

/// Blocks `(source, destination)` to copy in this order (copy-on-write).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockCopies {
    pub blocks: Vec<(BlockId, BlockId)>,
    /// Their places in the pool of the layers with a sliding window, where there is one.
    pub local: Vec<(BlockId, BlockId)>,
}

impl BlockCopies {
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.local.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn clear(&mut self) {
        self.blocks.clear();
        self.local.clear();
    }

    pub(super) fn extend(&mut self, others: &Self) {
        self.blocks.extend_from_slice(&others.blocks);
        self.local.extend_from_slice(&others.local);
    }

    /// Leaves out copies into the blocks of a table.
    pub(super) fn drop_into(&mut self, tables: &BlockTables) {
        (self.blocks).retain(|(_, target)| !tables.blocks.contains(target));
        (self.local).retain(|(_, target)| !tables.local.contains(target));
    }
}
