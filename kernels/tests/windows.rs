//! Attention over a sliding window reads nothing behind it: blocks there need not exist.

mod common;

use common::Random;
use ponder_kernels::*;

const NO_BLOCK: u32 = u32::MAX;
const HEADS: [usize; 2] = [4, 2];
const HEAD_DIM: usize = 32;
const NUM_BLOCKS: usize = 24;

/// Rows of sequences, and tokens of their contexts.
fn rows(tables: &[Vec<u32>], shapes: [(usize, usize); 4]) -> Vec<AttentionRows<'_>> {
    let pairs = tables.iter().zip(shapes);
    let rows = pairs.map(|(block_table, (num_rows, context_len))| AttentionRows {
        block_table,
        num_rows,
        context_len,
        leaves: &[],
    });
    rows.collect()
}

/// Sequences that share their first blocks and have moved on to different places: those that are
/// attended together see different tiles of the same blocks.
#[test]
fn blocks_behind_the_window_need_not_exist() {
    let [num_heads, num_kv_heads] = HEADS;
    let width = num_heads * HEAD_DIM;
    let pool = ThreadPool::new(1);
    for (dtype, block_size) in [
        (KvDtype::F16, 16),
        (KvDtype::F16, 32),
        (KvDtype::Q8_0, 16),
        (KvDtype::Q8_0, 48),
    ] {
        let mut random = Random(5);
        let num_slots = NUM_BLOCKS * block_size;
        let cache = KvCache::of(dtype, 1, NUM_BLOCKS, block_size, num_kv_heads, HEAD_DIM);
        let mut cache = cache.unwrap();
        let slots: Vec<u32> = (0..num_slots as u32).collect();
        let [keys, values] = [(); 2].map(|()| random.values(num_slots * num_kv_heads * HEAD_DIM));
        cache.write(&pool, 0, &slots, &keys, &values);
        for window in [1, 5, block_size, 2 * block_size + 3] {
            let params = AttentionParams {
                num_heads,
                num_kv_heads,
                head_dim: HEAD_DIM,
                scale: 0.3,
                sliding_window: Some(window),
                softcap: None,
            };
            // Blocks that are shared, then a sequence's own.
            let table = |own: u32| -> Vec<u32> { (0..4).chain(own * 5..own * 5 + 4).collect() };
            let tables = [table(1), table(2), table(3), table(1)];
            let shapes = [
                (1, 9),
                (7, 3 * block_size + 7),
                (1, 8 * block_size),
                (20, 90),
            ];
            let blanked: Vec<Vec<u32>> = tables
                .iter()
                .zip(shapes)
                .map(|(table, (num_rows, context_len))| {
                    let first = (context_len - num_rows + 1).saturating_sub(window) / block_size;
                    let mut table = table.clone();
                    table[..first].fill(NO_BLOCK);
                    table
                })
                .collect();
            assert!(blanked.iter().flatten().any(|block| *block == NO_BLOCK));
            let num_rows: usize = shapes.iter().map(|(num_rows, _)| num_rows).sum();
            let q = random.values(num_rows * width);
            let plain = rows(&tables, shapes);
            let mut plan = AttentionPlan::default();
            plan.plan(&plain, num_kv_heads, 1);
            let attend = |rows: &[AttentionRows<'_>]| {
                let mut out = vec![f32::NAN; q.len()];
                paged_attention(&pool, &params, &cache, 0, &plan, &q, rows, &mut out);
                out
            };
            assert_eq!(
                attend(&rows(&blanked, shapes)),
                attend(&plain),
                "{window} of {block_size}"
            );
        }
    }
}
