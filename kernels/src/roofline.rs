//! What this machine can do at best: the yardstick of the benchmarks.

use std::time::Instant;

use crate::cost::Nanoseconds;
use crate::cpu;
use crate::memory::PageBuffer;
use crate::partition::for_each;
use crate::pool::ThreadPool;

/// Bytes read by a bandwidth measurement: more than caches hold for one tenant.
const READ_BYTES: usize = 1 << 30;
/// Bytes a thread takes at once.
const READ_CHUNK: usize = 4 << 20;
/// Integer dot products of 32 inputs by 16 outputs in one turn of the arithmetic measurement.
const DOT_ROUNDS: usize = 2_000_000;
/// More work than any number of threads is worth.
const ALL_THREADS: Nanoseconds = Nanoseconds(1e9);
/// The best of this many runs counts.
const RUNS: usize = 7;

/// Limits of the machine with a pool's threads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roofline {
    /// GB/s read from memory, sequentially.
    pub read_gb_s: f64,
    /// Thousand million int8 multiply-adds a second of the instruction that the kernels use at few rows
    /// (`vpdpbusd`, or `vpmaddubsw` with `vpmaddwd`); AMX tiles do more.
    pub int8_gmac_s: f64,
}

impl Roofline {
    /// Measures both; takes a second or two.
    pub fn measure(pool: &ThreadPool) -> Self {
        Self {
            read_gb_s: read_rate(pool),
            int8_gmac_s: dot_rate(pool),
        }
    }
}

/// Seconds of the fastest run of `work` on all threads.
fn fastest(pool: &ThreadPool, work: &(dyn Fn(usize) + Sync)) -> f64 {
    let runs = (0..RUNS).map(|_| {
        let started = Instant::now();
        for_each(pool, ALL_THREADS, READ_BYTES / READ_CHUNK, work);
        started.elapsed().as_secs_f64()
    });
    runs.fold(f64::INFINITY, f64::min)
}

fn read_rate(pool: &ThreadPool) -> f64 {
    let Some(mut buffer) = PageBuffer::zeroed(READ_BYTES) else {
        return f64::NAN;
    };
    // Pages that were never written are all the same page.
    buffer.fill(1);
    let floats = buffer.floats();
    const CHUNK_FLOATS: usize = READ_CHUNK / size_of::<f32>();
    let seconds = fastest(pool, &|chunk| {
        let mut largest = f32::NEG_INFINITY;
        cpu::read_floats(
            &floats[chunk * CHUNK_FLOATS..][..CHUNK_FLOATS],
            &mut largest,
        );
        std::hint::black_box(largest);
    });
    READ_BYTES as f64 / seconds / 1e9
}

fn dot_rate(pool: &ThreadPool) -> f64 {
    let num_chunks = READ_BYTES / READ_CHUNK;
    let rounds = DOT_ROUNDS / num_chunks;
    let seconds = fastest(pool, &|_| {
        std::hint::black_box(cpu::dot_rounds(rounds));
    });
    (num_chunks * rounds * cpu::MACS_PER_DOT_ROUND) as f64 / seconds / 1e9
}
