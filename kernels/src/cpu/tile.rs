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

/// Keys, and the queries that they are scored by: of all rows, where [`super::QueryState::query`] points into
/// them.
pub(crate) enum TileKeys<'a> {
    /// `[head_dim, TILE_TOKENS]`
    Floats {
        keys: &'a [f32],
        q: &'a [f32],
    },
    /// f16 bits, `stride` from one dimension to the next.
    Halves {
        keys: &'a [u16],
        stride: usize,
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

/// Vectors that are read by where they begin.
pub(super) trait Source<V> {
    fn load(&self, at: usize) -> V;
}

impl<V: KvVector> Source<V> for &[f32] {
    #[inline(always)]
    fn load(&self, at: usize) -> V {
        let (pieces, _) = self[at..at + LANES].as_chunks::<LANES>();
        V::load(&pieces[0])
    }
}

impl<V: KvVector> Source<V> for &[u16] {
    #[inline(always)]
    fn load(&self, at: usize) -> V {
        let (pieces, _) = self[at..at + LANES].as_chunks::<LANES>();
        V::from_halves(&pieces[0])
    }
}

/// Values of some type.
pub(super) trait Values<V> {
    /// Dimensions `d..d + LANES` of a token's value.
    fn piece(&self, token: usize, d: usize) -> V;
    fn one(&self, token: usize, d: usize) -> f32;
}

pub(super) struct FloatValues<'a> {
    pub values: &'a [f32],
    pub head_dim: usize,
}

pub(super) struct HalfValues<'a> {
    pub values: &'a [u16],
    pub head_dim: usize,
}

pub(super) struct CodeValues<'a> {
    pub codes: &'a [i8],
    pub scales: &'a [f32],
    pub head_dim: usize,
}

impl<V: KvVector> Values<V> for FloatValues<'_> {
    #[inline(always)]
    fn piece(&self, token: usize, d: usize) -> V {
        self.values.load(token * self.head_dim + d)
    }

    #[inline(always)]
    fn one(&self, token: usize, d: usize) -> f32 {
        self.values[token * self.head_dim + d]
    }
}

impl<V: KvVector> Values<V> for HalfValues<'_> {
    #[inline(always)]
    fn piece(&self, token: usize, d: usize) -> V {
        self.values.load(token * self.head_dim + d)
    }

    #[inline(always)]
    fn one(&self, token: usize, d: usize) -> f32 {
        f16::from_bits(self.values[token * self.head_dim + d]).to_f32()
    }
}

impl<V: KvVector> Values<V> for CodeValues<'_> {
    #[inline(always)]
    fn piece(&self, token: usize, d: usize) -> V {
        let at = token * self.head_dim + d;
        let (pieces, _) = self.codes[at..at + LANES].as_chunks::<LANES>();
        let scale = self.scales[d / GROUP * TILE_TOKENS + token];
        V::from_codes(&pieces[0]).mul(V::splat(scale))
    }

    #[inline(always)]
    fn one(&self, token: usize, d: usize) -> f32 {
        let scale = self.scales[d / GROUP * TILE_TOKENS + token];
        f32::from(self.codes[token * self.head_dim + d]) * scale
    }
}
