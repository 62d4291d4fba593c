//! Any block tables, shapes and chunks: nothing is read out of bounds, and a row attended with
//! others equals the row alone.
//!
//!     cargo +nightly fuzz run attention --fuzz-dir kernels/fuzz

#![no_main]

use libfuzzer_sys::fuzz_target;
use ponder_kernels::*;

#[derive(Debug, arbitrary::Arbitrary)]
struct Input {
    heads_per_kv_head: u8,
    kv_heads: u8,
    head_dim: u8,
    window: Option<u8>,
    wide_blocks: bool,
    is_coded: bool,
    sequences: Vec<(Vec<u8>, u8, u8)>,
}

const BLOCKS: usize = 12;

fuzz_target!(|input: Input| {
    let kv_heads = usize::from(input.kv_heads) % 3 + 1;
    let params = AttentionParams {
        num_heads: kv_heads * (usize::from(input.heads_per_kv_head) % 9 + 1),
        num_kv_heads: kv_heads,
        head_dim: 2 * (usize::from(input.head_dim) % 40 + 1),
        scale: 0.3,
        sliding_window: input.window.map(|window| usize::from(window) + 1),
        softcap: None,
    };
    let block_size = if input.wide_blocks { 32 } else { 16 };
    let pool = ThreadPool::eager(2);
    let dtype = if input.is_coded { KvDtype::Q8_0 } else { KvDtype::F16 };
    let cache = KvCache::of(dtype, 1, BLOCKS, block_size, kv_heads, params.head_dim);
    let mut cache = cache.expect("memory");
    let slots: Vec<u32> = (0..(BLOCKS * block_size) as u32).collect();
    let values: Vec<f32> = (0..slots.len() * kv_heads * params.head_dim)
        .map(|i| ((i * 7919) % 1009) as f32 / 504.0 - 1.0)
        .collect();
    cache.write(&pool, 0, &slots, &values, &values);
    let tables: Vec<(Vec<u32>, usize, usize)> = input
        .sequences
        .iter()
        .take(8)
        .filter(|(table, _, _)| !table.is_empty())
        .map(|(table, context, rows)| {
            let table: Vec<u32> = table.iter().take(6).map(|b| u32::from(*b) % BLOCKS as u32).collect();
            let context = usize::from(*context) % (table.len() * block_size) + 1;
            (table, context, usize::from(*rows) % context + 1)
        })
        .collect();
    let rows: Vec<AttentionRows<'_>> = tables
        .iter()
        .map(|(block_table, context_len, num_rows)| AttentionRows {
            block_table,
            num_rows: *num_rows,
            context_len: *context_len,
            leaves: &[],
        })
        .collect();
    let width = params.num_heads * params.head_dim;
    let total: usize = rows.iter().map(|rows| rows.num_rows).sum();
    let q: Vec<f32> = (0..total * width).map(|i| ((i * 31) % 97) as f32 / 48.0 - 1.0).collect();
    let attend = |rows: &[AttentionRows<'_>], q: &[f32]| {
        let mut plan = AttentionPlan::default();
        plan.plan(rows, kv_heads, pool.num_threads());
        let mut out = vec![0.0; q.len()];
        paged_attention(&pool, &params, &cache, 0, &plan, q, rows, &mut out);
        out
    };
    let together = attend(&rows, &q);
    let mut first = 0;
    for sequence in &rows {
        let range = first * width..(first + sequence.num_rows) * width;
        first += sequence.num_rows;
        assert_eq!(attend(&[*sequence], &q[range.clone()]), together[range]);
    }
});
