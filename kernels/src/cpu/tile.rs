//! A tile of keys and values, however they are kept: reading them gives the same bits.

use half::f16;

use super::attend::{QueryState, TILE_TOKENS};
use super::kv::{CodeTile, KvVector, dot_codes};
use super::vector::LANES;
use crate::kv_codes::GROUP;

/// Sixteen keys and values of one KV head.
pub(crate) struct TileInput<'a> {
    pub data: TileData<'a>,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub head_dim: usize,
}

impl TileInput<'_> {
    /// Adds the tile to each query's running softmax.
    pub(crate) fn attend(&self, states: &mut [QueryState], outs: &mut [f32]) {
        match self.data {
            TileData::Floats { .. } => super::attend_floats(self, states, outs),
            TileData::Halves { .. } => super::attend_halves(self, states, outs),
            TileData::CodedKeys { .. } => super::attend_coded_keys(self, states, outs),
            TileData::Codes { .. } => super::attend_codes(self, states, outs),
        }
    }
}

/// Keys, values `[TILE_TOKENS, head_dim]`, and the queries that keys are scored by: `q` is those of
/// all rows, where [`super::QueryState::query`] points into them.
///
/// Keys and values are named together, so that each pair has a function of its own: one for all of
/// them is so large that the compiler made prefill over f16 a tenth slower.
pub(crate) enum TileData<'a> {
    /// Keys are `[head_dim, TILE_TOKENS]`.
    Floats {
        keys: &'a [f32],
        values: &'a [f32],
        q: &'a [f32],
    },
    /// The same as f16 bits.
    Halves {
        keys: &'a [u16],
        values: &'a [u16],
        q: &'a [f32],
    },
    /// Keys as codes, values widened.
    CodedKeys {
        keys: CodeTile<'a>,
        values: &'a [f32],
    },
    /// Both as codes, with the values' scales `[groups, TILE_TOKENS]`.
    Codes {
        keys: CodeTile<'a>,
        values: &'a [i8],
        scales: &'a [f32],
    },
}

/// Keys of some type.
pub(super) trait Keys<V> {
    /// `query · key` of the queries of `states`, which begin with the tile's query `first`, with
    /// every key of the tile.
    fn dot<const N: usize>(&self, first: usize, states: &[QueryState], head_dim: usize) -> [V; N];
}

/// Keys `[head_dim, TILE_TOKENS]`, and the queries of all rows.
pub(super) struct FloatKeys<'a, T> {
    pub keys: &'a [T],
    pub q: &'a [f32],
}

impl<V: KvVector, T: Float> Keys<V> for FloatKeys<'_, T> {
    #[inline(always)]
    fn dot<const N: usize>(&self, _: usize, states: &[QueryState], head_dim: usize) -> [V; N] {
        let (keys, _) = self.keys.as_chunks::<TILE_TOKENS>();
        let (pairs, rest) = keys[..head_dim].as_chunks::<2>();
        let mut queries = [&self.q[..0]; N];
        for n in 0..N {
            queries[n] = &self.q[states[n].query..][..head_dim];
        }
        // Even and odd dimensions are summed apart, so that a few queries keep the units busy.
        let (mut even, mut odd) = ([V::splat(0.0); N], [V::splat(0.0); N]);
        for (d, [first, second]) in pairs.iter().enumerate() {
            let (first, second): (V, V) = (T::widen(first), T::widen(second));
            for n in 0..N {
                even[n] = even[n].add_product(V::splat(queries[n][2 * d]), first);
                odd[n] = odd[n].add_product(V::splat(queries[n][2 * d + 1]), second);
            }
        }
        for key in rest {
            let key: V = T::widen(key);
            for n in 0..N {
                even[n] = even[n].add_product(V::splat(queries[n][head_dim - 1]), key);
            }
        }
        let mut sums = even;
        for n in 0..N {
            sums[n] = even[n].add_product(V::splat(1.0), odd[n]);
        }
        sums
    }
}

impl<V: KvVector> Keys<V> for CodeTile<'_> {
    #[inline(always)]
    fn dot<const N: usize>(&self, first: usize, _: &[QueryState], head_dim: usize) -> [V; N] {
        dot_codes(self, first, head_dim)
    }
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
