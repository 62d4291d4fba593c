//! Blocks of whole-byte codes read back as pairs of bf16 lines, for products with transposed
//! weights.

use std::arch::x86_64::*;

use super::columns::BLOCK_STRIPS;
use super::transposed_bf16::{pair, pair_order};
use crate::float_panel::LineBF16;
use crate::panel::{LINE_BYTES, PANEL_ROWS};

/// Lines of codes of a strip: each has four inputs of every row.
const STRIP_LINES: usize = 4;

/// The codes of a strip, row `r` at `[r % 4][r / 4]`. Whole lines are written and quarters of them
/// read: they must not lie across two of the cache's.
#[repr(align(64))]
struct Exchanged([[[u8; PANEL_ROWS]; 4]; STRIP_LINES]);

/// Rounds `scale * code` of a panel's rows to bf16, two rows side by side in each line of `out`, a
/// strip after the other: the values of `unpack_block`, as
/// [`pair_lines`](super::transposed_bf16::pair_lines) rounds them.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn pair_bytes(
    codes: &[[u8; LINE_BYTES]; BLOCK_STRIPS * STRIP_LINES],
    scales: &[f32; PANEL_ROWS],
    out: [&mut [LineBF16]; BLOCK_STRIPS],
) {
    let order = pair_order();
    let mut rows = Exchanged([[[0; PANEL_ROWS]; 4]; STRIP_LINES]);
    let (strips, _) = codes.as_chunks::<STRIP_LINES>();
    for (lines, out) in strips.iter().zip(out) {
        exchange(lines, &mut rows);
        for (index, out) in out.iter_mut().enumerate().take(PANEL_ROWS / 2) {
            let first = scaled_row(&rows, scales, 2 * index);
            let second = scaled_row(&rows, scales, 2 * index + 1);
            // SAFETY: a line has 64 bytes.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), pair(first, second, order)) };
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn scaled_row(rows: &Exchanged, scales: &[f32; PANEL_ROWS], row: usize) -> __m512 {
    // SAFETY: a row has sixteen codes.
    let codes = unsafe { _mm_loadu_si128(rows.0[row % 4][row / 4].as_ptr().cast()) };
    let values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
    _mm512_mul_ps(values, _mm512_set1_ps(scales[row]))
}

/// Puts the codes of every row beside each other.
#[inline]
#[target_feature(enable = "avx512f")]
fn exchange(lines: &[[u8; LINE_BYTES]; STRIP_LINES], out: &mut Exchanged) {
    // SAFETY: lines and rows of four have 64 bytes each.
    unsafe {
        let a = _mm512_loadu_si512(lines[0].as_ptr().cast());
        let b = _mm512_loadu_si512(lines[1].as_ptr().cast());
        let c = _mm512_loadu_si512(lines[2].as_ptr().cast());
        let d = _mm512_loadu_si512(lines[3].as_ptr().cast());
        let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (low_next, high_next) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        let [first, second, third, fourth] = &mut out.0;
        let store = |out: &mut [[u8; PANEL_ROWS]; 4], rows: __m512i| {
            _mm512_store_si512(out.as_mut_ptr().cast(), rows);
        };
        store(first, _mm512_unpacklo_epi64(low, low_next));
        store(second, _mm512_unpackhi_epi64(low, low_next));
        store(third, _mm512_unpacklo_epi64(high, high_next));
        store(fourth, _mm512_unpackhi_epi64(high, high_next));
    }
}
