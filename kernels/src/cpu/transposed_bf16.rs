//! Tiles of products with transposed weights by `vdpbf16ps`: both sides rounded to bf16, exact
//! products, sums in f32.

use std::arch::x86_64::*;

use super::bf16::bf16s;
use super::transposed::StripSums;
use crate::float_panel::{LineBF16, LineF32};

/// Rows whose sums are kept in registers together.
const TILE_ROWS: usize = 8;

/// `sums[row] += x[row] · lines`: `x` are rows of pairs, a pair a line.
///
/// # Panics
/// When a row has fewer pairs than there are lines, or the strips differ.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn add_transposed(x: &[&[[u16; 2]]], lines: [&[LineBF16]; 2], sums: &mut [StripSums]) {
    let count = lines[0].len();
    assert_eq!(lines[1].len(), count, "this is a bug");
    assert!(x.iter().all(|x| x.len() >= count), "this is a bug");
    for (x, sums) in x.chunks(TILE_ROWS).zip(sums.chunks_mut(TILE_ROWS)) {
        match x.len().min(sums.len()) {
            0 => {}
            1 => add_tile::<1>(x, lines, sums),
            2 => add_tile::<2>(x, lines, sums),
            3 => add_tile::<3>(x, lines, sums),
            4 => add_tile::<4>(x, lines, sums),
            5 => add_tile::<5>(x, lines, sums),
            6 => add_tile::<6>(x, lines, sums),
            7 => add_tile::<7>(x, lines, sums),
            _ => add_tile::<TILE_ROWS>(x, lines, sums),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn add_tile<const ROWS: usize>(
    x: &[&[[u16; 2]]],
    [first, second]: [&[LineBF16]; 2],
    out: &mut [StripSums],
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for (sums, out) in sums.iter_mut().zip(&*out) {
        // SAFETY: sixteen values are there.
        *sums = [0, 1].map(|strip| unsafe { _mm512_loadu_ps(out[strip].as_ptr()) });
    }
    let x: [*const i32; ROWS] = std::array::from_fn(|row| x[row].as_ptr().cast());
    for (line, weights) in first.iter().zip(second).enumerate() {
        let weights = [weights.0, weights.1].map(|weights| {
            // SAFETY: a line has 64 bytes.
            bf16s(unsafe { _mm512_loadu_si512(weights.as_ptr().cast()) })
        });
        for (sums, x) in sums.iter_mut().zip(x) {
            // SAFETY: a row has a pair for every line; the caller looked.
            let pair = bf16s(_mm512_set1_epi32(unsafe { x.add(line).read_unaligned() }));
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = _mm512_dpbf16_ps(*sum, weights, pair);
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        for (out, sum) in out.iter_mut().zip(sums) {
            // SAFETY: sixteen values are there.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
        }
    }
}

/// Two rows of each pair side by side, rounded to bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn pair_lines(rows: &[LineF32], out: &mut [LineBF16]) {
    let order = pair_order();
    for ([first, second], out) in rows.as_chunks::<2>().0.iter().zip(out) {
        // SAFETY: sixteen values of each row, and 64 bytes of the line are there.
        unsafe {
            let first = _mm512_loadu_ps(first.as_ptr());
            let second = _mm512_loadu_ps(second.as_ptr());
            _mm512_storeu_si512(out.as_mut_ptr().cast(), pair(first, second, order));
        }
    }
}

/// What [`pair`] takes values by.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn pair_order() -> __m512i {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 2 + 16 * (i % 2)) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: 64 bytes are there.
    unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) }
}

/// The values of two rows, rounded to bf16, in turn.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn pair(first: __m512, second: __m512, order: __m512i) -> __m512i {
    let both = _mm512_cvtne2ps_pbh(second, first);
    // SAFETY: both are 64 bytes; bf16 values are bits.
    let both = unsafe { std::mem::transmute::<__m512bh, __m512i>(both) };
    _mm512_permutexvar_epi16(order, both)
}
