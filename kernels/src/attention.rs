//! Paged attention with online softmax.
//!
//! Keys and values are visited in tiles of 16 tokens from the start of the context, for every query
//! in the same order, so a decode row equals the same row inside a prefill chunk bit for bit. Rows
//! whose sequences share blocks (a prompt's chunk, forks, tree nodes) read each shared tile once
//! together: their block tables, sorted, lie beside each other (bifurcated or cascade attention,
//! without a merge).

use std::cell::RefCell;
use std::ops::Range;

pub use crate::attention_params::{AttentionParams, AttentionRows};
use crate::attention_tile::{HeadCache, Queries, Tile, TileQueries};
use crate::cost;
use crate::cpu::{self, QueryState, TILE_TOKENS, TileInput};
use crate::kv_cache::KvCache;
use crate::lines::Lines;
use crate::partition::{SharedSlice, for_each};
use crate::pool::ThreadPool;

/// Most rows that read a tile together: their outputs stay in the first-level cache.
const ROWS_PER_UNIT: usize = 16;
/// Units a thread should get, when there are enough rows, so that the last one is short.
const UNITS_PER_THREAD: usize = 4;

/// One row of the batch.
#[derive(Debug, Clone, Copy)]
struct PlannedRow {
    /// Index among the batch's rows.
    row: usize,
    sequence: usize,
    /// Position in its sequence: it sees the tokens up to here.
    position: usize,
    /// Where a leaf's own key and value lie: the token's index in the context.
    own: Option<usize>,
}

/// Which rows are attended together. Made once a step and used by every layer; buffers are reused.
#[derive(Debug, Default)]
pub struct AttentionPlan {
    /// Sequences in the order of their block tables.
    order: Vec<(usize, usize)>,
    rows: Vec<PlannedRow>,
    /// Ranges of `rows`, the longest contexts first.
    units: Vec<Range<usize>>,
}

impl AttentionPlan {
    /// Plans the rows of `sequences` (concatenated in the batch) for `num_threads` threads and layers of
    /// `num_kv_heads`. How rows are grouped changes no result.
    pub fn plan(
        &mut self,
        sequences: &[AttentionRows<'_>],
        num_kv_heads: usize,
        num_threads: usize,
    ) {
        self.order.clear();
        self.rows.clear();
        self.units.clear();
        let mut first_row = 0;
        for (index, sequence) in sequences.iter().enumerate() {
            self.order.push((index, first_row));
            first_row += sequence.num_rows;
        }
        let table = |index: usize| sequences[index].block_table;
        self.order
            .sort_unstable_by(|a, b| table(a.0).cmp(table(b.0)).then(a.cmp(b)));
        let per_unit = first_row * num_kv_heads / (num_threads * UNITS_PER_THREAD);
        let per_unit = per_unit.clamp(1, ROWS_PER_UNIT);
        let mut previous = None;
        for (index, first_row) in &self.order {
            let sequence = &sequences[*index];
            let first_block = sequence.block_table.first();
            let mut is_new = previous != first_block;
            previous = first_block;
            let first_leaf = sequence.num_rows - sequence.leaves.len();
            for row in 0..sequence.num_rows {
                let at = self.rows.len();
                let place = sequence.context_len - sequence.num_rows + row;
                let leaf = row.checked_sub(first_leaf);
                self.rows.push(PlannedRow {
                    row: first_row + row,
                    sequence: *index,
                    position: leaf.map_or(place, |leaf| sequence.leaves[leaf] as usize),
                    own: leaf.map(|_| place),
                });
                match self.units.last_mut() {
                    Some(unit) if !is_new && unit.len() < per_unit => unit.end = at + 1,
                    _ => self.units.push(at..at + 1),
                }
                is_new = false;
            }
        }
        let rows = &self.rows;
        let cost = |unit: &Range<usize>| -> usize {
            rows[unit.clone()].iter().map(|row| row.position + 1).sum()
        };
        self.units
            .sort_unstable_by_key(|unit| (std::cmp::Reverse(cost(unit)), unit.start));
    }
}

/// A thread's buffers.
#[derive(Default)]
struct Scratch {
    tile: Tile,
    queries: Queries,
    states: Vec<QueryState>,
    /// `[states.len(), head_dim]`
    outs: Lines<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What all units of a call read.
struct Call<'a> {
    params: &'a AttentionParams,
    sinks: Option<&'a [f32]>,
    kv_cache: &'a KvCache,
    layer: usize,
    q: &'a [f32],
    sequences: &'a [AttentionRows<'a>],
}

/// `q` and `out` are `[num_rows, num_heads * head_dim]`; the rows of `sequences` are concatenated, and
/// `plan` was made for them. Keys and values of all rows must have been written before.
///
/// # Panics
/// When shapes or block tables do not fit.
#[allow(clippy::too_many_arguments)]
pub fn paged_attention(
    pool: &ThreadPool,
    params: &AttentionParams,
    kv_cache: &KvCache,
    layer: usize,
    plan: &AttentionPlan,
    q: &[f32],
    sequences: &[AttentionRows<'_>],
    out: &mut [f32],
) {
    paged_attention_with_sinks(pool, params, None, kv_cache, layer, plan, q, sequences, out);
}

/// [`paged_attention`] where each head has a sink (`[num_heads]`): a score beside those of the
/// tokens, of no value, that takes its share of the softmax (Xiao et al. 2023, section 3; gpt-oss
/// learns it).
///
/// # Panics
/// When shapes or block tables do not fit.
#[allow(clippy::too_many_arguments)]
pub fn paged_attention_with_sinks(
    pool: &ThreadPool,
    params: &AttentionParams,
    sinks: Option<&[f32]>,
    kv_cache: &KvCache,
    layer: usize,
    plan: &AttentionPlan,
    q: &[f32],
    sequences: &[AttentionRows<'_>],
    out: &mut [f32],
) {
    let width = params.num_heads * params.head_dim;
    let num_rows: usize = sequences.iter().map(|sequence| sequence.num_rows).sum();
    assert_eq!(q.len(), num_rows * width, "q is [rows, heads * head_dim]");
    assert_eq!(out.len(), q.len(), "out is shaped as q");
    assert_eq!(plan.rows.len(), num_rows, "the plan is for these rows");
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
    assert!(
        sinks.is_none_or(|sinks| sinks.len() == params.num_heads),
        "a sink a head"
    );
    for sequence in sequences {
        assert!(
            sequence.context_len <= sequence.block_table.len() * kv_cache.block_size()
                && sequence.num_rows <= sequence.context_len,
            "the block table covers the context"
        );
        let num_others = sequence.context_len - sequence.leaves.len();
        assert!(
            sequence.leaves.len() <= sequence.num_rows
                && sequence.leaves.iter().all(|at| (*at as usize) < num_others),
            "leaves stand beside rows of their sequence"
        );
    }
    let call = Call {
        params,
        sinks,
        kv_cache,
        layer,
        q,
        sequences,
    };
    let shared = SharedSlice::new(out);
    let num_seen = |row: &PlannedRow| row.position + 1 - call.window_start(row.position);
    let num_seen = plan.rows.iter().map(num_seen).sum();
    let work = cost::attention(num_seen, params.num_heads, params.head_dim);
    let num_items = plan.units.len() * params.num_kv_heads;
    for_each(pool, work, num_items, |item| {
        let rows = &plan.rows[plan.units[item / params.num_kv_heads].clone()];
        let kv_head = item % params.num_kv_heads;
        SCRATCH.with_borrow_mut(|scratch| call.attend(rows, kv_head, scratch, &shared));
    });
}

impl Call<'_> {
    /// The first token that a row sees.
    fn window_start(&self, position: usize) -> usize {
        match self.params.sliding_window {
            Some(window) => (position + 1).saturating_sub(window),
            None => 0,
        }
    }

    /// Attends some rows with the query heads of one KV head.
    fn attend(
        &self,
        rows: &[PlannedRow],
        kv_head: usize,
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        let head_dim = self.params.head_dim;
        let width = self.params.num_heads * head_dim;
        let group = self.params.num_heads / self.params.num_kv_heads;
        scratch.states.clear();
        for row in rows {
            let heads = kv_head * group..(kv_head + 1) * group;
            scratch.states.extend(heads.map(|head| QueryState {
                query: row.row * width + head * head_dim,
                max: f32::NEG_INFINITY,
                sum: 0.0,
                visible: 0..0,
            }));
        }
        scratch.queries.load(self.kv_cache, self.q, &scratch.states);
        scratch.outs.resize(scratch.states.len() * head_dim);
        scratch.outs.fill(0.0);
        let first = rows
            .iter()
            .map(|row| self.window_start(row.position))
            .min()
            .unwrap_or(0);
        let last = rows.iter().map(|row| row.position + 1).max().unwrap_or(0);
        for start in (first / TILE_TOKENS * TILE_TOKENS..last).step_by(TILE_TOKENS) {
            self.visit_tile(start, rows, kv_head, scratch);
        }
        let results = scratch
            .states
            .iter()
            .zip(scratch.outs.chunks_exact(head_dim));
        for (index, (state, values)) in results.enumerate() {
            let sink = self
                .sinks
                .map(|sinks| sinks[kv_head * group + index % group]);
            let inverse = 1.0 / (state.sum + sink.map_or(0.0, |sink| (sink - state.max).exp()));
            // SAFETY: a (row, head) cell belongs to one unit, and queries and outputs lie alike.
            let out = unsafe { out.slice_mut(state.query, head_dim) };
            for (out, value) in out.iter_mut().zip(values) {
                *out = value * inverse;
            }
        }
    }

    /// Reads the tile at `start` once for every run of rows that have the same block there.
    fn visit_tile(&self, start: usize, rows: &[PlannedRow], kv_head: usize, scratch: &mut Scratch) {
        let group = self.params.num_heads / self.params.num_kv_heads;
        let block_index = start / self.kv_cache.block_size();
        let block_of = |row: &PlannedRow| {
            self.sequences[row.sequence]
                .block_table
                .get(block_index)
                .copied()
        };
        // A leaf changes the tile of its position, for itself alone.
        let leaf_of = |row: &PlannedRow| {
            let is_here = (start..start + TILE_TOKENS).contains(&row.position);
            row.own.filter(|_| is_here)
        };
        let head = HeadCache {
            kv_cache: self.kv_cache,
            layer: self.layer,
            kv_head,
        };
        let mut at = 0;
        for run in rows.chunk_by(|a, b| block_of(a) == block_of(b) && leaf_of(a) == leaf_of(b)) {
            let states = at * group..(at + run.len()) * group;
            at += run.len();
            let is_needed = self.look(start, run, &mut scratch.states[states.clone()]);
            let Some(block) = block_of(&run[0]).filter(|_| is_needed) else {
                continue;
            };
            self.prefetch_tile(&run[0], start + TILE_TOKENS, kv_head);
            let place = (block as usize, leaf_of(&run[0]));
            self.attend_tile(head, start, run, place, states, scratch);
        }
    }

    /// Notes what each row of a run sees of the tile at `start`; whether any sees something.
    fn look(&self, start: usize, run: &[PlannedRow], states: &mut [QueryState]) -> bool {
        let group = self.params.num_heads / self.params.num_kv_heads;
        let mut is_needed = false;
        for (row, states) in run.iter().zip(states.chunks_exact_mut(group)) {
            let from = self.window_start(row.position).saturating_sub(start);
            let to = (row.position + 1).saturating_sub(start);
            let range = from.min(TILE_TOKENS)..to.min(TILE_TOKENS);
            is_needed |= !range.is_empty();
            states
                .iter_mut()
                .for_each(|state| state.visible = range.clone());
        }
        is_needed
    }

    /// Attends the tile at `start`, which lies in a block, with a run of rows. A leaf is the only
    /// one of its run; its own token stands in for the one at its position.
    fn attend_tile(
        &self,
        head: HeadCache<'_>,
        start: usize,
        run: &[PlannedRow],
        (block, leaf): (usize, Option<usize>),
        states: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let head_dim = self.params.head_dim;
        let queries = TileQueries {
            q: self.q,
            codes: &scratch.queries,
            first: states.start,
        };
        let end = run.iter().map(|row| row.position + 1).max().unwrap_or(0);
        let is_whole = leaf.is_none() && end >= start + TILE_TOKENS;
        let is_read_once = states.len() <= cpu::queries_at_once();
        let data = if is_whole && is_read_once && Tile::lies_ready(head.kv_cache) {
            scratch.tile.in_place(head, block, start, queries)
        } else {
            scratch.tile.read(head, block, start, end);
            if let Some(own) = leaf {
                let table = self.sequences[run[0].sequence].block_table;
                let block = table[own / self.kv_cache.block_size()] as usize;
                scratch.tile.put(head, block, own, run[0].position);
            }
            scratch.tile.widened(queries)
        };
        let tile = TileInput {
            data,
            scale: self.params.scale,
            softcap: self.params.softcap,
            head_dim,
        };
        let outs = &mut scratch.outs[states.start * head_dim..states.end * head_dim];
        tile.attend(&mut scratch.states[states], outs);
    }

    /// Asks for the next tile while this one is attended: block by block, the hardware doesn't see a
    /// stream.
    fn prefetch_tile(&self, row: &PlannedRow, start: usize, kv_head: usize) {
        let block_size = self.kv_cache.block_size();
        let table = self.sequences[row.sequence].block_table;
        if start > row.position || !start.is_multiple_of(block_size) {
            return;
        }
        let block = table.get(start / block_size).map(|block| *block as usize);
        // Other rows of the run may be the only ones that see the next block.
        if let Some(block) = block.filter(|block| *block < self.kv_cache.num_blocks()) {
            for bytes in self.kv_cache.bytes(self.layer, block, kv_head) {
                cpu::prefetch(bytes, usize::MAX);
            }
        }
    }
}
