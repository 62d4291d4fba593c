//! Attention of whole sequences in which each token sees all others: an encoder's.

use std::cell::RefCell;

use crate::cost::Nanoseconds;
use crate::cpu;
use crate::partition::{SharedSlice, for_each};
use crate::pool::ThreadPool;

/// Queries whose scores are kept at once.
const QUERIES_AT_ONCE: usize = 32;
/// Keys are padded to a multiple of this: two vectors of scores.
const KEYS_MULTIPLE: usize = 32;
/// A multiply-add of attention, its share of the softmax included.
const ATTENTION_MAC: f64 = 0.03;

/// Sequences of ragged rows, one after the other.
pub struct SelfAttention<'a> {
    /// `[rows, 3, num_heads, head_dim]`: queries, keys and values.
    pub qkv: &'a [f32],
    /// Where each sequence ends; the first one begins at 0.
    pub ends: &'a [usize],
    pub num_heads: usize,
    pub head_dim: usize,
}

/// A thread's buffers.
#[derive(Default)]
struct Scratch {
    /// `[QUERIES_AT_ONCE, head_dim]`
    queries: Vec<f32>,
    /// `[head_dim, padded keys]`
    keys: Vec<f32>,
    /// `[keys, head_dim]`
    values: Vec<f32>,
    /// `[QUERIES_AT_ONCE, padded keys]`
    scores: Vec<f32>,
    weights: Vec<f32>,
    /// `[QUERIES_AT_ONCE, head_dim]`
    sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Writes what each head of each row sees to `out`, `[rows, num_heads, head_dim]`.
///
/// # Panics
/// When lengths do not fit.
pub fn self_attention(pool: &ThreadPool, input: &SelfAttention<'_>, out: &mut [f32]) {
    let SelfAttention {
        qkv,
        ends,
        num_heads,
        head_dim,
    } = *input;
    let width = num_heads * head_dim;
    let num_rows = ends.last().copied().unwrap_or(0);
    assert!(ends.is_sorted(), "sequences follow each other");
    assert_eq!(qkv.len(), num_rows * 3 * width, "qkv is [rows, 3, width]");
    assert_eq!(out.len(), num_rows * width, "out is [rows, width]");
    let start = |sequence: usize| match sequence {
        0 => 0,
        _ => ends[sequence - 1],
    };
    let pairs: usize = (0..ends.len())
        .map(|sequence| (ends[sequence] - start(sequence)).pow(2))
        .sum();
    let work = Nanoseconds((2 * pairs * width) as f64 * ATTENTION_MAC);
    let out = SharedSlice::new(out);
    for_each(pool, work, ends.len() * num_heads, |item| {
        let (sequence, head) = (item / num_heads, item % num_heads);
        let (start, end) = (start(sequence), ends[sequence]);
        if start == end {
            return;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.load(&qkv[start * 3 * width..end * 3 * width], input, head);
            for first in (0..end - start).step_by(QUERIES_AT_ONCE) {
                let count = QUERIES_AT_ONCE.min(end - start - first);
                let queries = &qkv[(start + first) * 3 * width..][..count * 3 * width];
                scratch.attend(queries, end - start, input, head);
                for (index, sums) in scratch.sums.chunks_exact(head_dim).enumerate() {
                    let at = (start + first + index) * width + head * head_dim;
                    // SAFETY: a (row, head) cell belongs to one item.
                    unsafe { out.slice_mut(at, head_dim) }.copy_from_slice(sums);
                }
            }
        });
    });
}

impl Scratch {
    /// Reads the keys and values of one head of one sequence.
    fn load(&mut self, qkv: &[f32], input: &SelfAttention<'_>, head: usize) {
        let (head_dim, width) = (input.head_dim, input.num_heads * input.head_dim);
        let num_keys = qkv.len() / (3 * width);
        let padded = num_keys.next_multiple_of(KEYS_MULTIPLE);
        self.keys.clear();
        self.keys.resize(head_dim * padded, 0.0);
        self.values.clear();
        for (key, row) in qkv.chunks_exact(3 * width).enumerate() {
            let values = &row[width + head * head_dim..][..head_dim];
            for (at, value) in values.iter().enumerate() {
                self.keys[at * padded + key] = *value;
            }
            self.values
                .extend_from_slice(&row[2 * width + head * head_dim..][..head_dim]);
        }
    }

    /// Leaves in `sums` what some queries see.
    fn attend(&mut self, rows: &[f32], num_keys: usize, input: &SelfAttention<'_>, head: usize) {
        let (head_dim, width) = (input.head_dim, input.num_heads * input.head_dim);
        let padded = num_keys.next_multiple_of(KEYS_MULTIPLE);
        let num_queries = rows.len() / (3 * width);
        let scale = (head_dim as f32).sqrt().recip();
        self.queries.clear();
        for row in rows.chunks_exact(3 * width) {
            let query = &row[head * head_dim..][..head_dim];
            self.queries.extend(query.iter().map(|value| value * scale));
        }
        let Self {
            queries,
            keys,
            values,
            scores,
            weights,
            sums,
        } = self;
        scores.clear();
        scores.resize(num_queries * padded, 0.0);
        cpu::add_outer(queries, head_dim, keys, scores, padded);
        weights.resize(num_queries * padded, 0.0);
        let rows = scores.chunks_exact(padded);
        for (scores, weights) in rows.zip(weights.chunks_exact_mut(padded)) {
            softmax(&scores[..num_keys], &mut weights[..num_keys]);
        }
        sums.clear();
        sums.resize(num_queries * head_dim, 0.0);
        cpu::add_outer(weights, padded, values, sums, head_dim);
    }
}

fn softmax(scores: &[f32], weights: &mut [f32]) {
    let (mut largest, mut sum) = (f32::NEG_INFINITY, 0.0);
    cpu::largest(scores, &mut largest);
    cpu::weigh(scores, largest, weights, &mut sum);
    let factor = (1.0 / sum) as f32;
    for weight in weights {
        *weight *= factor;
    }
}
