//! Which rows read which tokens together. Pure bookkeeping: nothing here touches a device, and no
//! choice changes a result.
//!
//! Rows are put in the order of their sequences' block tables, so that those that share blocks lie
//! beside each other. The shared part of a run of sequences, in whole splits, becomes units of all
//! their rows; what follows is each one's own. A unit is *thin* (16 queries, one warp, one split)
//! or *wide* (64 queries, four warps). A wide unit may take all splits of its rows, or the first
//! ones, and merge their states itself (*folded*); other states are merged by a kernel of their
//! own.

mod cut;
mod records;

use std::ops::Range;

use super::AttentionRows;
use crate::CudaError;
use cut::{Cut, parts_of};
pub use records::PlanShape;
pub(super) use records::{NONE, PlannedRow, Unit};

/// Tokens whose state is made at once, from a fresh start. A multiple of a tile's 32.
pub const SPLIT_TOKENS: usize = 256;
/// Queries (rows times heads) of a warp.
const THIN_QUERIES: usize = 16;
/// Queries of a block of four warps.
const WIDE_QUERIES: usize = 64;

/// A sequence's place among the planned rows.
#[derive(Debug, Clone)]
struct Placed {
    /// Among the batch's sequences.
    sequence: usize,
    rows: Range<usize>,
    table: u32,
    /// Splits that it has in common with the one before.
    num_shared: usize,
    /// Splits that its rows read together.
    num_splits: usize,
}

/// Rows and the splits that they read together.
#[derive(Debug, Clone)]
struct Piece {
    rows: Range<usize>,
    splits: Range<usize>,
    table: u32,
}

/// Which rows are attended together. Made once a step and used by every layer, with or without a
/// window; its memory is reused.
#[derive(Debug)]
pub struct AttentionPlan {
    split_tokens: usize,
    pub(super) rows: Vec<PlannedRow>,
    pub(super) thin: Vec<Unit>,
    pub(super) wide: Vec<Unit>,
    /// Block tables, one after the other.
    pub(super) tables: Vec<u32>,
    pub(super) num_states: usize,
    placed: Vec<Placed>,
    pieces: Vec<Piece>,
}

impl Default for AttentionPlan {
    fn default() -> Self {
        Self::with_split(SPLIT_TOKENS)
    }
}

impl AttentionPlan {
    /// `split_tokens`: a multiple of 32. Rows of different plans compare only where it is the same.
    pub(super) fn with_split(split_tokens: usize) -> Self {
        Self {
            split_tokens,
            rows: Vec::new(),
            thin: Vec::new(),
            wide: Vec::new(),
            tables: Vec::new(),
            num_states: 0,
            placed: Vec::new(),
            pieces: Vec::new(),
        }
    }

    pub(super) fn split_tokens(&self) -> usize {
        self.split_tokens
    }

    /// Plans the rows of `sequences`, which are concatenated in the batch.
    ///
    /// # Errors
    /// When a block table does not cover its context or names a block that does not exist, or rows
    /// and leaves do not fit it.
    pub fn plan(
        &mut self,
        shape: &PlanShape,
        sequences: &[AttentionRows<'_>],
    ) -> Result<(), CudaError> {
        for (index, sequence) in sequences.iter().enumerate() {
            if let Some(fault) = fault_of(shape, sequence) {
                let message = format!("sequence {index} of a step: {fault}");
                return Err(CudaError::Unsupported(message));
            }
        }
        self.place_rows(shape, sequences);
        self.find_pieces();
        self.make_units(shape);
        self.make_leaf_units(shape, sequences);
        self.count_states();
        let work = |unit: &Unit| unit.limit - unit.first_split * self.split_tokens as u32;
        // The longest first: none of them starts when all others are done.
        self.wide.sort_by_key(|unit| std::cmp::Reverse(work(unit)));
        self.thin.sort_by_key(|unit| std::cmp::Reverse(work(unit)));
        Ok(())
    }

    /// Orders sequences by their tables, those with many rows (who fill their units alone) after
    /// the others.
    fn place_rows(&mut self, shape: &PlanShape, sequences: &[AttentionRows<'_>]) {
        self.rows.clear();
        self.tables.clear();
        self.placed.clear();
        let group = shape.num_heads / shape.num_kv_heads;
        let is_long = |index: usize| sequences[index].num_rows * group > WIDE_QUERIES;
        let table = |index: usize| {
            let num_blocks = sequences[index].context_len.div_ceil(shape.block_size);
            &sequences[index].block_table[..num_blocks]
        };
        let mut first_row = 0;
        let mut order = Vec::with_capacity(sequences.len());
        for (index, sequence) in sequences.iter().enumerate() {
            if sequence.num_rows > 0 {
                order.push((is_long(index), index, first_row));
            }
            first_row += sequence.num_rows;
        }
        order.sort_unstable_by(|a, b| {
            let by_table = || table(a.1).cmp(table(b.1));
            a.0.cmp(&b.0).then_with(by_table).then(a.1.cmp(&b.1))
        });
        let mut previous: &[u32] = &[];
        for (is_long, index, first_row) in order {
            let own = table(index);
            let num_equal = previous.iter().zip(own).take_while(|(a, b)| a == b).count();
            previous = if is_long { &[] } else { own };
            let first = self.rows.len();
            self.push_rows(&sequences[index], first_row);
            let rows = first..self.rows.len();
            let splits = self.rows[rows.clone()].iter();
            let splits = splits.map(|row| row.num_shared_splits(self.split_tokens));
            self.placed.push(Placed {
                sequence: index,
                rows,
                table: self.tables.len() as u32,
                num_shared: match is_long {
                    true => 0,
                    false => num_equal * shape.block_size / self.split_tokens,
                },
                num_splits: splits.max().unwrap_or(0),
            });
            self.tables.extend_from_slice(own);
        }
    }

    fn push_rows(&mut self, sequence: &AttentionRows<'_>, first_row: usize) {
        let first_place = sequence.context_len - sequence.num_rows;
        let first_leaf = sequence.num_rows - sequence.leaves.len();
        for row in 0..sequence.num_rows {
            let leaf = row.checked_sub(first_leaf);
            self.rows.push(PlannedRow {
                row: (first_row + row) as u32,
                position: leaf.map_or((first_place + row) as u32, |leaf| sequence.leaves[leaf]),
                first_state: NONE,
                num_folded: 1,
                is_leaf: leaf.is_some(),
            });
        }
    }

    /// Cuts runs of sequences where what they share ends, again and again.
    fn find_pieces(&mut self) {
        self.pieces.clear();
        let mut runs = vec![(0..self.placed.len(), 0)];
        while let Some((run, from)) = runs.pop() {
            let placed = &self.placed[run.clone()];
            let (Some(first), Some(last)) = (placed.first(), placed.last()) else {
                continue;
            };
            let end = placed.iter().map(|placed| placed.num_splits).max();
            let end = end.unwrap_or(0);
            let shared = placed[1..].iter().map(|placed| placed.num_shared).min();
            let to = shared.unwrap_or(end).min(end);
            if from < to {
                self.pieces.push(Piece {
                    rows: first.rows.start..last.rows.end,
                    splits: from..to,
                    table: first.table,
                });
            }
            if to == end {
                continue;
            }
            let mut start = run.start;
            for next in run.start + 1..=run.end {
                if next == run.end || self.placed[next].num_shared <= to {
                    runs.push((start..next, to));
                    start = next;
                }
            }
        }
    }

    fn make_units(&mut self, shape: &PlanShape) {
        self.thin.clear();
        self.wide.clear();
        let cut = Cut::new(self, shape);
        for piece in std::mem::take(&mut self.pieces) {
            if cut.is_thin(&piece) {
                for split in piece.splits.clone() {
                    let splits = split..split + 1;
                    self.push_units(
                        &cut.parts,
                        &Piece {
                            splits,
                            ..piece.clone()
                        },
                        false,
                    );
                }
                continue;
            }
            for start in piece.rows.clone().step_by(cut.rows_per_wide) {
                let rows = start..piece.rows.end.min(start + cut.rows_per_wide);
                let end = self.end_of(rows.clone()).min(piece.splits.end);
                let chunk = |splits| Piece {
                    rows: rows.clone(),
                    splits,
                    table: piece.table,
                };
                if piece.splits.start == 0 && cut.folds(end) {
                    self.push_units(&cut.parts, &chunk(0..end), true);
                    continue;
                }
                for first in (piece.splits.start..end).step_by(cut.splits_per_unit) {
                    let splits = first..end.min(first + cut.splits_per_unit);
                    self.push_units(&cut.parts, &chunk(splits), false);
                }
            }
        }
    }

    /// Splits that some of the rows read with others.
    fn end_of(&self, rows: Range<usize>) -> usize {
        let splits = self.rows[rows].iter();
        let splits = splits.map(|row| row.num_shared_splits(self.split_tokens));
        splits.max().unwrap_or(0)
    }

    /// A unit for each part of the heads.
    fn push_units(&mut self, parts: &[Range<usize>], piece: &Piece, is_folded: bool) {
        let split_tokens = self.split_tokens;
        let rows = &mut self.rows[piece.rows.clone()];
        let (mut limit, mut min_position) = (0, u32::MAX);
        for row in rows.iter_mut() {
            let num_splits = row.num_shared_splits(split_tokens);
            limit = limit.max((row.position as usize + 1).min(num_splits * split_tokens));
            min_position = min_position.min(row.position);
            if is_folded {
                row.num_folded = num_splits.min(piece.splits.end).max(1) as u32;
            }
        }
        let limit = limit.min(piece.splits.end * split_tokens);
        if limit <= piece.splits.start * split_tokens {
            return;
        }
        let is_thin = rows.len() * parts[0].len() <= THIN_QUERIES;
        let units = parts.iter().map(|part| Unit {
            first_row: piece.rows.start as u32,
            num_rows: piece.rows.len() as u32,
            first_head: part.start as u32,
            num_heads: part.len() as u32,
            table: piece.table,
            first_split: piece.splits.start as u32,
            num_splits: piece.splits.len() as u32,
            is_folded,
            limit: limit as u32,
            min_position,
            own: NONE,
        });
        match is_thin && piece.splits.len() == 1 {
            true => self.thin.extend(units),
            false => self.wide.extend(units),
        }
    }

    /// A leaf's last split is for itself alone: there its own token takes the place of another.
    fn make_leaf_units(&mut self, shape: &PlanShape, sequences: &[AttentionRows<'_>]) {
        let parts = parts_of(shape);
        for placed in &self.placed {
            let context_len = sequences[placed.sequence].context_len;
            for index in placed
                .rows
                .clone()
                .filter(|index| self.rows[*index].is_leaf)
            {
                let position = self.rows[index].position;
                let own = context_len - (placed.rows.end - index);
                self.thin.extend(parts.iter().map(|part| Unit {
                    first_row: index as u32,
                    num_rows: 1,
                    first_head: part.start as u32,
                    num_heads: part.len() as u32,
                    table: placed.table,
                    first_split: position / self.split_tokens as u32,
                    num_splits: 1,
                    is_folded: false,
                    limit: position + 1,
                    min_position: position,
                    own: own as u32,
                }));
            }
        }
    }

    /// Gives states to the rows that have more than one.
    fn count_states(&mut self) {
        let mut next = 0;
        for row in &mut self.rows {
            let num_splits = row.position / self.split_tokens as u32 + 1;
            let num_states = num_splits - row.num_folded + 1;
            if num_states > 1 {
                row.first_state = next;
                next += num_states;
            }
        }
        self.num_states = next as usize;
    }
}

/// What a kernel would read outside of memory for.
fn fault_of(shape: &PlanShape, rows: &AttentionRows<'_>) -> Option<&'static str> {
    let num_others = rows.num_rows.checked_sub(rows.leaves.len());
    let first_leaf = rows.context_len.saturating_sub(rows.leaves.len());
    let is_after = |leaf: &u32| *leaf as usize >= first_leaf;
    let blocks = rows.block_table;
    if rows.context_len > blocks.len() * shape.block_size || rows.num_rows > rows.context_len {
        Some("the block table does not cover the rows")
    } else if blocks
        .iter()
        .any(|block| *block as usize >= shape.num_blocks)
    {
        Some("a block that does not exist")
    } else if num_others.is_none() || rows.leaves.iter().any(is_after) {
        Some("a leaf beside no row")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
