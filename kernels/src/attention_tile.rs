//! The tile of keys and values that a thread attends, read from the cache.

use half::f16;

use crate::cpu::{self, CodeTile, QueryCodes, QueryState, TILE_TOKENS, TileData};
use crate::kv_cache::KvCache;
use crate::kv_codes::{CodeLayout, GROUP, QUAD};
use crate::kv_dtype::KvDtype;
use crate::lines::Lines;

/// One layer's keys and values of one KV head.
#[derive(Clone, Copy)]
pub(crate) struct HeadCache<'a> {
    pub kv_cache: &'a KvCache,
    pub layer: usize,
    pub kv_head: usize,
}

/// The queries that attend a tile: those of all rows, the same as codes, and the first that reads
/// it.
#[derive(Clone, Copy)]
pub(crate) struct TileQueries<'a> {
    pub q: &'a [f32],
    pub codes: &'a Queries,
    /// Among the unit's.
    pub first: usize,
}

/// Sixteen keys and values; buffers are reused.
#[derive(Default)]
pub(crate) struct Tile {
    /// Of an f16 cache, `[head_dim, TILE_TOKENS]`.
    keys: Lines<f32>,
    /// Of an int8 cache, with the scales `[groups, TILE_TOKENS]`.
    key_codes: Lines<u8>,
    key_scales: Vec<u16>,
    value_scales: Vec<f32>,
    /// `[TILE_TOKENS, head_dim]`
    values: Lines<f32>,
}

impl Tile {
    /// Reads the tile at token `start` of a context, which lies in `block`. Tokens from `end` on
    /// belong to nobody who reads the tile: whatever their values are, they count for nothing.
    pub(crate) fn read(&mut self, head: HeadCache<'_>, block: usize, start: usize, end: usize) {
        let (block_size, head_dim) = (head.kv_cache.block_size(), head.kv_cache.head_dim());
        let offset = start % block_size;
        self.values.resize(head_dim * TILE_TOKENS);
        match head.kv_cache.dtype() {
            KvDtype::F16 => self.read_halves(head, block, offset),
            KvDtype::Q8_0 => self.read_codes(head, block, offset),
        }
        if end < start + TILE_TOKENS {
            self.values[(end - start) * head_dim..].fill(0.0);
        }
    }

    fn read_halves(&mut self, head: HeadCache<'_>, block: usize, offset: usize) {
        let (block_size, head_dim) = (head.kv_cache.block_size(), head.kv_cache.head_dim());
        self.keys.resize(head_dim * TILE_TOKENS);
        let source = head.kv_cache.keys(head.layer, block, head.kv_head);
        if block_size == TILE_TOKENS {
            cpu::widen_halves(source, &mut self.keys);
        } else {
            for (row, keys) in source
                .chunks_exact(block_size)
                .zip(self.keys.chunks_exact_mut(TILE_TOKENS))
            {
                cpu::widen_halves(&row[offset..offset + TILE_TOKENS], keys);
            }
        }
        let source = head.kv_cache.values(head.layer, block, head.kv_head);
        let range = offset * head_dim..(offset + TILE_TOKENS) * head_dim;
        cpu::widen_halves(&source[range], &mut self.values);
    }

    fn read_codes(&mut self, head: HeadCache<'_>, block: usize, offset: usize) {
        let cache = head.kv_cache;
        let (codes, scales) = cache.key_codes(head.layer, block, head.kv_head, offset);
        self.key_codes.set(codes);
        self.key_scales.clear();
        self.key_scales.extend_from_slice(scales);
        let (codes, scales) = cache.value_codes(head.layer, block, head.kv_head, offset);
        self.value_scales.resize(scales.len(), 0.0);
        cpu::widen_halves(scales, &mut self.value_scales);
        cpu::widen_codes(codes, &self.value_scales, &mut self.values);
    }

    /// The tile that was read.
    pub(crate) fn widened<'a>(&'a self, queries: TileQueries<'a>) -> TileData<'a> {
        match queries.codes.layout {
            None => TileData::Floats {
                keys: &self.keys,
                values: &self.values,
                q: queries.q,
            },
            Some(layout) => TileData::CodedKeys {
                keys: CodeTile {
                    keys: &self.key_codes,
                    scales: &self.key_scales,
                    queries: queries.codes.after(queries.first, layout),
                },
                values: &self.values,
            },
        }
    }

    /// Whether a tile can be attended as it lies in the cache: f16 keys are tiles where a block is
    /// one.
    pub(crate) fn lies_ready(cache: &KvCache) -> bool {
        cache.dtype() != KvDtype::F16 || cache.block_size() == TILE_TOKENS
    }

    /// The tile at token `start` of a context as it lies in the cache, in `block`: for few queries,
    /// which would gain nothing by a widened copy. [`Self::lies_ready`] must hold.
    pub(crate) fn in_place<'a>(
        &'a mut self,
        head: HeadCache<'a>,
        block: usize,
        start: usize,
        queries: TileQueries<'a>,
    ) -> TileData<'a> {
        let cache = head.kv_cache;
        let offset = start % cache.block_size();
        match queries.codes.layout {
            None => TileData::Halves {
                keys: cache.keys(head.layer, block, head.kv_head),
                values: cache.values(head.layer, block, head.kv_head),
                q: queries.q,
            },
            Some(layout) => {
                let (codes, scales) = cache.key_codes(head.layer, block, head.kv_head, offset);
                let keys = CodeTile {
                    keys: codes,
                    scales,
                    queries: queries.codes.after(queries.first, layout),
                };
                let (values, scales) = cache.value_codes(head.layer, block, head.kv_head, offset);
                self.value_scales.resize(scales.len(), 0.0);
                cpu::widen_halves(scales, &mut self.value_scales);
                TileData::Codes {
                    keys,
                    values,
                    scales: &self.value_scales,
                }
            }
        }
    }

    /// Puts the key and value at token `own` of a context, which lies in `block`, in place of those
    /// at `position`.
    pub(crate) fn put(&mut self, head: HeadCache<'_>, block: usize, own: usize, position: usize) {
        let from = own % head.kv_cache.block_size();
        let to = position % TILE_TOKENS;
        match head.kv_cache.dtype() {
            KvDtype::F16 => self.put_halves(head, block, from, to),
            KvDtype::Q8_0 => self.put_codes(head, block, from, to),
        }
    }

    fn put_halves(&mut self, head: HeadCache<'_>, block: usize, from: usize, to: usize) {
        let (block_size, head_dim) = (head.kv_cache.block_size(), head.kv_cache.head_dim());
        let keys = head.kv_cache.keys(head.layer, block, head.kv_head);
        for (source, target) in keys
            .chunks_exact(block_size)
            .zip(self.keys.chunks_exact_mut(TILE_TOKENS))
        {
            target[to] = f16::from_bits(source[from]).to_f32();
        }
        let values = head.kv_cache.values(head.layer, block, head.kv_head);
        cpu::widen_halves(
            &values[from * head_dim..][..head_dim],
            &mut self.values[to * head_dim..][..head_dim],
        );
    }

    fn put_codes(&mut self, head: HeadCache<'_>, block: usize, from: usize, to: usize) {
        let (cache, token) = (head.kv_cache, from % TILE_TOKENS);
        let (layout, head_dim) = (cache.layout(), cache.head_dim());
        let (codes, scales) = cache.key_codes(head.layer, block, head.kv_head, from);
        for quad in 0..layout.num_quads() {
            let at = |token| layout.key_code_at(token, quad * QUAD);
            self.key_codes[at(to)..][..QUAD].copy_from_slice(&codes[at(token)..][..QUAD]);
        }
        let scale = |scales: &[u16], group: usize| {
            f16::from_bits(scales[group * TILE_TOKENS + token]).to_f32()
        };
        for group in 0..layout.num_groups() {
            let at = group * TILE_TOKENS;
            self.key_scales[at + to] = scales[at + token];
        }
        let (codes, scales) = cache.value_codes(head.layer, block, head.kv_head, from);
        let row = &mut self.values[to * head_dim..][..head_dim];
        for (dim, (value, code)) in row.iter_mut().zip(&codes[token * head_dim..]).enumerate() {
            *value = f32::from(*code) * scale(scales, dim / GROUP);
        }
    }
}

/// The queries of a unit as codes, where keys are codes too; buffers are reused.
#[derive(Default)]
pub(crate) struct Queries {
    layout: Option<CodeLayout>,
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl Queries {
    /// Takes the queries of all states over.
    pub(crate) fn load(&mut self, cache: &KvCache, q: &[f32], states: &[QueryState]) {
        self.layout = (cache.dtype() == KvDtype::Q8_0).then(|| cache.layout());
        let Some(layout) = self.layout else { return };
        let (width, groups) = (layout.num_quads() * QUAD, layout.num_groups());
        self.codes.clear();
        self.codes.resize(states.len() * width, 0);
        self.scales.resize(states.len() * groups, 0.0);
        self.sums.resize(states.len() * groups, 0);
        for (index, state) in states.iter().enumerate() {
            let of_groups = index * groups..(index + 1) * groups;
            cpu::encode_query(
                &q[state.query..][..layout.head_dim],
                &mut self.codes[index * width..][..layout.head_dim],
                &mut self.scales[of_groups.clone()],
                &mut self.sums[of_groups],
            );
        }
    }

    /// Those from the unit's query `first` on.
    fn after(&self, first: usize, layout: CodeLayout) -> QueryCodes<'_> {
        let groups = first * layout.num_groups();
        QueryCodes {
            codes: &self.codes[first * layout.num_quads() * QUAD..],
            scales: &self.scales[groups..],
            sums: &self.sums[groups..],
        }
    }
}
