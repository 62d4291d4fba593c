//! What attention reads of the cache: int8 keys by whatever integer products an instruction set has
//! (integer sums are exact), halves and int8 values as floats.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use super::vector::{Avx, Avx512};
use super::vector::{LANES, Plain, Vector};
use super::widen::Widen;
use crate::kv_codes::{GROUP, KEY_OFFSET, QUAD};

/// A [`QUAD`] of codes of each token of a tile.
type Line = [u8; LANES * QUAD];
/// Quads of a group.
const GROUP_QUADS: usize = GROUP / QUAD;

/// What attention asks of vectors beside arithmetic.
pub(super) trait KvVector: Widen {
    /// Sixteen i32: dot products of int8 codes, one for each token of a tile.
    type Sums: Copy;

    fn from_codes(codes: &[i8; LANES]) -> Self;

    /// The sums before any product, of a query whose codes sum to `query_sum`: whatever makes up
    /// for the offset of keys.
    fn start(query_sum: i32) -> Self::Sums;
    /// `sums[t] += keys[t] · query`
    fn add_dots(sums: Self::Sums, keys: &Line, query: [i8; QUAD]) -> Self::Sums;
    fn from_sums(sums: Self::Sums) -> Self;
}

/// Keys of a tile and queries as codes.
pub(crate) struct CodeTile<'a> {
    /// As `kv_codes.rs` lays them out, without the scales.
    pub keys: &'a [u8],
    /// `[groups, TILE_TOKENS]` f16 bits
    pub scales: &'a [u16],
    pub queries: QueryCodes<'a>,
}

/// Queries as codes, those of the states that read a tile.
#[derive(Clone, Copy)]
pub(crate) struct QueryCodes<'a> {
    /// `[queries, quads * QUAD]`
    pub codes: &'a [i8],
    /// `[queries, groups]`
    pub scales: &'a [f32],
    /// The sums of each group's codes, `[queries, groups]`.
    pub sums: &'a [i32],
}

/// `query · key` of `N` queries from `first` on with every key of a tile. Groups are added in
/// order.
#[inline(always)]
pub(super) fn dot_codes<V: KvVector, const N: usize>(
    tile: &CodeTile<'_>,
    first: usize,
    head_dim: usize,
) -> [V; N] {
    let (num_quads, num_groups) = (head_dim.div_ceil(QUAD), head_dim.div_ceil(GROUP));
    let (keys, _) = tile.keys.as_chunks::<{ LANES * QUAD }>();
    let (codes, _) = tile.queries.codes.as_chunks::<QUAD>();
    let (scales, _) = tile.scales.as_chunks::<LANES>();
    let queries = &codes[first * num_quads..(first + N) * num_quads];
    let of_groups = first * num_groups..(first + N) * num_groups;
    let query_scales = &tile.queries.scales[of_groups.clone()];
    let query_sums = &tile.queries.sums[of_groups];
    let mut scores = [V::splat(0.0); N];
    for group in 0..num_groups {
        let mut sums = [V::start(0); N];
        for n in 0..N {
            sums[n] = V::start(query_sums[n * num_groups + group]);
        }
        let from = group * GROUP_QUADS;
        let count = GROUP_QUADS.min(num_quads - from);
        let keys = &keys[from..from + count];
        if let Ok(keys) = <&[Line; GROUP_QUADS]>::try_from(keys) {
            let mut whole = [&[[0_i8; QUAD]; GROUP_QUADS]; N];
            for n in 0..N {
                let (pieces, _) = queries[n * num_quads + from..].as_chunks::<GROUP_QUADS>();
                whole[n] = &pieces[0];
            }
            for quad in 0..GROUP_QUADS {
                for n in 0..N {
                    sums[n] = V::add_dots(sums[n], &keys[quad], whole[n][quad]);
                }
            }
        } else {
            for (quad, keys) in keys.iter().enumerate() {
                for n in 0..N {
                    let query = queries[n * num_quads + from + quad];
                    sums[n] = V::add_dots(sums[n], keys, query);
                }
            }
        }
        let scales = V::load_f16(&scales[group]);
        for n in 0..N {
            let scale = V::splat(query_scales[n * num_groups + group]);
            scores[n] = scores[n].add_product(V::from_sums(sums[n]), scales.mul(scale));
        }
    }
    scores
}

impl KvVector for Plain {
    type Sums = [i32; LANES];

    #[inline(always)]
    fn from_codes(codes: &[i8; LANES]) -> Self {
        Self::load(&codes.map(f32::from))
    }

    #[inline(always)]
    fn start(_: i32) -> Self::Sums {
        [0; LANES]
    }

    #[inline(always)]
    fn add_dots(mut sums: Self::Sums, keys: &Line, query: [i8; QUAD]) -> Self::Sums {
        let (keys, _) = keys.as_chunks::<QUAD>();
        for (sum, key) in sums.iter_mut().zip(keys) {
            for d in 0..QUAD {
                let key = i32::from(key[d]) - i32::from(KEY_OFFSET);
                *sum += key * i32::from(query[d]);
            }
        }
        sums
    }

    #[inline(always)]
    fn from_sums(sums: Self::Sums) -> Self {
        Self::load(&sums.map(|sum| sum as f32))
    }
}

// SAFETY (of every block below): called by code compiled for AVX2 and F16C only.
#[cfg(target_arch = "x86_64")]
impl KvVector for Avx {
    type Sums = [__m256i; 2];

    #[inline(always)]
    fn from_codes(codes: &[i8; LANES]) -> Self {
        let start = codes.as_ptr();
        // SAFETY: see above; sixteen bytes are there.
        unsafe {
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(start.cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(start.add(8).cast()));
            Self(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }

    #[inline(always)]
    fn start(_: i32) -> Self::Sums {
        // SAFETY: see above.
        [unsafe { _mm256_setzero_si256() }; 2]
    }

    #[inline(always)]
    fn add_dots(sums: Self::Sums, keys: &Line, query: [i8; QUAD]) -> Self::Sums {
        // SAFETY: see above; a line is two registers long. Codes are at most 127 (a key that was
        // never written 128), so that a pair of products fits 16 bits.
        unsafe {
            let query = _mm256_set1_epi32(i32::from_ne_bytes(query.map(|code| code as u8)));
            let (magnitude, ones) = (_mm256_abs_epi8(query), _mm256_set1_epi16(1));
            let offset = _mm256_set1_epi8(KEY_OFFSET as i8);
            let mut sums = sums;
            for (half, sum) in sums.iter_mut().enumerate() {
                let keys = _mm256_loadu_si256(keys.as_ptr().add(32 * half).cast());
                let keys = _mm256_sign_epi8(_mm256_xor_si256(keys, offset), query);
                let pairs = _mm256_maddubs_epi16(magnitude, keys);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
            sums
        }
    }

    #[inline(always)]
    fn from_sums(sums: Self::Sums) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_cvtepi32_ps(sums[0]), _mm256_cvtepi32_ps(sums[1])) }
    }
}

// SAFETY (of every block below): called by code compiled for AVX-512 F, BW and VNNI only.
#[cfg(target_arch = "x86_64")]
impl KvVector for Avx512 {
    type Sums = __m512i;

    #[inline(always)]
    fn from_codes(codes: &[i8; LANES]) -> Self {
        // SAFETY: see above; sixteen bytes are there.
        unsafe {
            let codes = _mm_loadu_si128(codes.as_ptr().cast());
            Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)))
        }
    }

    #[inline(always)]
    fn start(query_sum: i32) -> Self::Sums {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(query_sum.wrapping_mul(-i32::from(KEY_OFFSET))) }
    }

    #[inline(always)]
    fn add_dots(sums: Self::Sums, keys: &Line, query: [i8; QUAD]) -> Self::Sums {
        // SAFETY: see above; a line is a register long.
        unsafe {
            let keys = _mm512_loadu_si512(keys.as_ptr().cast());
            let query = _mm512_set1_epi32(i32::from_ne_bytes(query.map(|code| code as u8)));
            _mm512_dpbusd_epi32(sums, keys, query)
        }
    }

    #[inline(always)]
    fn from_sums(sums: Self::Sums) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_cvtepi32_ps(sums) })
    }
}
