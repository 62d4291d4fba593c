//! The inner step of attention in plain Rust, compiled for every instruction set.

use std::ops::Range;

use super::vector::{LANES, Vector, exp};

/// Keys and values processed together by attention.
pub(crate) const TILE_TOKENS: usize = LANES;

/// Sixteen keys and values of one KV head, widened.
pub(crate) struct TileInput<'a> {
    /// `[head_dim, TILE_TOKENS]`
    pub keys: &'a [f32],
    /// `[TILE_TOKENS, head_dim]`
    pub values: &'a [f32],
    pub scale: f32,
    pub softcap: Option<f32>,
    /// The rows' queries; [`QueryState::query`] points into it.
    pub q: &'a [f32],
    pub head_dim: usize,
}

/// One query (a row and head) and its running softmax.
#[derive(Debug, Clone)]
pub(crate) struct QueryState {
    /// Where the query's `head_dim` values begin in `TileInput::q`.
    pub query: usize,
    pub max: f32,
    pub sum: f32,
    /// Tokens of the tile that this query may see.
    pub visible: Range<usize>,
}

/// `outs` is `[states.len(), head_dim]`, the unnormalised outputs. A query's operations do not depend on
/// the others.
#[inline(always)]
pub(super) fn attend_tile<V: Vector>(
    tile: &TileInput<'_>,
    states: &mut [QueryState],
    outs: &mut [f32],
) {
    let mut at = 0;
    while at < states.len() {
        // Queries hide each other's latency and share loads.
        let count = V::MAX_SUMS.min(states.len() - at);
        let states = &mut states[at..at + count];
        let outs = &mut outs[at * tile.head_dim..(at + count) * tile.head_dim];
        match count {
            8 => attend_queries::<V, 8>(tile, states, outs),
            7 => attend_queries::<V, 7>(tile, states, outs),
            6 => attend_queries::<V, 6>(tile, states, outs),
            5 => attend_queries::<V, 5>(tile, states, outs),
            4 => attend_queries::<V, 4>(tile, states, outs),
            3 => attend_queries::<V, 3>(tile, states, outs),
            2 => attend_queries::<V, 2>(tile, states, outs),
            _ => attend_queries::<V, 1>(tile, states, outs),
        }
        at += count;
    }
}

#[inline(always)]
fn attend_queries<V: Vector, const N: usize>(
    tile: &TileInput<'_>,
    states: &mut [QueryState],
    outs: &mut [f32],
) {
    let head_dim = tile.head_dim;
    let mut queries = [&tile.q[..0]; N];
    for n in 0..N {
        queries[n] = &tile.q[states[n].query..][..head_dim];
    }
    // Even and odd dimensions are summed apart, so that a few queries keep the units busy.
    let (mut even, mut odd) = ([V::splat(0.0); N], [V::splat(0.0); N]);
    let (keys, _) = tile.keys.as_chunks::<TILE_TOKENS>();
    let (pairs, rest) = keys[..head_dim].as_chunks::<2>();
    for (d, [first, second]) in pairs.iter().enumerate() {
        let (first, second) = (V::load(first), V::load(second));
        for n in 0..N {
            even[n] = even[n].add_product(V::splat(queries[n][2 * d]), first);
            odd[n] = odd[n].add_product(V::splat(queries[n][2 * d + 1]), second);
        }
    }
    for keys in rest {
        for n in 0..N {
            let query = V::splat(queries[n][head_dim - 1]);
            even[n] = even[n].add_product(query, V::load(keys));
        }
    }
    let mut sums = even;
    for n in 0..N {
        sums[n] = even[n].add_product(V::splat(1.0), odd[n]);
    }
    let mut weights = [[0.0_f32; TILE_TOKENS]; N];
    let corrections = update_states(tile, &sums, states, &mut weights);
    add_values::<V, N>(tile, &weights, &corrections, outs);
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
    tile: &TileInput<'_>,
    weights: &[[f32; TILE_TOKENS]; N],
    corrections: &[f32; LANES],
    outs: &mut [f32],
) {
    let head_dim = tile.head_dim;
    let whole = head_dim - head_dim % LANES;
    let mut start = 0;
    // A few queries take several pieces of the output at once, for the same reason.
    if N <= 2 {
        while start + 4 * LANES <= whole {
            add_piece::<V, N, 4>(tile, weights, corrections, outs, start);
            start += 4 * LANES;
        }
    }
    if N <= 4 {
        while start + 2 * LANES <= whole {
            add_piece::<V, N, 2>(tile, weights, corrections, outs, start);
            start += 2 * LANES;
        }
    }
    while start < whole {
        add_piece::<V, N, 1>(tile, weights, corrections, outs, start);
        start += LANES;
    }
    for n in 0..N {
        for d in head_dim - head_dim % LANES..head_dim {
            let mut sum = outs[n * head_dim + d] * corrections[n];
            for (weight, row) in weights[n].iter().zip(tile.values.chunks(head_dim)) {
                sum += weight * row[d];
            }
            outs[n * head_dim + d] = sum;
        }
    }
}

/// [`add_values`] for the dimensions `start..start + WIDTH * LANES`.
#[inline(always)]
fn add_piece<V: Vector, const N: usize, const WIDTH: usize>(
    tile: &TileInput<'_>,
    weights: &[[f32; TILE_TOKENS]; N],
    corrections: &[f32; LANES],
    outs: &mut [f32],
    start: usize,
) {
    let head_dim = tile.head_dim;
    // No closures here: `array::from_fn` isn't always inlined.
    let mut sums = [[V::splat(0.0); WIDTH]; N];
    for n in 0..N {
        let (pieces, _) = outs[n * head_dim + start..].as_chunks::<LANES>();
        for w in 0..WIDTH {
            sums[n][w] = V::load(&pieces[w]).mul(V::splat(corrections[n]));
        }
    }
    let rows = tile.values[start..].chunks(head_dim);
    for (t, row) in rows.enumerate().take(TILE_TOKENS) {
        let (pieces, _) = row.as_chunks::<LANES>();
        for w in 0..WIDTH {
            let values = V::load(&pieces[w]);
            for n in 0..N {
                sums[n][w] = sums[n][w].add_product(V::splat(weights[n][t]), values);
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
