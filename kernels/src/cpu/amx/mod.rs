//! AMX int8: sixteen activation rows times sixteen output rows an instruction.
//!
//! Used for more than half a tile of rows (`AMX_MIN_ROWS`). A tile product covers one scale (32
//! inputs, or 16 of a Q6_K block); its integer sums are exact and are scaled by the float
//! operations of [`super::avx512`] in the same order, so both give the same bits.
//!
//! The work is a pipeline of steps, each the products of four scaled pieces with sixteen rows.
//! While one step multiplies, the sums of the step before are stored, and those of the step before
//! that are scaled: a tile is stored when its sums have long been ready, and vector loads of a tile
//! would wait until its store has left the processor's pipeline.
//!
//! Rust has no stable AMX intrinsics, so the instructions are inline assembly.

mod tiles;

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use self::tiles::TileConfig;
pub(super) use self::tiles::{has_tiles, is_available};
use super::avx512::{
    self, BITS4, BITS5, BITS6, BITS8, BLOCK_LINES, DECODED_LINES, EIGHT, HALVES, OFFSET, SIGNED,
    SIXTEEN, SUPER,
};
use super::{DecodedPanel, Line, ahead};
use crate::activations::{Activations, BlockInfo};
use crate::panel::{BLOCK_INPUTS, Codes, LINE_BYTES, PANEL_ROWS, Panel, Scales};

/// Activation rows of a tile.
const TILE_ROWS: usize = 16;
/// Scaled pieces of the inner dimension that are multiplied together: tiles of sums.
const PIECES: usize = 4;
/// Rows that are scaled after each piece of the next step was started, so that both overlap.
const ROWS_PER_PIECE: usize = TILE_ROWS / PIECES;
/// Lines of the decoded blocks of four pieces, and how many of these are in use: weights of a step are
/// multiplied now and their scales needed two steps later.
const SLOT_LINES: usize = PIECES * DECODED_LINES;
const NUM_SLOTS: usize = 3;
/// Lines of the sums of one step.
const STEP_LINES: usize = TILE_ROWS * PIECES;

/// Panels of one matrix that lie beside each other, in one run of the pipeline; `rows.len()` is above 8,
/// and `out` is `[panels.len(), rows.len(), PANEL_ROWS]`. The same numbers as [`avx512::panel_product`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn panels_product(
    x: &Activations,
    panels: &[Panel<'_>],
    rows: Range<usize>,
    decoded: &mut DecodedPanel,
    out: &mut [f32],
) {
    let format = panels[0].format;
    match (format.codes, format.scales) {
        (Codes::Bits4, Scales::Half { .. }) => run::<BITS4, EIGHT>(x, panels, rows, decoded, out),
        (Codes::Bits4, Scales::HalfOffset) => run::<BITS4, OFFSET>(x, panels, rows, decoded, out),
        (Codes::Bits4, _) => run::<BITS4, SUPER>(x, panels, rows, decoded, out),
        (Codes::Bits5, Scales::Half { .. }) => run::<BITS5, SIXTEEN>(x, panels, rows, decoded, out),
        (Codes::Bits5, Scales::HalfOffset) => run::<BITS5, OFFSET>(x, panels, rows, decoded, out),
        (Codes::Bits5, _) => run::<BITS5, SUPER>(x, panels, rows, decoded, out),
        (Codes::Bits6, _) => run::<BITS6, HALVES>(x, panels, rows, decoded, out),
        _ => run::<BITS8, SIGNED>(x, panels, rows, decoded, out), // See `has_tiles`.
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn run<const BITS: u32, const KIND: u32>(
    x: &Activations,
    panels: &[Panel<'_>],
    rows: Range<usize>,
    decoded: &mut DecodedPanel,
    out: &mut [f32],
) {
    let blocks = panels[0].blocks;
    let group_rows = rows.len().min(TILE_ROWS);
    let num_groups = rows.len().div_ceil(TILE_ROWS);
    let panel_len = rows.len() * PANEL_ROWS;
    assert!(
        x.codes().len() >= rows.end * blocks * BLOCK_INPUTS,
        "this is a bug"
    );
    assert!(x.infos.len() >= rows.end * blocks, "this is a bug");
    assert!(out.len() == panels.len() * panel_len, "this is a bug");
    let tiles = (group_rows, Work::<KIND>::INPUTS);
    let is_configured = decoded.tiles.replace(tiles) == Some(tiles);
    let spare_lines = panels.len() * TILE_ROWS;
    let buffers = decoded.lines(NUM_SLOTS * SLOT_LINES + 2 * STEP_LINES + spare_lines);
    let (slots, buffers) = buffers.split_at_mut(NUM_SLOTS * SLOT_LINES);
    let (dots, spare) = buffers.split_at_mut(2 * STEP_LINES);
    let work = Work::<KIND> {
        codes: x.codes()[rows.start * x.in_features..].as_ptr(),
        infos: x.infos[rows.start * blocks..].as_ptr(),
        blocks,
        dots: dots.as_mut_ptr(),
        group_rows,
    };
    // The last group may overlap the one before it: it computes the same numbers again, beside.
    let last_row = rows.len() - group_rows;
    let overlaps = last_row != (num_groups - 1) * TILE_ROWS;
    let mut cursor = Cursor {
        shape: Shape {
            num_panels: panels.len(),
            num_pieces: blocks * Work::<KIND>::PER_BLOCK,
            last_row,
            panel_len,
            overlaps,
            lines_per_piece: avx512::code_lines::<BITS>() / Work::<KIND>::PER_BLOCK,
        },
        out: out.as_mut_ptr(),
        spare: spare.as_mut_ptr().cast(),
        slots: slots.as_mut_ptr(),
        panel: 0,
        piece: 0,
        row: 0,
        slot: 0,
        buffer: 0,
    };
    // SAFETY: tiles are available where this is called, and configured for these pieces; the assertions
    // bound the rows, and the buffers have the sizes that the steps need.
    unsafe {
        if !is_configured {
            let config = TileConfig::new(group_rows, Work::<KIND>::INPUTS);
            asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly));
        }
        let (mut multiplied, mut stored) = (None, None);
        loop {
            let next = cursor.next(panels);
            if let Some(step) = next.filter(|step| step.row == 0) {
                let block = step.piece / Work::<KIND>::PER_BLOCK;
                decode::<BITS, KIND>(panels[step.panel], block, step.weights);
            }
            match (next, multiplied, stored) {
                (Some(next), Some(multiplied), Some(stored)) => {
                    work.advance::<true, true, true>(next, multiplied, stored);
                }
                (Some(next), Some(multiplied), None) => {
                    work.advance::<true, true, false>(next, multiplied, next);
                }
                (Some(next), None, _) => work.advance::<true, false, false>(next, next, next),
                (None, Some(multiplied), Some(stored)) => {
                    work.advance::<false, true, true>(stored, multiplied, stored);
                }
                (None, Some(multiplied), None) => {
                    work.advance::<false, true, false>(multiplied, multiplied, multiplied);
                }
                (None, None, Some(stored)) => {
                    work.advance::<false, false, true>(stored, stored, stored);
                }
                (None, None, None) => break,
            }
            (stored, multiplied) = (multiplied, next);
        }
    }
    if overlaps {
        let panels = out
            .chunks_exact_mut(panel_len)
            .zip(spare.chunks_exact(TILE_ROWS));
        for (out, spare) in panels {
            let (rows, _) = out[last_row * PANEL_ROWS..].as_chunks_mut::<PANEL_ROWS>();
            for (out, line) in rows.iter_mut().zip(spare) {
                // SAFETY: both sides are sixteen floats.
                unsafe {
                    let sum = _mm512_load_ps(line.0.as_ptr().cast());
                    _mm512_storeu_ps(out.as_mut_ptr(), sum);
                }
            }
        }
    }
}

/// Unpacks the blocks of four pieces to `slot`, zeros past the last block.
///
/// # Safety
/// `slot` has room for them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn decode<const BITS: u32, const KIND: u32>(
    panel: Panel<'_>,
    block: usize,
    slot: *mut Line,
) {
    for index in 0..PIECES / Work::<KIND>::PER_BLOCK {
        // SAFETY: the caller's promise.
        let lines = unsafe {
            &mut *slot
                .add(index * DECODED_LINES)
                .cast::<[Line; DECODED_LINES]>()
        };
        if block + index < panel.blocks {
            avx512::decode_signed::<BITS, KIND>(panel, block + index, lines);
        } else {
            *lines = [Line([0; 64]); DECODED_LINES];
        }
    }
}

/// Four pieces times one group of rows.
#[derive(Clone, Copy)]
struct Step {
    panel: usize,
    /// The first piece within the panel.
    piece: usize,
    /// The pieces' decoded blocks.
    weights: *mut Line,
    /// The panel's packed codes, which are tiles already when they are whole bytes.
    packed: *const u8,
    /// Codes that later steps need, and how many lines of them to ask for with each piece.
    ahead: *const u8,
    lines_per_piece: usize,
    /// First row of the group.
    row: usize,
    /// `[group_rows, PANEL_ROWS]`
    sums: *mut f32,
    /// Which buffer its tiles are stored to.
    buffer: usize,
}

/// What bounds the steps of a call.
struct Shape {
    num_panels: usize,
    num_pieces: usize,
    /// First row of the last group.
    last_row: usize,
    panel_len: usize,
    /// Whether the last group shares rows with the one before.
    overlaps: bool,
    /// Lines of codes that are asked for with each piece.
    lines_per_piece: usize,
}

/// Enumerates the steps: groups follow each other within four pieces of the inner dimension, and these
/// within a panel.
struct Cursor {
    shape: Shape,
    /// `[num_panels, rows, PANEL_ROWS]`
    out: *mut f32,
    /// Sums of overlapping groups, one a panel.
    spare: *mut f32,
    slots: *mut Line,
    panel: usize,
    piece: usize,
    row: usize,
    slot: usize,
    buffer: usize,
}

impl Cursor {
    #[inline(always)]
    fn next(&mut self, panels: &[Panel<'_>]) -> Option<Step> {
        let shape = &self.shape;
        if self.panel == shape.num_panels {
            return None;
        }
        let packed = panels[self.panel].codes.as_ptr();
        let ahead = self.piece * shape.lines_per_piece * LINE_BYTES + ahead::AMX_DISTANCE;
        let step = Step {
            panel: self.panel,
            piece: self.piece,
            weights: self.slots.wrapping_add(self.slot * SLOT_LINES),
            packed,
            ahead: packed.wrapping_add(ahead),
            lines_per_piece: if self.row == 0 {
                shape.lines_per_piece
            } else {
                0
            },
            row: self.row,
            sums: if shape.overlaps && self.row == shape.last_row {
                self.spare.wrapping_add(self.panel * TILE_ROWS * PANEL_ROWS)
            } else {
                self.out
                    .wrapping_add(self.panel * shape.panel_len + self.row * PANEL_ROWS)
            },
            buffer: self.buffer,
        };
        self.buffer = 1 - self.buffer;
        if self.row != shape.last_row {
            self.row = (self.row + TILE_ROWS).min(shape.last_row);
            return Some(step);
        }
        self.row = 0;
        self.slot = if self.slot + 1 == NUM_SLOTS {
            0
        } else {
            self.slot + 1
        };
        self.piece += PIECES;
        if self.piece >= shape.num_pieces {
            self.piece = 0;
            self.panel += 1;
        }
        Some(step)
    }
}

/// What all steps of a call share.
struct Work<const KIND: u32> {
    /// The first row's codes and block entries.
    codes: *const i8,
    infos: *const BlockInfo,
    blocks: usize,
    /// Two buffers of sums.
    dots: *mut Line,
    group_rows: usize,
}

impl<const KIND: u32> Work<KIND> {
    const PER_BLOCK: usize = if KIND == HALVES { 2 } else { 1 };
    /// Inputs of a piece.
    const INPUTS: usize = BLOCK_INPUTS / Self::PER_BLOCK;

    const HAS_OFFSET: bool = KIND == OFFSET || KIND == SUPER;

    /// The block of a piece and its half.
    #[inline(always)]
    fn at(piece: usize) -> (usize, usize) {
        (piece / Self::PER_BLOCK, piece % Self::PER_BLOCK)
    }

    /// Multiplies `next`, stores the tiles of `multiplied`, scales the sums of `stored`.
    ///
    /// # Safety
    /// Tiles are configured; pointers are valid for the steps.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn advance<const MULTIPLY: bool, const STORE: bool, const SCALE: bool>(
        &self,
        next: Step,
        multiplied: Step,
        stored: Step,
    ) {
        let zero = _mm512_setzero_ps();
        let (mut scales, mut offsets) = ([zero; PIECES], [zero; PIECES]);
        let mut input_blocks = [0; PIECES];
        if SCALE {
            for index in 0..PIECES {
                let block = Self::at(stored.piece + index).0;
                // Past the last block the scale is zero, and any entry does.
                input_blocks[index] = if block < self.blocks { block } else { 0 };
                let (block, half) = Self::at(index);
                // SAFETY: the caller's promise.
                unsafe {
                    let scale = stored.weights.add(block * DECODED_LINES + BLOCK_LINES);
                    scales[index] = _mm512_load_ps(scale.add(half).cast());
                    if Self::HAS_OFFSET {
                        offsets[index] = _mm512_load_ps(scale.add(1).cast());
                    }
                }
            }
        }
        macro_rules! piece {
            ($index:literal, $sums:literal, $inputs:literal, $weights:literal) => {
                // SAFETY: the caller's promise.
                unsafe {
                    if STORE {
                        let lines = multiplied.buffer * STEP_LINES + $index * TILE_ROWS;
                        asm!(
                            concat!("tilestored [{dots} + {line}], ", $sums),
                            dots = in(reg) self.dots.add(lines),
                            line = in(reg) LINE_BYTES,
                            options(nostack),
                        );
                    }
                    if MULTIPLY {
                        let lines = next.lines_per_piece;
                        let ahead = next.ahead.wrapping_add($index * lines * LINE_BYTES);
                        ahead::fetch_lines(ahead, lines);
                        let (codes, weights) = self.operands(next, $index);
                        asm!(
                            concat!("tilezero ", $sums),
                            concat!("tileloadd ", $inputs, ", [{codes} + {stride}]"),
                            concat!("tileloadd ", $weights, ", [{weights} + {line}]"),
                            concat!("tdpbssd ", $sums, ", ", $inputs, ", ", $weights),
                            codes = in(reg) codes,
                            stride = in(reg) self.blocks * BLOCK_INPUTS,
                            weights = in(reg) weights,
                            line = in(reg) LINE_BYTES,
                            options(nostack, readonly),
                        );
                    }
                    if SCALE {
                        let first = $index * ROWS_PER_PIECE;
                        for row in first..(first + ROWS_PER_PIECE).min(self.group_rows) {
                            self.scale_row(stored, row, &input_blocks, &scales, &offsets);
                        }
                    }
                }
            };
        }
        piece!(0, "tmm0", "tmm4", "tmm6");
        piece!(1, "tmm1", "tmm5", "tmm7");
        piece!(2, "tmm2", "tmm4", "tmm6");
        piece!(3, "tmm3", "tmm5", "tmm7");
    }

    /// Where piece `index` of a step has its inputs and its weights. A piece past the last has zero
    /// weights, and whatever inputs the row has at its start.
    ///
    /// # Safety
    /// The step's rows are valid.
    #[inline(always)]
    unsafe fn operands(&self, step: Step, index: usize) -> (*const i8, *const Line) {
        let is_there = Self::at(step.piece + index).0 < self.blocks;
        let input = if is_there {
            (step.piece + index) * Self::INPUTS
        } else {
            0
        };
        let (block, half) = Self::at(index);
        // SAFETY: the caller's promise.
        unsafe {
            let weights = if KIND == SIGNED && is_there {
                let codes = (step.piece + index) * Codes::Bits8.block_bytes();
                step.packed.add(codes).cast()
            } else {
                let line = block * DECODED_LINES + half * BLOCK_LINES / 2;
                step.weights.add(line).cast_const()
            };
            let row = step.row * self.blocks * BLOCK_INPUTS;
            (self.codes.add(row + input), weights)
        }
    }

    /// Scales and adds up the sums of four pieces for one row of a step.
    ///
    /// # Safety
    /// The step's tiles were stored.
    #[inline(always)]
    unsafe fn scale_row(
        &self,
        step: Step,
        row: usize,
        input_blocks: &[usize; PIECES],
        scales: &[__m512; PIECES],
        offsets: &[__m512; PIECES],
    ) {
        // SAFETY: the caller's promise; only called by code compiled for AVX-512.
        unsafe {
            let sums = step.sums.add(row * PANEL_ROWS);
            let mut sum = if step.piece == 0 {
                _mm512_setzero_ps()
            } else {
                _mm512_loadu_ps(sums)
            };
            let infos = self.infos.add((step.row + row) * self.blocks);
            let dots = self.dots.add(step.buffer * STEP_LINES + row);
            for index in 0..PIECES {
                let info = infos.add(input_blocks[index]);
                let dot = _mm512_load_si512(dots.add(index * TILE_ROWS).cast());
                let scale = _mm512_mul_ps(scales[index], _mm512_set1_ps((*info).scale));
                sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sum);
                if Self::HAS_OFFSET {
                    let input_sum = _mm512_set1_ps((*info).scaled_sum);
                    sum = _mm512_fmadd_ps(offsets[index], input_sum, sum);
                }
            }
            _mm512_storeu_ps(sums, sum);
        }
    }
}
