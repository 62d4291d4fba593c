//! A tile of keys and values, however they are kept: reading them gives the same bits.

use half::f16;

use super::attend::TILE_TOKENS;
use super::kv::{CodeTile, KvVector};
use super::vector::LANES;
use crate::kv_codes::GROUP;

/// Sixteen keys and values of one KV head.
pub(crate) struct TileInput<'a> {
    pub keys: TileKeys<'a>,
    pub values: TileValues<'a>,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub head_dim: usize,
}

/// Keys, and the queries that they are scored by: of all rows, where
/// [`super::QueryState::query`] points into them.
pub(crate) enum TileKeys<'a> {
    /// `[head_dim, TILE_TOKENS]`
    Floats {
        keys: &'a [f32],
        q: &'a [f32],
    },
    /// The same as f16 bits.
    Halves {
        keys: &'a [u16],
        q: &'a [f32],
    },
    Codes(CodeTile<'a>),
}

/// Values, `[TILE_TOKENS, head_dim]`.
pub(crate) enum TileValues<'a> {
    Floats(&'a [f32]),
    /// f16 bits.
    Halves(&'a [u16]),
    /// With the scales `[groups, TILE_TOKENS]`.
    Codes {
        codes: &'a [i8],
        scales: &'a [f32],
    },
}

/// f32, or f16 bits.
pub(super) trait Float: Copy {
    fn widen<V: KvVector>(piece: &[Self; LANES]) -> V;
    fn to_f32(self) -> f32;
}

impl Float for f32 {
    #[inline(always)]
    fn widen<V: KvVector>(piece: &[Self; LANES]) -> V {
        V::load(piece)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Float for u16 {
    #[inline(always)]
    fn widen<V: KvVector>(piece: &[Self; LANES]) -> V {
        V::load_f16(piece)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::from_bits(self).to_f32()
    }
}

/// Values of some type, `[TILE_TOKENS, head_dim]`.
pub(super) trait Values<V> {
    type Element;

    fn elements(&self) -> &[Self::Element];
    /// What dimensions `d..d + LANES` of a token's value are.
    fn widen(&self, piece: &[Self::Element; LANES], token: usize, d: usize) -> V;
    /// The same of one dimension.
    fn one(&self, token: usize, d: usize) -> f32;
}

pub(super) struct FloatValues<'a, T> {
    pub values: &'a [T],
    pub head_dim: usize,
}

pub(super) struct CodeValues<'a> {
    pub codes: &'a [i8],
    pub scales: &'a [f32],
    pub head_dim: usize,
}

impl<V: KvVector, T: Float> Values<V> for FloatValues<'_, T> {
    type Element = T;

    #[inline(always)]
    fn elements(&self) -> &[T] {
        self.values
    }

    #[inline(always)]
    fn widen(&self, piece: &[T; LANES], _: usize, _: usize) -> V {
        T::widen(piece)
    }

    #[inline(always)]
    fn one(&self, token: usize, d: usize) -> f32 {
        self.values[token * self.head_dim + d].to_f32()
    }
}

impl<V: KvVector> Values<V> for CodeValues<'_> {
    type Element = i8;

    #[inline(always)]
    fn elements(&self) -> &[i8] {
        self.codes
    }

    #[inline(always)]
    fn widen(&self, piece: &[i8; LANES], token: usize, d: usize) -> V {
        let scale = self.scales[d / GROUP * TILE_TOKENS + token];
        V::from_codes(piece).mul(V::splat(scale))
    }

    #[inline(always)]
    fn one(&self, token: usize, d: usize) -> f32 {
        let scale = self.scales[d / GROUP * TILE_TOKENS + token];
        f32::from(self.codes[token * self.head_dim + d]) * scale
    }
}
