//! Each kernel in GB/s or GMAC/s beside the machine's roofline, measured in the same process.
//!
//!     cargo bench -p ponder-kernels                    # all, with as many threads as cores
//!     cargo bench -p ponder-kernels -- Q4_K            # the names that contain this
//!     PONDER_ISA=avx2 cargo bench -p ponder-kernels    # with another instruction set

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use half::{bf16, f16};
use ponder_kernels::*;

const IN_FEATURES: usize = 1536;
/// More weights than the second-level caches hold, as in a model.
const OUT_FEATURES: usize = 16384;
const ROWS: [usize; 5] = [1, 4, 8, 16, 256];

/// Some weights: values for float types, and for the others bytes that make blocks with small scales.
fn weights(pool: &ThreadPool, dtype: DType) -> PackedMatrix {
    let count = IN_FEATURES * OUT_FEATURES;
    let value = |i: usize| (i.wrapping_mul(7919) % 1021) as f32 / 510.0 - 1.0;
    let byte = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x1f;
    let bytes: Vec<u8> = match dtype {
        DType::F32 => (0..count).flat_map(|i| value(i).to_le_bytes()).collect(),
        DType::F16 => (0..count)
            .flat_map(|i| f16::from_f32(value(i)).to_le_bytes())
            .collect(),
        DType::BF16 => (0..count)
            .flat_map(|i| bf16::from_f32(value(i)).to_le_bytes())
            .collect(),
        // Exponents as in models: small ones make subnormal products, which are slow.
        DType::MXFP4 => (0..dtype.byte_count(count).expect("whole blocks"))
            .map(|i| {
                if i % dtype.block_bytes() == 0 {
                    120
                } else {
                    byte(i)
                }
            })
            .collect(),
        _ => (0..dtype.byte_count(count).expect("whole blocks"))
            .map(byte)
            .collect(),
    };
    PackedMatrix::pack(pool, dtype, &bytes, OUT_FEATURES, IN_FEATURES).expect("it packs")
}

/// Seconds of the fastest of a few calls.
fn seconds(mut call: impl FnMut()) -> f64 {
    call();
    let runs = (0..7).map(|_| {
        let started = Instant::now();
        call();
        started.elapsed().as_secs_f64()
    });
    runs.fold(f64::INFINITY, f64::min)
}

fn products(criterion: &mut Criterion, pool: &ThreadPool, roofline: Roofline) {
    let mut group = criterion.benchmark_group("matmul");
    for dtype in DType::ALL {
        let weights = weights(pool, dtype);
        for rows in ROWS {
            let x: Vec<f32> = (0..rows * IN_FEATURES)
                .map(|i| (i % 251) as f32 / 125.0 - 1.0)
                .collect();
            let mut input = Activations::with_capacity(rows, IN_FEATURES, true);
            input.load(pool, &x, rows, IN_FEATURES);
            let mut out = vec![0.0; rows * OUT_FEATURES];
            let best = seconds(|| matmul(pool, &input, &weights, None, &mut out));
            let macs = rows * OUT_FEATURES * IN_FEATURES;
            let (gb_s, gmac_s) = (
                weights.nbytes() as f64 / best / 1e9,
                macs as f64 / best / 1e9,
            );
            println!(
                "{} x{rows}: {gb_s:.1} GB/s ({:.0} % of reads), {gmac_s:.0} GMAC/s ({:.0} % of int8)",
                dtype.name(),
                100.0 * gb_s / roofline.read_gb_s,
                100.0 * gmac_s / roofline.int8_gmac_s,
            );
            group.throughput(Throughput::Elements(macs as u64));
            group.bench_function(BenchmarkId::new(dtype.name(), rows), |bencher| {
                bencher.iter(|| matmul(pool, black_box(&input), &weights, None, &mut out));
            });
        }
    }
    group.finish();
}

fn attention(criterion: &mut Criterion, pool: &ThreadPool) {
    let params = AttentionParams {
        num_heads: 14,
        num_kv_heads: 2,
        head_dim: 64,
        scale: 0.125,
        sliding_window: None,
        softcap: None,
    };
    const CONTEXT: usize = 4096;
    let blocks = CONTEXT / 16;
    let mut cache = KvCache::new(1, 16 * blocks, 16, 2, 64).expect("memory");
    let slots: Vec<u32> = (0..(16 * CONTEXT) as u32).collect();
    let values = vec![0.1; slots.len() * 128];
    cache.write(pool, 0, &slots, &values, &values);
    let mut group = criterion.benchmark_group("attention");
    // One sequence; sixteen of their own; sixteen that share all but the last block.
    for (name, count, is_shared) in [
        ("decode", 1, false),
        ("decode", 16, false),
        ("shared", 16, true),
    ] {
        let tables: Vec<Vec<u32>> = (0..count as u32)
            .map(|sequence| {
                let block = |i: u32| match is_shared && i + 1 < blocks as u32 {
                    true => i,
                    false => sequence * blocks as u32 + i,
                };
                (0..blocks as u32).map(block).collect()
            })
            .collect();
        let rows: Vec<AttentionRows<'_>> = tables
            .iter()
            .map(|table| AttentionRows {
                block_table: table,
                num_rows: 1,
                context_len: CONTEXT,
                leaves: &[],
            })
            .collect();
        let q = vec![0.2; count * 14 * 64];
        let mut out = vec![0.0; q.len()];
        let mut plan = AttentionPlan::default();
        plan.plan(&rows, 2, pool.num_threads());
        group.throughput(Throughput::Bytes((count * CONTEXT * 2 * 64 * 4) as u64));
        group.bench_function(BenchmarkId::new(name, count), |bencher| {
            bencher.iter(|| paged_attention(pool, &params, &cache, 0, &plan, &q, &rows, &mut out));
        });
    }
    group.finish();
}

fn logits_passes(criterion: &mut Criterion) {
    let logits: Vec<f32> = (0..151_936)
        .map(|i| ((i * 7919) % 10_007) as f32 / 500.0)
        .collect();
    let (mut weights, mut sums) = (Vec::new(), Vec::new());
    let mut group = criterion.benchmark_group("logits");
    group.throughput(Throughput::Bytes(4 * logits.len() as u64));
    group.bench_function("argmax", |bencher| {
        bencher.iter(|| logits::argmax(black_box(&logits)))
    });
    group.bench_function("weigh", |bencher| {
        bencher.iter(|| logits::weigh(black_box(&logits), 20.0, &mut weights, &mut sums));
    });
    group.bench_function("top 64", |bencher| {
        bencher.iter(|| logits::top(black_box(&logits), 64))
    });
    group.finish();
}

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = ThreadPool::new(threads);
    let roofline = Roofline::measure(&pool);
    println!(
        "{} with {threads} threads: {:.1} GB/s read, {:.0} GMAC/s int8",
        isa(),
        roofline.read_gb_s,
        roofline.int8_gmac_s
    );
    let mut criterion = Criterion::default()
        .measurement_time(Duration::from_millis(600))
        .warm_up_time(Duration::from_millis(100))
        .sample_size(10)
        .configure_from_args();
    products(&mut criterion, &pool, roofline);
    attention(&mut criterion, &pool);
    logits_passes(&mut criterion);
    criterion.final_summary();
}
