//! AMX int8: sixteen activation rows times sixteen output rows an instruction.
//!
//! Used for more rows than AVX-512 keeps in registers. A tile product covers one scale (32 inputs, or 16
//! of a Q6_K block); its integer sums are exact and are scaled by the float operations of
//! [`super::avx512`] in the same order, so both give the same bits.
//!
//! The work is a pipeline of steps, each the products of four scaled pieces with sixteen rows. While one
//! step multiplies, the sums of the step before are stored, and those of the step before that are scaled:
//! a tile is stored when its sums have long been ready, and vector loads of a tile would wait until its
//! store has left the processor's pipeline.
//!
//! Rust has no stable AMX intrinsics, so the instructions are inline assembly.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::avx512::{self, BLOCK_LINES, DECODED_LINES, HALVES, OFFSET, SUPER};
use super::{DecodedPanel, Line};
use crate::activations::{Activations, BlockInfo};
use crate::panel::{BLOCK_INPUTS, LINE_BYTES, PANEL_ROWS, Panel};

/// Activation rows of a tile.
const TILE_ROWS: usize = 16;
/// Scaled pieces of the inner dimension that are multiplied together: tiles of sums.
const PIECES: usize = 4;
/// Rows that are scaled after each piece of the next step was started, so that both overlap.
const ROWS_PER_PIECE: usize = TILE_ROWS / PIECES;
/// Lines of the sums of one step.
const STEP_LINES: usize = TILE_ROWS * PIECES;

/// Linux's `arch_prctl` and its request for the tile data state.
const SYS_ARCH_PRCTL: i64 = 158;
const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
const XFEATURE_XTILEDATA: i64 = 18;

/// Whether this machine has int8 tiles and the operating system lets this process use them.
pub(super) fn is_available() -> bool {
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    if !cfg!(target_os = "linux") || __cpuid(0).eax < 7 {
        return false;
    }
    if __cpuid_count(7, 0).edx & (TILE | INT8) != TILE | INT8 {
        return false;
    }
    let result: i64;
    // SAFETY: the call changes only which processor state this process may use; the kernel's other
    // registers are kept but for rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// The operand of `ldtilecfg`. Tiles 0 to 3 hold sums, 4 and 5 activations, 6 and 7 weights.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    column_bytes: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    fn new(rows: usize, piece_inputs: usize) -> Self {
        let mut config = Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            column_bytes: [0; 16],
            rows: [0; 16],
        };
        let shapes = [
            (0..4, rows, LINE_BYTES),
            (4..6, rows, piece_inputs),
            (6..8, piece_inputs / 4, LINE_BYTES),
        ];
        for (tiles, rows, column_bytes) in shapes {
            for tile in tiles {
                config.rows[tile] = rows as u8;
                config.column_bytes[tile] = column_bytes as u16;
            }
        }
        config
    }
}

/// `rows.len()` is above 8. The same numbers as [`avx512::panel_product`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn panel_product(
    x: &Activations,
    panel: Panel<'_>,
    rows: Range<usize>,
    decoded: &mut DecodedPanel,
    out: &mut [f32],
) {
    // Room for blocks of zeros that complete the last step, its sums and those of an overlapping group.
    let panel_lines = (panel.blocks + PIECES - 1) * DECODED_LINES;
    let lines = panel_lines + 2 * STEP_LINES + TILE_ROWS;
    match avx512::decode_signed(panel, decoded, lines) {
        HALVES => run::<HALVES>(x, panel, rows, decoded, out),
        // Both have an offset beside the scale once they are decoded.
        OFFSET | SUPER => run::<OFFSET>(x, panel, rows, decoded, out),
        _ => run::<0>(x, panel, rows, decoded, out),
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn run<const KIND: u32>(
    x: &Activations,
    packed: Panel<'_>,
    rows: Range<usize>,
    decoded: &mut DecodedPanel,
    out: &mut [f32],
) {
    let blocks = packed.blocks;
    let (panel_start, panel_bytes) = (packed.codes.as_ptr(), packed.bytes());
    let group_rows = rows.len().min(TILE_ROWS);
    let num_groups = rows.len().div_ceil(TILE_ROWS);
    assert!(
        x.codes().len() >= rows.end * blocks * BLOCK_INPUTS,
        "this is a bug"
    );
    assert!(x.infos.len() >= rows.end * blocks, "this is a bug");
    assert!(out.len() == rows.len() * PANEL_ROWS, "this is a bug");
    let piece_inputs = Work::<KIND>::INPUTS;
    let is_configured = decoded.tiles == Some((group_rows, piece_inputs));
    decoded.tiles = Some((group_rows, piece_inputs));
    let (panel, buffers) = decoded
        .lines
        .split_at_mut((blocks + PIECES - 1) * DECODED_LINES);
    panel[blocks * DECODED_LINES..].fill(Line([0; 64]));
    let (dots, spare) = buffers.split_at_mut(2 * STEP_LINES);
    let work = Work::<KIND> {
        codes: x.codes()[rows.start * x.in_features..].as_ptr(),
        infos: x.infos[rows.start * blocks..].as_ptr(),
        blocks,
        panel: panel.as_ptr(),
        dots: dots.as_mut_ptr(),
        group_rows,
        next_panel: panel_start.wrapping_add(panel_bytes),
        lines_per_step: 0,
    };
    let num_steps = work.num_pieces().div_ceil(PIECES) * num_groups;
    let work = Work {
        lines_per_step: panel_bytes.div_ceil(LINE_BYTES * num_steps),
        ..work
    };
    // The last group may overlap the one before it: it computes the same numbers again, beside.
    let last = num_groups - 1;
    let last_row = rows.len() - group_rows;
    let overlaps = last_row != last * TILE_ROWS;
    let (out_start, spare_start) = (out.as_mut_ptr(), spare.as_mut_ptr().cast::<f32>());
    // Groups follow each other within four pieces of the inner dimension.
    let step_at = |index: usize| -> Option<Step> {
        let group = index % num_groups;
        let (row, sums) = match group == last {
            true if overlaps => (last_row, spare_start),
            true => (last_row, out_start.wrapping_add(last_row * PANEL_ROWS)),
            false => {
                let row = group * TILE_ROWS;
                (row, out_start.wrapping_add(row * PANEL_ROWS))
            }
        };
        (index < num_steps).then_some(Step {
            piece: index / num_groups * PIECES,
            row,
            sums,
            buffer: index % 2,
        })
    };
    // SAFETY: tiles are available where this is called, and configured for these pieces; the assertions
    // bound the rows, and the buffers have the sizes that the steps need.
    unsafe {
        if !is_configured {
            let config = TileConfig::new(group_rows, piece_inputs);
            asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly));
        }
        // The two steps that fill the pipeline and the two that empty it are not worth code of their own.
        let mut ahead = work.next_panel;
        for index in 0..num_steps + 2 {
            avx512::prefetch_lines(ahead, work.lines_per_step);
            ahead = ahead.wrapping_add(work.lines_per_step * LINE_BYTES);
            let next = step_at(index);
            let multiplied = index.checked_sub(1).and_then(step_at);
            let stored = index.checked_sub(2).and_then(step_at);
            match (next, multiplied, stored) {
                (Some(next), Some(multiplied), Some(stored)) => {
                    work.advance::<true, true, true>(next, multiplied, stored);
                }
                (Some(next), Some(multiplied), None) => {
                    work.advance::<true, true, false>(next, multiplied, next);
                }
                (Some(next), None, None) => work.advance::<true, false, false>(next, next, next),
                (None, Some(multiplied), Some(stored)) => {
                    work.advance::<false, true, true>(stored, multiplied, stored);
                }
                (None, Some(multiplied), None) => {
                    work.advance::<false, true, false>(multiplied, multiplied, multiplied);
                }
                (None, None, Some(stored)) => {
                    work.advance::<false, false, true>(stored, stored, stored);
                }
                _ => {}
            }
        }
    }
    if overlaps {
        let rows = out[last_row * PANEL_ROWS..].as_chunks_mut::<PANEL_ROWS>().0;
        for (out, line) in rows.iter_mut().zip(spare.iter()) {
            // SAFETY: both sides are sixteen floats.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_load_ps(line.0.as_ptr().cast())) };
        }
    }
}

/// Four pieces times one group of rows.
#[derive(Clone, Copy)]
struct Step {
    piece: usize,
    /// First row of the group.
    row: usize,
    /// `[group_rows, PANEL_ROWS]`
    sums: *mut f32,
    /// Which buffer its tiles are stored to.
    buffer: usize,
}

/// What all steps of a call share.
struct Work<const KIND: u32> {
    /// The first row's codes and block entries.
    codes: *const i8,
    infos: *const BlockInfo,
    blocks: usize,
    /// Decoded blocks.
    panel: *const Line,
    /// Two buffers of sums.
    dots: *mut Line,
    group_rows: usize,
    /// The panel that follows in memory, to be fetched while this one multiplies.
    next_panel: *const u8,
    lines_per_step: usize,
}

impl<const KIND: u32> Work<KIND> {
    const PER_BLOCK: usize = if KIND == HALVES { 2 } else { 1 };
    /// Inputs of a piece.
    const INPUTS: usize = BLOCK_INPUTS / Self::PER_BLOCK;

    fn num_pieces(&self) -> usize {
        self.blocks * Self::PER_BLOCK
    }

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
                let (block, half) = Self::at(stored.piece + index);
                // Past the last block the scale is zero, and any entry does.
                input_blocks[index] = if block < self.blocks { block } else { 0 };
                // SAFETY: the caller's promise; blocks past the last are zeros.
                unsafe {
                    let scale = self.panel.add(block * DECODED_LINES + BLOCK_LINES);
                    scales[index] = _mm512_load_ps(scale.add(half).cast());
                    if KIND == OFFSET {
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
        let (block, half) = Self::at(step.piece + index);
        let input = if block < self.blocks {
            (step.piece + index) * Self::INPUTS
        } else {
            0
        };
        // SAFETY: the caller's promise.
        unsafe {
            (
                self.codes
                    .add(step.row * self.blocks * BLOCK_INPUTS + input),
                self.panel
                    .add(block * DECODED_LINES + half * BLOCK_LINES / 2),
            )
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
                if KIND == OFFSET {
                    let input_sum = _mm512_set1_ps((*info).scaled_sum);
                    sum = _mm512_fmadd_ps(offsets[index], input_sum, sum);
                }
            }
            _mm512_storeu_ps(sums, sum);
        }
    }
}
