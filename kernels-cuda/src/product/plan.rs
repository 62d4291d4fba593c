//! How a product is cut: along its inputs by the weight's shape alone, along its rows by their
//! number.

use super::layout::{Layout, M_BLOCK, SUPER_BLOCKS};
use crate::tensors::K_BLOCK;

/// A constant, whatever the device: the order of sums must not depend on where they are computed.
const MULTIPROCESSORS: usize = 132;
/// Units a multiprocessor should get at least, so that enough loads are under way.
const MIN_UNITS: usize = 3 * MULTIPROCESSORS;
/// Of the time in which all multiprocessors work.
const MIN_EFFICIENCY: f64 = 0.94;
/// What a part of a single super-block is worth: it ends before its block's loads are well under
/// way.
const SHORT_PART_VALUE: f64 = 0.85;
/// Most parts: their sums are written and read again.
const MAX_PARTS: usize = 32;
/// Rows that one tile takes at most.
pub const MAX_TILE_ROWS: usize = 64;
const TILE_ROWS: [usize; 4] = [8, 16, 32, MAX_TILE_ROWS];
/// Bytes of a row's inputs in a k block.
const LINE_BYTES: usize = K_BLOCK * 2;

/// How the inputs of a matrix are split. Parts are summed from zero and added in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Splits {
    pub num_parts: usize,
    /// K blocks of each part but the last, which may have fewer: whole super-blocks.
    pub part_blocks: usize,
}

/// How a matrix is split, by its shape.
pub fn splits(out_features: usize, in_features: usize) -> Splits {
    let m_blocks = out_features.div_ceil(M_BLOCK);
    let supers = in_features.div_ceil(K_BLOCK).div_ceil(SUPER_BLOCKS).max(1);
    let of = |part: usize| (supers.div_ceil(part), part);
    let mut candidates: Vec<_> = (1..=supers).map(of).collect();
    // From the fewest parts; of those with the same number, the evenest.
    candidates.sort_unstable();
    candidates.dedup_by_key(|(num_parts, _)| *num_parts);
    candidates.retain(|(num_parts, _)| *num_parts <= MAX_PARTS);
    let work = (m_blocks * supers) as f64;
    let efficiency = |&(num_parts, part): &(usize, usize)| {
        let rounds = (m_blocks * num_parts).div_ceil(MULTIPROCESSORS);
        work / (MULTIPROCESSORS * rounds * part) as f64
    };
    let units = |(num_parts, _): &(usize, usize)| m_blocks * num_parts;
    let good = candidates
        .iter()
        .find(|split| units(split) >= MIN_UNITS && efficiency(split) >= MIN_EFFICIENCY);
    // Small matrices: whatever keeps most multiprocessors at work with most loads.
    let value = |split: &(usize, usize)| {
        let loads = (units(split) as f64 / MIN_UNITS as f64).min(1.0);
        let length = if split.1 == 1 { SHORT_PART_VALUE } else { 1.0 };
        efficiency(split) * loads * length
    };
    let best = || {
        let mut best = candidates[0];
        for candidate in &candidates[1..] {
            if value(candidate) > value(&best) {
                best = *candidate;
            }
        }
        best
    };
    let (num_parts, part) = good.copied().unwrap_or_else(best);
    Splits {
        num_parts,
        part_blocks: part * SUPER_BLOCKS,
    }
}

/// How one launch cuts its rows and outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// 8, 16, 32 or 64.
    pub rows: usize,
    /// Blocks of outputs that a unit takes.
    pub m_blocks: usize,
    pub threads: usize,
    pub shared_bytes: usize,
    /// Whether a unit goes through all parts of the inputs.
    pub is_serial: bool,
}

impl Tile {
    /// `num_summed` matrices make one result.
    pub fn new(layout: Layout, rows: usize, is_serial: bool, num_summed: usize) -> Self {
        let m_blocks = if rows <= 16 { 1 } else { 2 };
        let threads = 128 * m_blocks;
        // As in `product.cuh`.
        let is_wide = layout.code_bits >= 8;
        let stage_blocks = if is_wide { 2 } else { 4 } / if rows <= 16 { 1 } else { 2 };
        let num_stages = if layout.code_bits == 8 { 4 } else { 3 };
        let weights = stage_blocks * layout.block_bytes() + layout.header_bytes();
        let stage = stage_blocks * rows * LINE_BYTES + m_blocks * weights;
        let totals = if is_serial {
            num_summed * m_blocks * M_BLOCK * rows * size_of::<f32>()
        } else {
            0
        };
        Self {
            rows,
            m_blocks,
            threads,
            shared_bytes: num_stages * stage + totals,
            is_serial,
        }
    }

    /// The tile for so many rows: the smallest that holds them all, or the largest that the device
    /// has room for.
    pub fn for_rows(
        layout: Layout,
        num_rows: usize,
        is_serial: bool,
        num_summed: usize,
        max_shared_bytes: usize,
    ) -> Self {
        let tiles = TILE_ROWS.map(|rows| Self::new(layout, rows, is_serial, num_summed));
        let fits = |tile: &&Self| tile.shared_bytes <= max_shared_bytes;
        let mut fitting = tiles.iter().filter(fits);
        let largest = fitting.clone().next_back().unwrap_or(&tiles[0]);
        *fitting
            .find(|tile| tile.rows >= num_rows)
            .unwrap_or(largest)
    }

    /// Sums that a unit leaves in the workspace.
    pub fn unit_sums(self) -> usize {
        self.m_blocks * M_BLOCK * self.rows
    }
}

#[cfg(test)]
#[path = "tests/plan.rs"]
mod tests;
