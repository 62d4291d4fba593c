//! Sixteen f32 in whatever registers an instruction set has. Loops over plain arrays are at the
//! mercy of the vectoriser; the inner loops of attention are written with these.
//!
//! The methods are inlined into functions compiled for the instruction set, and must be called from
//! such functions only.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Values of a [`Vector`].
pub(super) const LANES: usize = 16;

/// Sixteen f32.
pub(super) trait Vector: Copy {
    /// Sums kept in registers together.
    const MAX_SUMS: usize;

    fn splat(value: f32) -> Self;
    fn load(source: &[f32; LANES]) -> Self;
    fn store(self, target: &mut [f32; LANES]);
    fn mul(self, factor: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    /// `self + a * b`
    fn add_product(self, a: Self, b: Self) -> Self;
    /// Lanes `from..to` of `self`, `other` in the rest.
    fn keep(self, from: usize, to: usize, other: Self) -> Self;
    /// `2^n` from `n + ROUND`, for whole `n` in -126..=127.
    fn exp2_of_rounded(self) -> Self;
    /// All lanes, added pairwise: lane `i` with `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
    fn sum(self) -> f32;
    fn largest(self) -> f32;
    fn abs(self) -> Self;
    /// Whole numbers in -127..=127, each plus `ROUND`, as bytes; returns their sum.
    fn store_rounded(self, codes: &mut [i8; LANES]) -> i32;
}

/// 1.5 * 2^23: adding it leaves a float's integer part, rounded to even, in its low bits.
pub(super) const ROUND: f32 = 12_582_912.0;

/// [`super::rows::exp`], lane by lane.
#[inline(always)]
pub(super) fn exp<V: Vector>(x: V) -> V {
    let x = x.max(V::splat(-87.0)).min(V::splat(88.0));
    let rounded = V::splat(ROUND).add_product(x, V::splat(std::f32::consts::LOG2_E));
    let n = rounded.sub(V::splat(ROUND));
    let r = x.add_product(n, V::splat(-0.693_359_4));
    let r = r.add_product(n, V::splat(2.121_944_4e-4));
    let mut p = V::splat(1.987_569_1e-4);
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5e-1,
    ] {
        p = V::splat(coefficient).add_product(p, r);
    }
    let y = r.add_product(p.mul(r), r);
    let power = rounded.exp2_of_rounded();
    power.add_product(y, power)
}

/// Plain Rust: products are rounded before they are added.
#[derive(Clone, Copy)]
pub(super) struct Plain(pub(super) [f32; LANES]);

impl Vector for Plain {
    const MAX_SUMS: usize = 4;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn load(source: &[f32; LANES]) -> Self {
        Self(*source)
    }

    #[inline(always)]
    fn store(self, target: &mut [f32; LANES]) {
        *target = self.0;
    }

    #[inline(always)]
    fn mul(self, factor: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * factor.0[i]))
    }

    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] - other.0[i]))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].min(other.0[i])))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].max(other.0[i])))
    }

    #[inline(always)]
    fn keep(self, from: usize, to: usize, other: Self) -> Self {
        let lane = |i: usize| {
            if i >= from && i < to {
                self.0[i]
            } else {
                other.0[i]
            }
        };
        Self(std::array::from_fn(lane))
    }

    #[inline(always)]
    fn exp2_of_rounded(self) -> Self {
        let power = |x: f32| {
            let n = x.to_bits().wrapping_sub(ROUND.to_bits());
            f32::from_bits(n.wrapping_add(127) << 23)
        };
        Self(self.0.map(power))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        super::rows::tree_sum(self.0)
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        super::rows::tree_max(self.0)
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }

    #[inline(always)]
    fn store_rounded(self, codes: &mut [i8; LANES]) -> i32 {
        let whole = self
            .0
            .map(|x| x.to_bits().wrapping_sub(ROUND.to_bits()) as i32);
        *codes = whole.map(|code| code as i8);
        whole.iter().fold(0, |sum, code| sum.wrapping_add(*code))
    }
}

/// The last steps of a sum and of a maximum over eight lanes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn fold8(x: __m256, op: impl Fn(__m128, __m128) -> __m128) -> f32 {
    // SAFETY: called by code compiled for AVX only.
    unsafe {
        let four = op(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let two = op(four, _mm_movehl_ps(four, four));
        let one = op(two, _mm_shuffle_ps::<1>(two, two));
        _mm_cvtss_f32(one)
    }
}

/// Two AVX registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx(pub(super) __m256, pub(super) __m256);

#[cfg(target_arch = "x86_64")]
impl Avx {
    #[inline(always)]
    fn both(self, other: Self, op: impl Fn(__m256, __m256) -> __m256) -> Self {
        Self(op(self.0, other.0), op(self.1, other.1))
    }
}

// SAFETY (of every block below): called by code compiled for AVX2 and FMA only.
#[cfg(target_arch = "x86_64")]
impl Vector for Avx {
    const MAX_SUMS: usize = 4;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see above.
        let value = unsafe { _mm256_set1_ps(value) };
        Self(value, value)
    }

    #[inline(always)]
    fn load(source: &[f32; LANES]) -> Self {
        let start = source.as_ptr();
        // SAFETY: sixteen values are there.
        unsafe { Self(_mm256_loadu_ps(start), _mm256_loadu_ps(start.add(8))) }
    }

    #[inline(always)]
    fn store(self, target: &mut [f32; LANES]) {
        let start = target.as_mut_ptr();
        // SAFETY: sixteen values are there.
        unsafe {
            _mm256_storeu_ps(start, self.0);
            _mm256_storeu_ps(start.add(8), self.1);
        }
    }

    #[inline(always)]
    fn mul(self, factor: Self) -> Self {
        // SAFETY: see above.
        self.both(factor, |a, b| unsafe { _mm256_mul_ps(a, b) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        self.both(other, |a, b| unsafe { _mm256_sub_ps(a, b) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see above.
        self.both(other, |a, b| unsafe { _mm256_min_ps(a, b) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        self.both(other, |a, b| unsafe { _mm256_max_ps(a, b) })
    }

    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            Self(
                _mm256_fmadd_ps(a.0, b.0, self.0),
                _mm256_fmadd_ps(a.1, b.1, self.1),
            )
        }
    }

    #[inline(always)]
    fn keep(self, from: usize, to: usize, other: Self) -> Self {
        // SAFETY: see above.
        let choose = |a, b, first: i32| unsafe {
            let lane = _mm256_add_epi32(
                _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                _mm256_set1_epi32(first),
            );
            let above = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(from as i32 - 1));
            let below = _mm256_cmpgt_epi32(_mm256_set1_epi32(to as i32), lane);
            _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_and_si256(above, below)))
        };
        Self(choose(self.0, other.0, 0), choose(self.1, other.1, 8))
    }

    #[inline(always)]
    fn exp2_of_rounded(self) -> Self {
        self.both(self, |x, _| {
            // SAFETY: see above.
            unsafe {
                let bias = _mm256_set1_epi32(127_i32.wrapping_sub(ROUND.to_bits() as i32));
                let n = _mm256_add_epi32(_mm256_castps_si256(x), bias);
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n))
            }
        })
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see above.
        fold8(unsafe { _mm256_add_ps(self.0, self.1) }, |a, b| unsafe {
            _mm_add_ps(a, b)
        })
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: see above.
        fold8(unsafe { _mm256_max_ps(self.0, self.1) }, |a, b| unsafe {
            _mm_max_ps(a, b)
        })
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: see above.
        self.both(self, |x, _| unsafe {
            _mm256_andnot_ps(_mm256_set1_ps(-0.0), x)
        })
    }

    #[inline(always)]
    fn store_rounded(self, codes: &mut [i8; LANES]) -> i32 {
        // SAFETY: see above; sixteen bytes are there.
        unsafe {
            let zero = _mm256_set1_epi32(ROUND.to_bits() as i32);
            let low = _mm256_sub_epi32(_mm256_castps_si256(self.0), zero);
            let high = _mm256_sub_epi32(_mm256_castps_si256(self.1), zero);
            // Packing works on 128-bit halves; the permutation puts them in order.
            let words = _mm256_permute4x64_epi64::<0xD8>(_mm256_packs_epi32(low, high));
            let bytes = _mm_packs_epi16(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            _mm_storeu_si128(codes.as_mut_ptr().cast(), bytes);
            let eight = _mm256_add_epi32(low, high);
            let four = _mm_add_epi32(
                _mm256_castsi256_si128(eight),
                _mm256_extracti128_si256::<1>(eight),
            );
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
            let one = _mm_add_epi32(two, _mm_shuffle_epi32::<0b01>(two));
            _mm_cvtsi128_si32(one)
        }
    }
}

/// One AVX-512 register.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx512(pub(super) __m512);

// SAFETY (of every block below): called by code compiled for AVX-512 F and DQ only.
#[cfg(target_arch = "x86_64")]
impl Vector for Avx512 {
    const MAX_SUMS: usize = 8;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    fn load(source: &[f32; LANES]) -> Self {
        // SAFETY: sixteen values are there.
        Self(unsafe { _mm512_loadu_ps(source.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, target: &mut [f32; LANES]) {
        // SAFETY: sixteen values are there.
        unsafe { _mm512_storeu_ps(target.as_mut_ptr(), self.0) };
    }

    #[inline(always)]
    fn mul(self, factor: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_mul_ps(self.0, factor.0) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    fn keep(self, from: usize, to: usize, other: Self) -> Self {
        let below = |end: usize| ((1_u32 << end) - 1) as u16;
        // SAFETY: see above.
        Self(unsafe { _mm512_mask_blend_ps(below(to) & !below(from), other.0, self.0) })
    }

    #[inline(always)]
    fn exp2_of_rounded(self) -> Self {
        // SAFETY: see above.
        unsafe {
            let bias = _mm512_set1_epi32(127_i32.wrapping_sub(ROUND.to_bits() as i32));
            let n = _mm512_add_epi32(_mm512_castps_si512(self.0), bias);
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(n)))
        }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let (low, high) = (
                _mm512_castps512_ps256(self.0),
                _mm512_extractf32x8_ps::<1>(self.0),
            );
            fold8(_mm256_add_ps(low, high), |a, b| _mm_add_ps(a, b))
        }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let (low, high) = (
                _mm512_castps512_ps256(self.0),
                _mm512_extractf32x8_ps::<1>(self.0),
            );
            fold8(_mm256_max_ps(low, high), |a, b| _mm_max_ps(a, b))
        }
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_abs_ps(self.0) })
    }

    #[inline(always)]
    fn store_rounded(self, codes: &mut [i8; LANES]) -> i32 {
        // SAFETY: see above; sixteen bytes are there.
        unsafe {
            let zero = _mm512_set1_epi32(ROUND.to_bits() as i32);
            let whole = _mm512_sub_epi32(_mm512_castps_si512(self.0), zero);
            _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(whole));
            _mm512_reduce_add_epi32(whole)
        }
    }
}
