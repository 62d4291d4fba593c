//! Halves to [`Vector`]s, and the tiles of products with them.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use super::vector::{Avx, Avx512};
use super::vector::{LANES, Plain, Vector};

/// A vector that halves are widened to.
pub(super) trait Widen: Vector {
    /// Rows, and vectors of outputs, of a tile of a product: as many sums as registers hold beside
    /// weights and an input.
    const TILE_ROWS: usize;
    const TILE_PANELS: usize;

    /// Sixteen f16.
    fn load_f16(source: &[u16; LANES]) -> Self;
    /// The first (0) or second (1) of sixteen pairs of bf16.
    fn load_bf16_pairs(source: &[u16; 2 * LANES], which: usize) -> Self;
}

impl Widen for Plain {
    const TILE_ROWS: usize = 4;
    const TILE_PANELS: usize = 1;

    #[inline(always)]
    fn load_f16(source: &[u16; LANES]) -> Self {
        Self(source.map(|bits| f16::from_bits(bits).to_f32()))
    }

    #[inline(always)]
    fn load_bf16_pairs(source: &[u16; 2 * LANES], which: usize) -> Self {
        let value = |i: usize| bf16::from_bits(source[2 * i + which]).to_f32();
        Self(std::array::from_fn(value))
    }
}

// SAFETY (of every block below): called by code compiled for AVX2 and F16C only.
#[cfg(target_arch = "x86_64")]
impl Widen for Avx {
    const TILE_ROWS: usize = 6;
    const TILE_PANELS: usize = 1;

    #[inline(always)]
    fn load_f16(source: &[u16; LANES]) -> Self {
        let start = source.as_ptr();
        // SAFETY: see above; sixteen values are there.
        unsafe {
            Self(
                _mm256_cvtph_ps(_mm_loadu_si128(start.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(start.add(8).cast())),
            )
        }
    }

    #[inline(always)]
    fn load_bf16_pairs(source: &[u16; 2 * LANES], which: usize) -> Self {
        let start = source.as_ptr();
        // SAFETY: see above; eight pairs are there.
        let widen = |at: usize| unsafe {
            let pairs = _mm256_loadu_si256(start.add(at).cast());
            _mm256_castsi256_ps(match which {
                0 => _mm256_slli_epi32::<16>(pairs),
                _ => _mm256_and_si256(pairs, _mm256_set1_epi32(!0xFFFF)),
            })
        };
        Self(widen(0), widen(LANES))
    }
}

// SAFETY (of every block below): called by code compiled for AVX-512 F only.
#[cfg(target_arch = "x86_64")]
impl Widen for Avx512 {
    const TILE_ROWS: usize = 8;
    const TILE_PANELS: usize = 2;

    #[inline(always)]
    fn load_f16(source: &[u16; LANES]) -> Self {
        // SAFETY: see above; sixteen values are there.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(source.as_ptr().cast())) })
    }

    #[inline(always)]
    fn load_bf16_pairs(source: &[u16; 2 * LANES], which: usize) -> Self {
        // SAFETY: see above; sixteen pairs are there.
        unsafe {
            let pairs = _mm512_loadu_si512(source.as_ptr().cast());
            Self(_mm512_castsi512_ps(match which {
                0 => _mm512_slli_epi32::<16>(pairs),
                _ => _mm512_and_si512(pairs, _mm512_set1_epi32(!0xFFFF)),
            }))
        }
    }
}
