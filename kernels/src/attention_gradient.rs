//! Back through attention of one sequence's newest rows, by tiles of queries and tokens.
//!
//! With weights `w = softmax(scale * keys · query)` and slopes `s = values · by_result` of one
//! query, the gradient by the score of token `i` is `w_i (s_i - sum of w s)`.

use std::cell::RefCell;
use std::ops::Range;

use crate::attention::AttentionParams;
use crate::cost;
use crate::cpu;
use crate::kv_cache::KvCache;
use crate::partition::{SharedSlice, for_each, for_ranges};
use crate::pool::ThreadPool;

/// Queries and tokens of a tile.
const QUERIES: usize = 16;
const TOKENS: usize = 64;

/// In the place of a token's slot: its keys and values are gone, and it lies behind the sliding
/// window of all rows.
pub const NO_SLOT: u32 = u32::MAX;

/// What the gradient reads: the queries as they were rotated, and the gradient by attention's
/// result, both
/// `[rows, num_heads * head_dim]`.
pub struct AttentionGradient<'a> {
    pub params: &'a AttentionParams,
    pub queries: &'a [f32],
    pub by_result: &'a [f32],
    /// The slot in the cache of each token of the sequence. The rows are the last ones; keys and
    /// values before them are constants. The first ones may be [`NO_SLOT`].
    pub slots: &'a [u32],
}

/// Gradients by what attention read: `by_queries` is `[rows, num_heads * head_dim]`, the others are
/// `[rows, num_kv_heads * head_dim]`.
#[derive(Debug, Default)]
pub struct AttentionGradients {
    pub by_queries: Vec<f32>,
    pub by_keys: Vec<f32>,
    pub by_values: Vec<f32>,
    heads: Vec<KvHead>,
    /// A query head's own part of the gradient by keys, then by values: `[num_heads, 2, tokens,
    /// head_dim]`.
    parts: Vec<f32>,
}

/// Keys and values of one head, filled up to whole tiles with zeros.
#[derive(Debug, Default)]
struct KvHead {
    /// `[tokens, head_dim]`
    keys: Vec<f32>,
    /// `[tiles, head_dim, TOKENS]`, of keys and of values.
    keys_by_token: Vec<f32>,
    values_by_token: Vec<f32>,
}

/// A thread's tiles.
#[derive(Default)]
struct Scratch {
    /// `[QUERIES, head_dim]`
    queries: Vec<f32>,
    by_result: Vec<f32>,
    by_queries: Vec<f32>,
    /// `[tiles, QUERIES, TOKENS]`: weights of tokens, and gradients by their scores.
    weights: Vec<f32>,
    slopes: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl AttentionGradients {
    /// Fills in the gradients by the rows' queries, keys and values.
    ///
    /// # Panics
    /// When lengths do not fit.
    pub fn run(
        &mut self,
        pool: &ThreadPool,
        input: &AttentionGradient<'_>,
        cache: &KvCache,
        layer: usize,
    ) {
        let params = input.params;
        let (heads, kv_heads, dim) = (params.num_heads, params.num_kv_heads, params.head_dim);
        let num_rows = input.queries.len() / (heads * dim);
        assert_eq!(input.queries.len(), num_rows * heads * dim, "whole rows");
        assert_eq!(input.by_result.len(), input.queries.len(), "shaped alike");
        let num_tokens = input.slots.len();
        assert!(num_rows <= num_tokens, "the rows are of the sequence");
        let window = params.sliding_window.unwrap_or(usize::MAX);
        assert!(
            num_gone(input.slots) <= (num_tokens - num_rows + 1).saturating_sub(window),
            "what the rows see is there"
        );
        self.by_queries.resize(num_rows * heads * dim, 0.0);
        self.by_keys.resize(num_rows * kv_heads * dim, 0.0);
        self.by_values.resize(num_rows * kv_heads * dim, 0.0);
        self.heads.resize_with(kv_heads, KvHead::default);
        let shared = SharedSlice::new(&mut self.heads);
        for_each(
            pool,
            cost::values(2 * num_tokens * kv_heads * dim),
            kv_heads,
            |head| {
                // SAFETY: each head is taken once.
                unsafe { &mut shared.slice_mut(head, 1)[0] }.load(cache, layer, head, input);
            },
        );
        let first = num_tokens - num_rows;
        let own = Own {
            num_rows,
            first,
            start: first / TOKENS * TOKENS,
            padded: num_tokens.next_multiple_of(TOKENS),
        };
        self.parts.clear();
        self.parts.resize(heads * 2 * own.len() * dim, 0.0);
        let parts = SharedSlice::new(&mut self.parts);
        let by_queries = SharedSlice::new(&mut self.by_queries);
        let work = cost::attention(3 * num_rows * (first + num_rows / 2), heads, dim);
        for_each(pool, work, heads, |head| {
            let read = Head {
                input,
                kv: &self.heads[head / (heads / kv_heads)],
                head,
                own,
            };
            let len = 2 * own.len() * dim;
            // SAFETY: each head is taken once.
            let part = unsafe { parts.slice_mut(head * len, len) };
            SCRATCH.with_borrow_mut(|scratch| {
                for start in (0..num_rows).step_by(QUERIES) {
                    let rows = start..(start + QUERIES).min(num_rows);
                    read.add(rows, scratch, part, &by_queries);
                }
            });
        });
        self.join(pool, params, own);
    }

    /// Adds up the parts of the query heads that share a KV head, in their order.
    fn join(&mut self, pool: &ThreadPool, params: &AttentionParams, own: Own) {
        let (kv_heads, dim) = (params.num_kv_heads, params.head_dim);
        let (group, len) = (params.num_heads / kv_heads, own.len() * dim);
        let outs = [&mut self.by_keys, &mut self.by_values].map(|out| SharedSlice::new(out));
        let parts = &self.parts;
        let work = cost::values(parts.len());
        for_ranges(pool, work, own.num_rows, |rows| {
            for (row, head) in rows.flat_map(|row| (0..kv_heads).map(move |head| (row, head))) {
                for (which, out) in outs.iter().enumerate() {
                    // SAFETY: each row is taken once.
                    let out = unsafe { out.slice_mut((row * kv_heads + head) * dim, dim) };
                    out.fill(0.0);
                    for part in head * group..(head + 1) * group {
                        let at = (2 * part + which) * len + (own.first - own.start + row) * dim;
                        cpu::add_assign(out, &parts[at..at + dim]);
                    }
                }
            }
        });
    }
}

/// Tokens at the start whose keys and values are gone.
fn num_gone(slots: &[u32]) -> usize {
    slots.iter().take_while(|slot| **slot == NO_SLOT).count()
}

/// Which tokens are the rows'.
#[derive(Clone, Copy)]
struct Own {
    num_rows: usize,
    /// The first row's token, and the first of its tile.
    first: usize,
    start: usize,
    /// Tokens, whole tiles of them.
    padded: usize,
}

impl Own {
    /// Tokens of the tiles that rows are in.
    fn len(&self) -> usize {
        self.padded - self.start
    }
}

impl KvHead {
    fn load(&mut self, cache: &KvCache, layer: usize, head: usize, input: &AttentionGradient<'_>) {
        let dim = input.params.head_dim;
        let len = input.slots.len().next_multiple_of(TOKENS) * dim;
        let mut values = Vec::new();
        let gone = num_gone(input.slots);
        cache.read(
            layer,
            head,
            &input.slots[gone..],
            &mut self.keys,
            &mut values,
        );
        for rows in [&mut self.keys, &mut values] {
            rows.splice(..0, std::iter::repeat_n(0.0, gone * dim));
        }
        self.keys.resize(len, 0.0);
        let sides = [
            (&self.keys, &mut self.keys_by_token),
            (&values, &mut self.values_by_token),
        ];
        for (rows, out) in sides {
            out.clear();
            out.resize(len, 0.0);
            for (token, row) in rows.chunks_exact(dim).enumerate() {
                let tile = &mut out[token / TOKENS * TOKENS * dim..][..TOKENS * dim];
                for (value, line) in row.iter().zip(tile.chunks_exact_mut(TOKENS)) {
                    line[token % TOKENS] = *value;
                }
            }
        }
    }
}

/// One query head.
struct Head<'a> {
    input: &'a AttentionGradient<'a>,
    kv: &'a KvHead,
    head: usize,
    own: Own,
}

impl Head<'_> {
    /// Adds what `rows` make of the gradients; `part` are the sums by keys and by values.
    fn add(
        &self,
        rows: Range<usize>,
        scratch: &mut Scratch,
        part: &mut [f32],
        by_queries: &SharedSlice<'_, f32>,
    ) {
        let params = self.input.params;
        let (dim, width) = (params.head_dim, params.num_heads * params.head_dim);
        scratch.load(self, rows.clone());
        let tiles = self.tiles(&rows);
        for tile in tiles.clone() {
            let at = (tile - tiles.start) * QUERIES * TOKENS;
            let by_token = tile * TOKENS * dim..(tile + 1) * TOKENS * dim;
            let weights = &mut scratch.weights[at..][..QUERIES * TOKENS];
            let keys = &self.kv.keys_by_token[by_token.clone()];
            cpu::add_outer(&scratch.queries, dim, keys, weights, TOKENS);
            let slopes = &mut scratch.slopes[at..][..QUERIES * TOKENS];
            let values = &self.kv.values_by_token[by_token];
            cpu::add_outer(&scratch.by_result, dim, values, slopes, TOKENS);
        }
        for row in 0..rows.len() {
            let last = self.own.first + rows.start + row;
            let window = params.sliding_window.unwrap_or(usize::MAX);
            let seen = (last + 1).saturating_sub(window)..last + 1;
            scratch.differentiate(row, &tiles, seen, params.scale);
        }
        for tile in tiles.clone() {
            let at = (tile - tiles.start) * QUERIES * TOKENS;
            let keys = &self.kv.keys[tile * TOKENS * dim..][..TOKENS * dim];
            let slopes = &scratch.slopes[at..][..QUERIES * TOKENS];
            cpu::add_outer(slopes, TOKENS, keys, &mut scratch.by_queries, dim);
            let Some(token) = (tile * TOKENS).checked_sub(self.own.start) else {
                continue;
            };
            let (by_keys, by_values) = part.split_at_mut(self.own.len() * dim);
            let place = token * dim..(token + TOKENS) * dim;
            let by_keys = &mut by_keys[place.clone()];
            cpu::add_outer_exchanged(slopes, TOKENS, &scratch.queries, by_keys, dim);
            let weights = &scratch.weights[at..][..QUERIES * TOKENS];
            let by_values = &mut by_values[place];
            cpu::add_outer_exchanged(weights, TOKENS, &scratch.by_result, by_values, dim);
        }
        for (row, values) in rows.zip(scratch.by_queries.chunks_exact(dim)) {
            // SAFETY: each row of a head is taken once.
            let out = unsafe { by_queries.slice_mut(row * width + self.head * dim, dim) };
            out.copy_from_slice(values);
        }
    }

    /// The tiles of tokens that some of `rows` see.
    fn tiles(&self, rows: &Range<usize>) -> Range<usize> {
        let first = self.own.first;
        let window = self.input.params.sliding_window.unwrap_or(usize::MAX);
        let start = (first + rows.start + 1).saturating_sub(window);
        start / TOKENS..(first + rows.end).div_ceil(TOKENS)
    }
}

impl Scratch {
    /// Takes the queries of `rows`, and the gradient by what they got; rows that are not there are
    /// zero.
    fn load(&mut self, head: &Head<'_>, rows: Range<usize>) {
        let params = head.input.params;
        let (dim, width) = (params.head_dim, params.num_heads * params.head_dim);
        let sides = [
            (head.input.queries, &mut self.queries),
            (head.input.by_result, &mut self.by_result),
        ];
        for (from, out) in sides {
            out.clear();
            for row in rows.clone() {
                out.extend_from_slice(&from[row * width + head.head * dim..][..dim]);
            }
            out.resize(QUERIES * dim, 0.0);
        }
        self.by_queries.clear();
        self.by_queries.resize(QUERIES * dim, 0.0);
        let len = head.tiles(&rows).len() * QUERIES * TOKENS;
        for tiles in [&mut self.weights, &mut self.slopes] {
            tiles.clear();
            tiles.resize(len, 0.0);
        }
    }

    /// Turns one row's scores into weights, and what its tokens' values pull into the gradient by
    /// scores. What the row does not see weighs nothing.
    fn differentiate(&mut self, row: usize, tiles: &Range<usize>, seen: Range<usize>, scale: f32) {
        let place = |tile: usize| ((tile - tiles.start) * QUERIES + row) * TOKENS;
        let mut largest = f32::NEG_INFINITY;
        for tile in tiles.clone() {
            let scores = &mut self.weights[place(tile)..][..TOKENS];
            let within = |token: usize| token.saturating_sub(tile * TOKENS).min(TOKENS);
            cpu::mask_scores(
                scores,
                within(seen.start)..within(seen.end),
                scale,
                &mut largest,
            );
        }
        let mut sums = [0.0; 2];
        for tile in tiles.clone() {
            let scores = &mut self.weights[place(tile)..][..TOKENS];
            let slopes = &self.slopes[place(tile)..][..TOKENS];
            cpu::weigh_scores(scores, slopes, largest, &mut sums);
        }
        let [total, along] = sums;
        let (factor, mean) = ((1.0 / total) as f32, (along / total) as f32);
        for tile in tiles.clone() {
            let weights = &mut self.weights[place(tile)..][..TOKENS];
            let slopes = &mut self.slopes[place(tile)..][..TOKENS];
            cpu::score_gradient(weights, slopes, factor, mean, scale);
        }
    }
}
