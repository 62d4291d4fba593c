//! AMX int8: sixteen activation rows times sixteen output rows an instruction.
//!
//! Used for more rows than AVX-512 keeps in registers. A tile product covers one scale (32 inputs, or 16
//! of a Q6_K block); its integer sums are exact and are scaled by the float operations of
//! [`super::avx512`] in the same order, so both give the same bits.
//!
//! Rust has no stable AMX intrinsics, so the instructions are inline assembly.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::avx512::{self, BLOCK_LINES, DECODED_LINES, HALVES, OFFSET, SUPER};
use super::{DecodedPanel, Line};
use crate::activations::Activations;
use crate::panel::{BLOCK_INPUTS, LINE_BYTES, PANEL_ROWS, Panel};

/// Activation rows of a tile.
const TILE_ROWS: usize = 16;
/// Most rows of a call.
const MAX_ROWS: usize = 64;
/// Scaled pieces of the inner dimension whose weight tiles are held in registers.
const PIECES: usize = 4;
/// Bytes of a tile of sums: sixteen rows of sixteen i32.
const SUM_BYTES: usize = TILE_ROWS * PANEL_ROWS * 4;

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

/// The operand of `ldtilecfg`. Tiles 0 and 1 hold sums, 2 and 3 activations, 4 to 7 weights.
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
            (0..2, rows, LINE_BYTES),
            (2..4, rows, piece_inputs),
            (4..8, piece_inputs / 4, LINE_BYTES),
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

/// `rows.len()` is above 8 and at most 64. The same numbers as [`avx512::panel_product`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn panel_product(
    x: &Activations,
    panel: Panel<'_>,
    rows: Range<usize>,
    decoded: &mut DecodedPanel,
    out: &mut [f32],
) {
    assert!(!rows.is_empty() && rows.len() <= MAX_ROWS, "this is a bug");
    match avx512::decode_signed(panel, decoded) {
        HALVES => run::<HALVES>(x, panel.blocks, rows, decoded, out),
        // Both have an offset beside the scale once they are decoded.
        OFFSET | SUPER => run::<OFFSET>(x, panel.blocks, rows, decoded, out),
        _ => run::<0>(x, panel.blocks, rows, decoded, out),
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn run<const KIND: u32>(
    x: &Activations,
    blocks: usize,
    rows: Range<usize>,
    decoded: &mut DecodedPanel,
    out: &mut [f32],
) {
    let pieces_per_block = if KIND == HALVES { 2 } else { 1 };
    let piece_inputs = BLOCK_INPUTS / pieces_per_block;
    let num_pieces = blocks * pieces_per_block;
    let group_rows = rows.len().min(TILE_ROWS);
    let num_groups = rows.len().div_ceil(TILE_ROWS);
    assert!(
        x.codes.len() >= rows.end * blocks * BLOCK_INPUTS,
        "this is a bug"
    );
    assert!(x.infos.len() >= rows.end * blocks, "this is a bug");
    let panel = decoded.lines(blocks * DECODED_LINES).as_ptr();
    let mut sums = [[Line([0; 64]); TILE_ROWS]; MAX_ROWS / TILE_ROWS];
    let mut dots = [[Line([0; 64]); TILE_ROWS * PIECES]; 2];
    let config = TileConfig::new(group_rows, piece_inputs);
    // The last group may overlap the one before it: it computes the same numbers again.
    let first_row = |group: usize| rows.start + (group * TILE_ROWS).min(rows.len() - group_rows);
    // SAFETY: tiles are available where this is called; the configuration fits the loads below, which
    // stay within the decoded panel, the rows that the assertions bound, and the two local buffers.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly));
        for first in (0..num_pieces).step_by(PIECES) {
            let count = PIECES.min(num_pieces - first);
            let piece = Pieces::<KIND> { panel, first };
            piece.load_weights(count);
            for group in 0..num_groups {
                let row = first_row(group);
                let codes = x
                    .codes
                    .as_ptr()
                    .add(row * x.in_features + first * piece_inputs);
                let dots = &mut dots[group % 2];
                multiply(codes, x.in_features, piece_inputs, count, dots.as_mut_ptr());
                let infos = x
                    .infos
                    .as_ptr()
                    .add(row * blocks + first / pieces_per_block);
                let sums = &mut sums[group][..group_rows];
                match count {
                    4 => piece.add_scaled::<4>(infos, blocks, dots, sums),
                    3 => piece.add_scaled::<3>(infos, blocks, dots, sums),
                    2 => piece.add_scaled::<2>(infos, blocks, dots, sums),
                    _ => piece.add_scaled::<1>(infos, blocks, dots, sums),
                }
            }
        }
        asm!("tilerelease", options(nostack, nomem));
    }
    let (out, _) = out.as_chunks_mut::<PANEL_ROWS>();
    for (group, sums) in sums.iter().enumerate().take(num_groups) {
        let at = first_row(group) - rows.start;
        for (out, sum) in out[at..at + group_rows].iter_mut().zip(sums) {
            // SAFETY: both sides are sixteen floats.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_load_ps(sum.0.as_ptr().cast())) };
        }
    }
}

/// Sums of products of up to four pieces with one group of rows, one tile after the other into `dots`.
///
/// # Safety
/// Tiles are configured and tiles 4 to 7 hold the pieces' weights; `codes` points at the group's first
/// row, whose `count` pieces and those of the rows `stride` bytes apart are readable.
#[inline(always)]
unsafe fn multiply(
    codes: *const i8,
    stride: usize,
    piece_inputs: usize,
    count: usize,
    dots: *mut Line,
) {
    macro_rules! piece {
        ($index:literal, $sums:literal, $inputs:literal, $weights:literal) => {
            if count > $index {
                // SAFETY: the caller's promise; the tile of sums has its own kilobyte of `dots`.
                unsafe {
                    asm!(
                        concat!("tilezero ", $sums),
                        concat!("tileloadd ", $inputs, ", [{codes} + {stride}]"),
                        concat!("tdpbssd ", $sums, ", ", $inputs, ", ", $weights),
                        concat!("tilestored [{dots} + {line}], ", $sums),
                        codes = in(reg) codes.add($index * piece_inputs),
                        stride = in(reg) stride,
                        dots = in(reg) dots.cast::<u8>().add($index * SUM_BYTES),
                        line = in(reg) LINE_BYTES,
                        options(nostack),
                    );
                }
            }
        };
    }
    piece!(0, "tmm0", "tmm2", "tmm4");
    piece!(1, "tmm1", "tmm3", "tmm5");
    piece!(2, "tmm0", "tmm2", "tmm6");
    piece!(3, "tmm1", "tmm3", "tmm7");
}

/// Pieces of a decoded panel from `first` on.
#[derive(Clone, Copy)]
struct Pieces<const KIND: u32> {
    panel: *const Line,
    first: usize,
}

impl<const KIND: u32> Pieces<KIND> {
    /// The block of piece `index` and its half.
    #[inline(always)]
    fn at(&self, index: usize) -> (usize, usize) {
        let piece = self.first + index;
        if KIND == HALVES {
            (piece / 2, piece % 2)
        } else {
            (piece, 0)
        }
    }

    /// # Safety
    /// Tiles are configured and the panel holds the pieces.
    #[inline(always)]
    unsafe fn load_weights(&self, count: usize) {
        macro_rules! load {
            ($index:literal, $tile:literal) => {
                if count > $index {
                    let (block, half) = self.at($index);
                    // SAFETY: the caller's promise.
                    unsafe {
                        asm!(
                            concat!("tileloadd ", $tile, ", [{lines} + {line}]"),
                            lines = in(reg) self.panel.add(block * DECODED_LINES + half * BLOCK_LINES / 2),
                            line = in(reg) LINE_BYTES,
                            options(nostack, readonly),
                        );
                    }
                }
            };
        }
        load!(0, "tmm4");
        load!(1, "tmm5");
        load!(2, "tmm6");
        load!(3, "tmm7");
    }

    /// Scales the sums of `COUNT` pieces and adds them to each row's.
    ///
    /// # Safety
    /// The panel holds the pieces; `infos` points at the first row's entry of the first piece's block, and
    /// rows are `blocks` entries apart.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn add_scaled<const COUNT: usize>(
        &self,
        infos: *const crate::activations::BlockInfo,
        blocks: usize,
        dots: &[Line; TILE_ROWS * PIECES],
        sums: &mut [Line],
    ) {
        // SAFETY: the caller's promise; lines are sixteen aligned values.
        unsafe {
            let mut scales = [_mm512_setzero_ps(); COUNT];
            let mut offsets = [_mm512_setzero_ps(); COUNT];
            for index in 0..COUNT {
                let (block, half) = self.at(index);
                let line = |at: usize| {
                    let line = self.panel.add(block * DECODED_LINES + BLOCK_LINES + at);
                    _mm512_load_ps(line.cast())
                };
                scales[index] = line(half);
                if KIND == OFFSET {
                    offsets[index] = line(1);
                }
            }
            let first_block = self.at(0).0;
            for (row, total) in sums.iter_mut().enumerate() {
                let mut sum = _mm512_load_ps(total.0.as_ptr().cast());
                for index in 0..COUNT {
                    let info = &*infos.add(row * blocks + self.at(index).0 - first_block);
                    let dot = dots.as_ptr().add(index * TILE_ROWS + row);
                    let dot = _mm512_cvtepi32_ps(_mm512_load_si512(dot.cast()));
                    let scale = _mm512_mul_ps(scales[index], _mm512_set1_ps(info.scale));
                    sum = _mm512_fmadd_ps(dot, scale, sum);
                    if KIND == OFFSET {
                        sum = _mm512_fmadd_ps(offsets[index], _mm512_set1_ps(info.scaled_sum), sum);
                    }
                }
                _mm512_store_ps(total.0.as_mut_ptr().cast(), sum);
            }
        }
    }
}
