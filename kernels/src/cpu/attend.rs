//! The inner step of attention in plain Rust, compiled for every instruction set.

use std::ops::Range;

use super::kv::KvVector;
use super::tile::{CodeValues, FloatKeys, FloatValues, Keys, TileData, TileInput, Values};
#[cfg(target_arch = "x86_64")]
use super::vector::{Avx, Avx512};
use super::vector::{LANES, Plain, Vector, exp};
use super::{Isa, isa};

/// Keys and values processed together by attention.
pub(crate) const TILE_TOKENS: usize = LANES;

/// One query (a row and head) and its running softmax.
#[derive(Debug, Clone)]
pub(crate) struct QueryState {
    /// Where the query's `head_dim` values begin among those of all rows.
    pub query: usize,
    pub max: f32,
    pub sum: f32,
    /// Tokens of the tile that this query may see.
    pub visible: Range<usize>,
}

/// Most queries of a tile that are attended together: these may read the cache as it is, more of
/// them want it widened once for all.
pub(crate) fn queries_at_once() -> usize {
    match isa() {
        Isa::Portable => Plain::MAX_SUMS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => Avx::MAX_SUMS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => Avx512::MAX_SUMS,
    }
}

/// See [`super::attend_floats`].
#[inline(always)]
pub(super) fn attend_floats<V: KvVector>(
    tile: &TileInput<'_>,
    states: &mut [QueryState],
    outs: &mut [f32],
) {
    if let TileData::Floats { keys, values, q } = tile.data {
        let head_dim = tile.head_dim;
        let values = FloatValues { values, head_dim };
        attend_all::<V, _, _>(tile, &FloatKeys { keys, q }, &values, states, outs);
    }
}

/// See [`super::attend_floats`].
#[inline(always)]
pub(super) fn attend_halves<V: KvVector>(
    tile: &TileInput<'_>,
    states: &mut [QueryState],
    outs: &mut [f32],
) {
    if let TileData::Halves { keys, values, q } = tile.data {
        let head_dim = tile.head_dim;
        let values = FloatValues { values, head_dim };
        attend_all::<V, _, _>(tile, &FloatKeys { keys, q }, &values, states, outs);
    }
}

/// See [`super::attend_floats`].
#[inline(always)]
pub(super) fn attend_coded_keys<V: KvVector>(
    tile: &TileInput<'_>,
    states: &mut [QueryState],
    outs: &mut [f32],
) {
    if let TileData::CodedKeys { ref keys, values } = tile.data {
        let head_dim = tile.head_dim;
        let values = FloatValues { values, head_dim };
        attend_all::<V, _, _>(tile, keys, &values, states, outs);
    }
}

/// See [`super::attend_floats`].
#[inline(always)]
pub(super) fn attend_codes<V: KvVector>(
    tile: &TileInput<'_>,
    states: &mut [QueryState],
    outs: &mut [f32],
) {
    if let TileData::Codes {
        ref keys,
        values: codes,
        scales,
    } = tile.data
    {
        let head_dim = tile.head_dim;
        let values = CodeValues {
            codes,
            scales,
            head_dim,
        };
        attend_all::<V, _, _>(tile, keys, &values, states, outs);
    }
}

/// A query's operations do not depend on the others.
#[inline(always)]
fn attend_all<V: KvVector, K: Keys<V>, W: Values<V>>(
    tile: &TileInput<'_>,
    keys: &K,
    values: &W,
    states: &mut [QueryState],
    outs: &mut [f32],
) {
    let mut at = 0;
    while at < states.len() {
        // Queries hide each other's latency and share loads.
        let count = V::MAX_SUMS.min(states.len() - at);
        let first = at;
        let states = &mut states[at..at + count];
        let outs = &mut outs[at * tile.head_dim..(at + count) * tile.head_dim];
        match count {
            8 => attend_queries::<V, K, W, 8>(tile, keys, values, first, states, outs),
            7 => attend_queries::<V, K, W, 7>(tile, keys, values, first, states, outs),
            6 => attend_queries::<V, K, W, 6>(tile, keys, values, first, states, outs),
            5 => attend_queries::<V, K, W, 5>(tile, keys, values, first, states, outs),
            4 => attend_queries::<V, K, W, 4>(tile, keys, values, first, states, outs),
            3 => attend_queries::<V, K, W, 3>(tile, keys, values, first, states, outs),
            2 => attend_queries::<V, K, W, 2>(tile, keys, values, first, states, outs),
            _ => attend_queries::<V, K, W, 1>(tile, keys, values, first, states, outs),
        }
        at += count;
    }
}

#[inline(always)]
fn attend_queries<V: KvVector, K: Keys<V>, W: Values<V>, const N: usize>(
    tile: &TileInput<'_>,
    keys: &K,
    values: &W,
    first: usize,
    states: &mut [QueryState],
    outs: &mut [f32],
) {
    let sums = keys.dot::<N>(first, states, tile.head_dim);
    let mut weights = [[0.0_f32; TILE_TOKENS]; N];
    let corrections = update_states(tile, &sums, states, &mut weights);
    add_values::<V, N>(values, &weights, &corrections, outs, tile.head_dim);
}

/// Turns scores into weights; returns what each earlier sum is multiplied by. A query that sees nothing
/// of the tile keeps its state: weights 0, correction 1.
#[inline(always)]
fn update_states<V: Vector, const N: usize>(
    tile: &TileInput<'_>,
    scores: &[V; N],
    states: &mut [QueryState],
    weights: &mut [[f32; TILE_TOKENS]; N],
) -> [f32; LANES] {
    let zero = V::splat(0.0);
    // One exponential for the corrections of all queries.
    let mut changes = [0.0_f32; LANES];
    for n in 0..N {
        let state = &mut states[n];
        let (from, to) = (state.visible.start, state.visible.end);
        let mut scores = scores[n].mul(V::splat(tile.scale));
        if let Some(cap) = tile.softcap {
            let mut values = [0.0; LANES];
            scores.store(&mut values);
            scores = V::load(&values.map(|score| cap * (score / cap).tanh()));
        }
        let seen = scores.keep(from, to, V::splat(f32::NEG_INFINITY));
        let max = state.max.max(seen.largest());
        // Nothing was seen yet by a query whose maximum is still infinite.
        changes[n] = if max == f32::NEG_INFINITY {
            0.0
        } else {
            state.max - max
        };
        let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
        exp(scores.sub(V::splat(shift)))
            .keep(from, to, zero)
            .store(&mut weights[n]);
        state.max = max;
    }
    // e^-87 stands for e^-inf: the sums it multiplies are 0.
    let mut corrections = [0.0; LANES];
    exp(V::load(&changes)).store(&mut corrections);
    for n in 0..N {
        states[n].sum = states[n].sum * corrections[n] + V::load(&weights[n]).sum();
    }
    corrections
}

/// `out = out * correction + sum_t weights[t] * values[t]` for every query.
#[inline(always)]
fn add_values<V: Vector, const N: usize>(
    values: &impl Values<V>,
    weights: &[[f32; TILE_TOKENS]; N],
    corrections: &[f32; LANES],
    outs: &mut [f32],
    head_dim: usize,
) {
    let whole = head_dim - head_dim % LANES;
    let mut start = 0;
    // A few queries take several pieces of the output at once, for the same reason.
    if N <= 2 {
        while start + 4 * LANES <= whole {
            add_piece::<V, N, 4>(values, weights, corrections, outs, head_dim, start);
            start += 4 * LANES;
        }
    }
    if N <= 4 {
        while start + 2 * LANES <= whole {
            add_piece::<V, N, 2>(values, weights, corrections, outs, head_dim, start);
            start += 2 * LANES;
        }
    }
    while start < whole {
        add_piece::<V, N, 1>(values, weights, corrections, outs, head_dim, start);
        start += LANES;
    }
    // Nearly every head is whole: else what bounds the loop below is worked out for each query.
    if whole == head_dim {
        return;
    }
    for n in 0..N {
        for d in whole..head_dim {
            let mut sum = outs[n * head_dim + d] * corrections[n];
            for (token, weight) in weights[n].iter().enumerate() {
                sum += weight * values.one(token, d);
            }
            outs[n * head_dim + d] = sum;
        }
    }
}

/// [`add_values`] for the dimensions `start..start + WIDTH * LANES`.
#[inline(always)]
fn add_piece<V: Vector, const N: usize, const WIDTH: usize>(
    values: &impl Values<V>,
    weights: &[[f32; TILE_TOKENS]; N],
    corrections: &[f32; LANES],
    outs: &mut [f32],
    head_dim: usize,
    start: usize,
) {
    // No closures here: `array::from_fn` isn't always inlined.
    let mut sums = [[V::splat(0.0); WIDTH]; N];
    for n in 0..N {
        let (pieces, _) = outs[n * head_dim + start..].as_chunks::<LANES>();
        for w in 0..WIDTH {
            sums[n][w] = V::load(&pieces[w]).mul(V::splat(corrections[n]));
        }
    }
    let rows = values.elements()[start..].chunks(head_dim);
    for (token, row) in rows.enumerate().take(TILE_TOKENS) {
        let (pieces, _) = row.as_chunks::<LANES>();
        for w in 0..WIDTH {
            let piece = values.widen(&pieces[w], token, start + w * LANES);
            for n in 0..N {
                sums[n][w] = sums[n][w].add_product(V::splat(weights[n][token]), piece);
            }
        }
    }
    for n in 0..N {
        let (pieces, _) = outs[n * head_dim + start..].as_chunks_mut::<LANES>();
        for w in 0..WIDTH {
            sums[n][w].store(&mut pieces[w]);
        }
    }
}
