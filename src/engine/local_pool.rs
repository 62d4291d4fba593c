//! Which blocks have a place in the pool of the layers with a sliding window.
//!
//! These layers read nothing behind the window, so that a block needs a place there only as long as
//! some sequence's window reaches it. A place is in exactly one state:
//! 1. *free*: it belongs to no block;
//! 2. *cached*: it belongs to a known block, and no sequence needs it (taken away oldest first,
//!    whatever becomes of the block);
//! 3. *used*: `ref_count` sequences need it.

use std::collections::BTreeMap;

use crate::model::BlockId;

/// The place of one block.
#[derive(Debug, Default, Clone)]
struct Place {
    /// The block's number in this pool; `None` where it has no place there.
    local: Option<BlockId>,
    ref_count: u32,
    /// When it became unreferenced; its key in `cached`.
    released_at: u64,
}

#[derive(Debug)]
pub(super) struct LocalPool {
    /// Places by block.
    places: Vec<Place>,
    num_places: usize,
    free: Vec<BlockId>,
    /// Blocks by when their places became unreferenced.
    cached: BTreeMap<u64, BlockId>,
    /// Places with a reference.
    num_referenced: usize,
    clock: u64,
}

impl LocalPool {
    /// `num_places` places for some of `num_blocks` blocks.
    pub(super) fn new(num_blocks: usize, num_places: usize) -> Self {
        Self {
            places: vec![Place::default(); num_blocks],
            num_places,
            free: (0..num_places as BlockId).rev().collect(),
            cached: BTreeMap::new(),
            num_referenced: 0,
            clock: 0,
        }
    }

    /// Places that an allocation can get.
    pub(super) fn num_available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    pub(super) fn num_used(&self) -> usize {
        self.num_referenced
    }

    /// A block's place.
    pub(super) fn get(&self, block: BlockId) -> Option<BlockId> {
        self.places[block as usize].local
    }

    /// A place of unknown contents with one reference, for a block that has none; takes the oldest
    /// cached place when none is free.
    pub(super) fn allocate(&mut self, block: BlockId) -> Option<BlockId> {
        if self.free.is_empty() {
            let (_, oldest) = self.cached.pop_first()?;
            self.free.extend(self.places[oldest as usize].local.take());
        }
        let local = self.free.pop()?;
        let place = &mut self.places[block as usize];
        assert!(
            place.local.is_none() && place.ref_count == 0,
            "block {block} has a place already; this is a bug"
        );
        place.local = Some(local);
        place.ref_count = 1;
        self.num_referenced += 1;
        Some(local)
    }

    /// Adds a reference to a block's place, if it has one.
    pub(super) fn share(&mut self, block: BlockId) -> Option<BlockId> {
        let place = &mut self.places[block as usize];
        let local = place.local?;
        if place.ref_count == 0 {
            self.cached
                .remove(&place.released_at)
                .expect("an unreferenced place is cached; this is a bug");
            self.num_referenced += 1;
        }
        place.ref_count += 1;
        Some(local)
    }

    /// Drops a reference to a block's place. The last one frees it, unless the block `is_known`.
    pub(super) fn release(&mut self, block: BlockId, is_known: bool) {
        let place = &mut self.places[block as usize];
        assert!(
            place.ref_count > 0,
            "the place of block {block} is free already; this is a bug"
        );
        place.ref_count -= 1;
        if place.ref_count > 0 {
            return;
        }
        self.num_referenced -= 1;
        if is_known {
            self.clock += 1;
            place.released_at = self.clock;
            self.cached.insert(self.clock, block);
        } else {
            self.free.extend(place.local.take());
        }
    }

    /// Frees the place of a block that is known no more, unless a sequence still needs it.
    pub(super) fn forget(&mut self, block: BlockId) {
        let place = &mut self.places[block as usize];
        if place.ref_count == 0
            && let Some(local) = place.local.take()
        {
            self.cached.remove(&place.released_at);
            self.free.push(local);
        }
    }

    /// What the counts of places say that cannot be, if anything: they are free, cached or used.
    pub(super) fn miscounted(&self) -> Option<String> {
        let (free, cached) = (self.free.len(), self.cached.len());
        let (used, all) = (self.num_referenced, self.num_places);
        let is_right = free + cached + used == all;
        (!is_right).then(|| format!("{free} free, {cached} cached, {used} used of {all} places"))
    }

    /// Where places do not agree with the `tables` that need them, pairs of a block and its place,
    /// if anywhere. `is_known` tells which blocks somebody may ask for.
    pub(super) fn inconsistency(
        &self,
        needed: impl Iterator<Item = (BlockId, BlockId)>,
        is_known: impl Fn(BlockId) -> bool,
    ) -> Option<String> {
        let mut references = vec![0; self.places.len()];
        for (block, local) in needed {
            references[block as usize] += 1;
            if self.get(block) != Some(local) {
                return Some(format!("a table has place {local} for block {block}"));
            }
        }
        let mut taken = vec![0; self.num_places];
        for local in &self.free {
            taken[*local as usize] += 1;
        }
        for (index, (place, expected)) in self.places.iter().zip(references).enumerate() {
            let count = place.ref_count;
            if count != expected {
                return Some(format!(
                    "the place of block {index} has {count} references of {expected}"
                ));
            }
            let Some(local) = place.local else {
                continue;
            };
            taken[local as usize] += 1;
            let block = index as BlockId;
            let is_cached = self.cached.get(&place.released_at) == Some(&block);
            if count == 0 && !(is_cached && is_known(block)) {
                return Some(format!("block {index} keeps a place that nobody can need"));
            }
        }
        let wrong = taken.iter().position(|count| *count != 1);
        wrong.map(|local| format!("place {local} belongs to {} blocks", taken[local]))
    }
}

#[cfg(test)]
mod tests;
