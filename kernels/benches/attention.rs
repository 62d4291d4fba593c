//! Paged attention over long contexts, in GMAC/s and GB/s of keys and values: decode rows and
//! chunks of a prompt, by the shape of qwen2.5-coder-0.5b's layers.
//!
//!     cargo bench -p ponder-kernels --bench attention
//!     PONDER_ISA=avx2 cargo bench -p ponder-kernels --bench attention

use std::time::Instant;

use ponder_kernels::*;

const PARAMS: AttentionParams = AttentionParams {
    num_heads: 14,
    num_kv_heads: 2,
    head_dim: 64,
    scale: 0.125,
    sliding_window: None,
    softcap: None,
};
const BLOCK_SIZE: usize = 16;
/// Layers whose caches are read in turn, as in a model: more than the last-level cache holds.
const NUM_LAYERS: usize = 8;

/// Seeded values in -1..1.
fn values(count: usize) -> Vec<f32> {
    let value = |i: usize| (i.wrapping_mul(2_654_435_761) >> 9 & 0xffff) as f32 / 32768.0 - 1.0;
    (0..count).map(value).collect()
}

fn measure(pool: &ThreadPool, params: &AttentionParams, context: usize, rows: usize) {
    for dtype in [KvDtype::F16, KvDtype::Q8_0] {
        measure_over(pool, dtype, params, context, rows);
    }
}

fn measure_over(
    pool: &ThreadPool,
    dtype: KvDtype,
    params: &AttentionParams,
    context: usize,
    rows: usize,
) {
    let num_blocks = context / BLOCK_SIZE;
    let (kv_heads, dim) = (params.num_kv_heads, params.head_dim);
    let cache = KvCache::of(dtype, NUM_LAYERS, num_blocks, BLOCK_SIZE, kv_heads, dim);
    let mut cache = cache.expect("memory");
    let slots: Vec<u32> = (0..context as u32).collect();
    let k = values(context * kv_heads * dim);
    for layer in 0..NUM_LAYERS {
        cache.write(pool, layer, &slots, &k, &k);
    }
    // Blocks that lie apart.
    let table: Vec<u32> = (0..num_blocks as u32)
        .map(|block| block * 7 % num_blocks as u32)
        .collect();
    let batch = [AttentionRows {
        block_table: &table,
        num_rows: rows,
        context_len: context,
        leaves: &[],
    }];
    let q = values(rows * params.num_heads * dim);
    let mut out = vec![0.0; q.len()];
    let mut plan = AttentionPlan::default();
    plan.plan(&batch, kv_heads, pool.num_threads());
    let mut best = f64::INFINITY;
    let repeats = if rows == 1 { 12 } else { 2 };
    for _ in 0..repeats {
        let layers = if rows == 1 { NUM_LAYERS } else { 1 };
        let started = Instant::now();
        for layer in 0..layers {
            paged_attention(pool, params, &cache, layer, &plan, &q, &batch, &mut out);
        }
        best = best.min(started.elapsed().as_secs_f64() / layers as f64);
    }
    let window = params.sliding_window.unwrap_or(usize::MAX);
    let seen = |row: usize| (context - rows + row + 1).min(window);
    let seen: usize = (0..rows).map(seen).sum();
    let macs = 2 * seen * params.num_heads * dim;
    let bytes = cache.nbytes() / NUM_LAYERS * window.min(context) / context;
    println!(
        "{}, {rows} rows, context {context}, window {:?}: {:.3} ms, {:.1} GMAC/s, {:.1} GB/s",
        dtype.name(),
        params.sliding_window,
        1e3 * best,
        macs as f64 / best / 1e9,
        bytes as f64 / best / 1e9,
    );
}

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = ThreadPool::new(threads);
    println!("{} with {threads} threads", isa());
    for context in [8192, 32768] {
        for rows in [1, 512] {
            measure(&pool, &PARAMS, context, rows);
        }
    }
    // Local layers of gemma-3-270m.
    let local = AttentionParams {
        num_heads: 4,
        num_kv_heads: 1,
        head_dim: 256,
        sliding_window: Some(512),
        ..PARAMS
    };
    measure(&pool, &local, 16384, 1);
    measure(&pool, &local, 16384, 512);
}
