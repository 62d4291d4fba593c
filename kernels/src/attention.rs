//! Paged attention with online softmax.
//!
//! Keys and values are visited in tiles of 16 tokens from the start of the context, for every query in
//! the same order, so a decode row equals the same row inside a prefill chunk bit for bit.

use std::ops::Range;

use crate::cpu::{self, QueryState, TILE_TOKENS, TileInput};
use crate::kv_cache::KvCache;
use crate::partition::{Chunks, SharedSlice};
use crate::pool::ThreadPool;

/// Rows of one sequence that read a tile together.
const ROWS_PER_UNIT: usize = 16;

/// Shape and variant of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionParams {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// Multiplies q·k.
    pub scale: f32,
    /// A row sees this many tokens, itself included.
    pub sliding_window: Option<usize>,
    /// `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
}

/// The rows of one sequence: the last `num_rows` of its `context_len` tokens.
#[derive(Debug, Clone, Copy)]
pub struct AttentionRows<'a> {
    pub block_table: &'a [u32],
    pub num_rows: usize,
    pub context_len: usize,
}

/// Some rows of one sequence and one KV head.
struct Unit {
    sequence: usize,
    /// Rows within the sequence.
    rows: Range<usize>,
    /// Index of the sequence's first row in the batch.
    first_row: usize,
    kv_head: usize,
}

/// `q` and `out` are `[num_rows, num_heads * head_dim]`; the rows of `sequences` are concatenated.
/// Keys and values of all rows must have been written before.
///
/// # Panics
/// When shapes or block tables do not fit.
pub fn paged_attention(
    pool: &ThreadPool,
    params: &AttentionParams,
    kv_cache: &KvCache,
    layer: usize,
    q: &[f32],
    sequences: &[AttentionRows<'_>],
    out: &mut [f32],
) {
    let width = params.num_heads * params.head_dim;
    let num_rows: usize = sequences.iter().map(|sequence| sequence.num_rows).sum();
    assert_eq!(q.len(), num_rows * width, "q is [rows, heads * head_dim]");
    assert_eq!(out.len(), q.len(), "out is shaped as q");
    assert_eq!(
        params.head_dim,
        kv_cache.head_dim(),
        "head_dim differs from the cache's"
    );
    assert_eq!(
        params.num_heads % params.num_kv_heads,
        0,
        "heads divide into groups"
    );
    for sequence in sequences {
        assert!(
            sequence.context_len <= sequence.block_table.len() * kv_cache.block_size()
                && sequence.num_rows <= sequence.context_len,
            "the block table covers the context"
        );
    }
    let units = units(params, sequences);
    let shared = SharedSlice::new(out);
    let chunks = Chunks::new(units.len());
    pool.run(&|_, _| {
        let mut keys = vec![0.0; params.head_dim * TILE_TOKENS];
        let mut values = vec![0.0; params.head_dim * TILE_TOKENS];
        while let Some(unit) = chunks.take() {
            let unit = &units[unit];
            let sequence = &sequences[unit.sequence];
            let tiles = TileReader {
                kv_cache,
                layer,
                kv_head: unit.kv_head,
                block_table: sequence.block_table,
            };
            attend_unit(
                params,
                &tiles,
                unit,
                sequence,
                q,
                &shared,
                &mut keys,
                &mut values,
            );
        }
    });
}

/// Long contexts first, so that the last unit to start is a short one.
fn units(params: &AttentionParams, sequences: &[AttentionRows<'_>]) -> Vec<Unit> {
    let mut units = Vec::new();
    let mut first_row = 0;
    for (index, sequence) in sequences.iter().enumerate() {
        for start in (0..sequence.num_rows).step_by(ROWS_PER_UNIT) {
            let rows = start..(start + ROWS_PER_UNIT).min(sequence.num_rows);
            units.extend((0..params.num_kv_heads).map(|kv_head| Unit {
                sequence: index,
                rows: rows.clone(),
                first_row,
                kv_head,
            }));
        }
        first_row += sequence.num_rows;
    }
    units.sort_by_key(|unit| {
        let sequence = &sequences[unit.sequence];
        std::cmp::Reverse(sequence.context_len - sequence.num_rows + unit.rows.end)
    });
    units
}

struct TileReader<'a> {
    kv_cache: &'a KvCache,
    layer: usize,
    kv_head: usize,
    block_table: &'a [u32],
}

impl TileReader<'_> {
    /// Widens tokens `start..start + 16` into `keys` `[head_dim, 16]` and `values` `[16, head_dim]`.
    fn read(&self, start: usize, keys: &mut [f32], values: &mut [f32]) {
        let block_size = self.kv_cache.block_size();
        let head_dim = self.kv_cache.head_dim();
        let (block, offset) = (start / block_size, start % block_size);
        let block = self.block_table[block] as usize;
        let source = self.kv_cache.keys(self.layer, block, self.kv_head);
        if block_size == TILE_TOKENS {
            cpu::widen_halves(source, keys);
        } else {
            for (row, keys) in source
                .chunks_exact(block_size)
                .zip(keys.chunks_exact_mut(TILE_TOKENS))
            {
                cpu::widen_halves(&row[offset..offset + TILE_TOKENS], keys);
            }
        }
        let source = self.kv_cache.values(self.layer, block, self.kv_head);
        let range = offset * head_dim..(offset + TILE_TOKENS) * head_dim;
        cpu::widen_halves(&source[range], values);
    }
}

#[allow(clippy::too_many_arguments)]
fn attend_unit(
    params: &AttentionParams,
    tiles: &TileReader<'_>,
    unit: &Unit,
    sequence: &AttentionRows<'_>,
    q: &[f32],
    out: &SharedSlice<'_, f32>,
    keys: &mut [f32],
    values: &mut [f32],
) {
    let head_dim = params.head_dim;
    let width = params.num_heads * head_dim;
    let group = params.num_heads / params.num_kv_heads;
    let first_position = sequence.context_len - sequence.num_rows;
    let mut states = Vec::with_capacity(unit.rows.len() * group);
    for row in unit.rows.clone() {
        for head in unit.kv_head * group..(unit.kv_head + 1) * group {
            let at = (unit.first_row + row) * width + head * head_dim;
            // SAFETY: a (row, head) cell belongs to one unit.
            let out = unsafe { out.slice_mut(at, head_dim) };
            out.fill(0.0);
            states.push(QueryState {
                query: &q[at..at + head_dim],
                out,
                max: f32::NEG_INFINITY,
                sum: 0.0,
                visible: 0..0,
            });
        }
    }
    let window_start = |position: usize| match params.sliding_window {
        Some(window) => (position + 1).saturating_sub(window),
        None => 0,
    };
    let first = window_start(first_position + unit.rows.start) / TILE_TOKENS * TILE_TOKENS;
    let last = first_position + unit.rows.end;
    for start in (first..last).step_by(TILE_TOKENS) {
        tiles.read(start, keys, values);
        for (index, state) in states.iter_mut().enumerate() {
            let position = first_position + unit.rows.start + index / group;
            let from = window_start(position)
                .saturating_sub(start)
                .min(TILE_TOKENS);
            let to = (position + 1).saturating_sub(start).min(TILE_TOKENS);
            state.visible = from..to;
        }
        let tile = TileInput {
            keys,
            values,
            scale: params.scale,
            softcap: params.softcap,
        };
        cpu::attend_tile(&tile, &mut states);
    }
    for state in states {
        let inverse = 1.0 / state.sum;
        for value in state.out.iter_mut() {
            *value *= inverse;
        }
    }
}
