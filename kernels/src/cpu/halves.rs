//! Vectors from f16.
//!
//! As with [`Vector`]: called from functions compiled for the instruction set only.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::f16;

#[cfg(target_arch = "x86_64")]
use super::vector::{Avx, Avx512};
use super::vector::{LANES, Plain, Vector};

pub(super) trait Halves: Vector {
    fn load_halves(source: &[u16; LANES]) -> Self;
}

impl Halves for Plain {
    #[inline(always)]
    fn load_halves(source: &[u16; LANES]) -> Self {
        Self(source.map(|bits| f16::from_bits(bits).to_f32()))
    }
}

#[cfg(target_arch = "x86_64")]
impl Halves for Avx {
    #[inline(always)]
    fn load_halves(source: &[u16; LANES]) -> Self {
        let start = source.as_ptr();
        // SAFETY: sixteen values are there; AVX2 is chosen together with F16C only.
        let eight = |at: usize| unsafe {
            _mm256_cvtph_ps(_mm_loadu_si128(start.add(at).cast::<__m128i>()))
        };
        Self(eight(0), eight(8))
    }
}

#[cfg(target_arch = "x86_64")]
impl Halves for Avx512 {
    #[inline(always)]
    fn load_halves(source: &[u16; LANES]) -> Self {
        // SAFETY: sixteen values are there, and the caller is compiled for AVX-512 F.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(source.as_ptr().cast::<__m256i>())) })
    }
}
