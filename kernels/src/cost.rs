//! What work costs one thread, roughly, and how many threads it is worth.
//!
//! The number of threads depends on the root of the work: a factor of two in an estimate is a
//! factor of 1.4 in threads and a few percent in time. The rates are of one thread of a server core
//! with AVX-512, from `ponder bench engine --threads 1 --profile` and `cargo bench -p
//! ponder-kernels`.

use crate::cpu;
use crate::matrix::PackedMatrix;

/// Time that work takes one thread.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Nanoseconds(pub f64);

/// What one more thread adds to a section: two transfers of a cache line between cores, and the
/// odds that it is the last to finish. `cargo bench -p ponder-kernels --bench threads` measures 0.4
/// µs for the second thread of a machine; on one with sixteen cores a woken thread cost 1 µs before
/// threads had lines of their own.
pub const JOIN_COST: Nanoseconds = Nanoseconds(500.0);

/// To read a byte of weights from memory, with some unpacking.
const WEIGHT_BYTE: f64 = 0.08;
/// A multiply-add of quantised weights with a row's codes.
const CODE_MAC: f64 = 0.005;
/// A multiply-add of float weights with a row's values.
const FLOAT_MAC: f64 = 0.02;
/// The same of bf16 weights with values rounded to bf16.
const BF16_MAC: f64 = 0.01;
/// A multiply-add with the transpose of weights.
const TRANSPOSED_MAC: f64 = 0.015;
/// A multiply-add of floats on a tile in the first cache.
const TILE_MAC: f64 = 0.02;
/// A multiply-add of attention, its share of widening keys and values and of the softmax included.
const ATTENTION_MAC: f64 = 0.08;
/// A value that is normalised, rotated, quantised or added.
const ROW_VALUE: f64 = 1.0;

/// The products of `num_rows` rows with a share of a matrix's outputs.
pub fn product(num_rows: usize, weights: &PackedMatrix, share: f64) -> Nanoseconds {
    let outputs = weights.out_features() as f64 * share;
    let macs = num_rows as f64 * outputs * weights.in_features() as f64;
    let mac = match weights.floats() {
        None => CODE_MAC * cpu::isa().relative_mac_cost(),
        Some(floats) if floats.is_bf16() && cpu::multiplies_bf16() => BF16_MAC,
        Some(_) => FLOAT_MAC,
    };
    Nanoseconds(weights.nbytes() as f64 * share * WEIGHT_BYTE + macs * mac)
}

/// What `num_rows` rows of an adapter add to tiles of a product, by factors of `num_weights` f16.
pub fn low_rank(num_rows: usize, num_weights: usize) -> Nanoseconds {
    let macs = (num_rows * num_weights) as f64;
    Nanoseconds(num_weights as f64 * 2.0 * WEIGHT_BYTE + macs * TILE_MAC)
}

/// The products of `num_rows` rows with a matrix's transpose, whose weights are read back first.
pub fn transposed(num_rows: usize, num_weights: usize) -> Nanoseconds {
    Nanoseconds(num_weights as f64 * (ROW_VALUE + num_rows as f64 * TRANSPOSED_MAC))
}

/// Attention of rows that see `num_tokens` tokens together.
pub fn attention(num_tokens: usize, num_heads: usize, head_dim: usize) -> Nanoseconds {
    // Queries by keys, and weights by values.
    let macs = 2 * num_tokens * num_heads * head_dim;
    Nanoseconds(macs as f64 * ATTENTION_MAC)
}

/// A pass over some values.
pub fn values(num_values: usize) -> Nanoseconds {
    Nanoseconds(num_values as f64 * ROW_VALUE)
}

impl std::iter::Sum for Nanoseconds {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        Self(costs.map(|cost| cost.0).sum())
    }
}

/// Threads that there are, and what each adds to a section that it takes part in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Team {
    pub num_threads: usize,
    pub join_cost: Nanoseconds,
}

impl Team {
    pub fn new(num_threads: usize) -> Self {
        Self {
            num_threads,
            join_cost: JOIN_COST,
        }
    }

    /// How many threads a section is worth that takes one thread `work` and has `num_items` items
    /// of about the same size. Results never depend on it.
    ///
    /// With `k` threads a section takes `work / k + k * join_cost`, which is least where `k` is the
    /// root of `work / join_cost`. Of the numbers that give the busiest thread as many items, the
    /// smallest is chosen: 36 items keep 12 threads as long as 16.
    pub fn threads_for(self, work: Nanoseconds, num_items: usize) -> usize {
        let best = (work.0 / self.join_cost.0).sqrt().round() as usize;
        let most = self.num_threads.min(num_items).max(1);
        let of_busiest = num_items.div_ceil(best.clamp(1, most)).max(1);
        num_items.div_ceil(of_busiest).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_sections_stay_on_one_thread_and_large_ones_get_all() {
        let threads = |microseconds: f64, num_items| {
            Team::new(16).threads_for(Nanoseconds(microseconds * 1000.0), num_items)
        };
        assert_eq!(threads(0.4, 1000), 1);
        assert_eq!(threads(8.0, 1000), 4);
        assert_eq!(threads(1000.0, 1000), 16);
        // Never more threads than items, nor more than help.
        assert_eq!(threads(1000.0, 3), 3);
        assert_eq!(threads(1000.0, 36), 12);
        assert_eq!(threads(1000.0, 0), 1);
    }

    #[test]
    fn more_work_is_never_worth_fewer_threads() {
        for num_threads in [1, 2, 3, 8, 64] {
            let threads = (0..60).map(|step| {
                let work = Nanoseconds(100.0 * 1.3_f64.powi(step));
                Team::new(num_threads).threads_for(work, 1 << 20)
            });
            let threads: Vec<usize> = threads.collect();
            assert!(threads.is_sorted());
            assert_eq!((threads[0], threads[59]), (1, num_threads));
        }
    }
}
