//! The KV cache and attention over each type of keys and values.

mod common;

use common::Random;
use ponder_kernels::*;

const DTYPES: [KvDtype; 2] = [KvDtype::F16, KvDtype::Q8_0];
/// Values that share a scale.
const GROUP: usize = 32;
const LENGTH: usize = 77;

struct Case {
    params: AttentionParams,
    k: Vec<f32>,
    v: Vec<f32>,
    q: Vec<f32>,
}

impl Case {
    fn new(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> Self {
        let mut random = Random(21);
        Self {
            params: AttentionParams {
                num_heads: heads,
                num_kv_heads: kv_heads,
                head_dim,
                scale: 1.0 / (head_dim as f32).sqrt(),
                sliding_window: window,
                softcap: None,
            },
            k: random.values(LENGTH * kv_heads * head_dim),
            v: random.values(LENGTH * kv_heads * head_dim),
            q: random.values(LENGTH * heads * head_dim),
        }
    }

    fn width(&self) -> usize {
        self.params.num_heads * self.params.head_dim
    }

    /// Blocks out of order, and the slots of all tokens.
    fn places(&self, block_size: usize) -> (Vec<u32>, Vec<u32>) {
        let blocks = LENGTH.div_ceil(block_size) as u32;
        let table: Vec<u32> = (0..blocks).map(|i| (i * 3 + 1) % (3 * blocks)).collect();
        let slot = |i: usize| table[i / block_size] * block_size as u32 + (i % block_size) as u32;
        let slots = (0..LENGTH).map(slot).collect();
        (table, slots)
    }

    fn cache(&self, pool: &ThreadPool, dtype: KvDtype, block_size: usize) -> KvCache {
        let (p, blocks) = (self.params, 3 * LENGTH.div_ceil(block_size));
        let cache = KvCache::of(dtype, 2, blocks, block_size, p.num_kv_heads, p.head_dim);
        let mut cache = cache.unwrap();
        let (_, slots) = self.places(block_size);
        cache.write(pool, 1, &slots, &self.k, &self.v);
        cache
    }

    /// All rows, in chunks of `chunk`.
    fn attend(&self, pool: &ThreadPool, cache: &KvCache, chunk: usize) -> Vec<f32> {
        let (table, _) = self.places(cache.block_size());
        let mut out = Vec::new();
        for start in (0..LENGTH).step_by(chunk) {
            let end = (start + chunk).min(LENGTH);
            let rows = AttentionRows {
                block_table: &table,
                num_rows: end - start,
                context_len: end,
                leaves: &[],
            };
            let q = &self.q[start * self.width()..end * self.width()];
            out.extend(run(pool, &self.params, cache, &[rows], q));
        }
        out
    }

    /// Attention by its definition over the keys and values of the cache, `[tokens, head_dim]` a
    /// head.
    fn expected(&self, q: &[f32], kv: &[(Vec<f32>, Vec<f32>)]) -> Vec<f64> {
        let p = self.params;
        let (dim, group) = (p.head_dim, p.num_heads / p.num_kv_heads);
        let mut out = Vec::new();
        for (index, q) in q.chunks_exact(dim).enumerate() {
            let (row, head) = (index / p.num_heads, index % p.num_heads);
            let (keys, values) = &kv[head / group];
            let first = p.sliding_window.map_or(0, |w| (row + 1).saturating_sub(w));
            let score = |t: usize| {
                let dot: f64 = (q.iter().zip(&keys[t * dim..]))
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .sum();
                let score = dot * f64::from(p.scale);
                let capped = |cap| f64::from(cap) * (score / f64::from(cap)).tanh();
                p.softcap.map_or(score, capped).exp()
            };
            let weights: Vec<f64> = (first..=row).map(score).collect();
            let total: f64 = weights.iter().sum();
            out.extend((0..dim).map(|d| {
                let seen = weights.iter().zip(first..);
                let terms = seen.map(|(w, t)| w / total * f64::from(values[t * dim + d]));
                terms.sum::<f64>()
            }));
        }
        out
    }
}

fn run(
    pool: &ThreadPool,
    params: &AttentionParams,
    cache: &KvCache,
    rows: &[AttentionRows<'_>],
    q: &[f32],
) -> Vec<f32> {
    let mut plan = AttentionPlan::default();
    plan.plan(rows, params.num_kv_heads, pool.num_threads());
    let mut out = vec![f32::NAN; q.len()];
    paged_attention(pool, params, cache, 1, &plan, q, rows, &mut out);
    out
}

/// Every head's keys and values as the cache has them.
fn read(cache: &KvCache, slots: &[u32]) -> Vec<(Vec<f32>, Vec<f32>)> {
    let heads = (0..cache.num_kv_heads()).map(|head| {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        cache.read(1, head, slots, &mut keys, &mut values);
        (keys, values)
    });
    heads.collect()
}

/// Rounds each group of a head to int8, as queries are.
fn rounded(q: &[f32], head_dim: usize) -> Vec<f32> {
    let heads = q.chunks_exact(head_dim).flat_map(|head| head.chunks(GROUP));
    let group = |group: &[f32]| -> Vec<f32> {
        let scale = group.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 127.0;
        let inverse = 1.0 / scale;
        let round = |x: &f32| (x * inverse).round_ties_even() * scale;
        group.iter().map(round).collect()
    };
    heads.flat_map(group).collect()
}

fn assert_near(actual: &[f32], expected: &[f64], bound: f64, name: &str) {
    assert_eq!(actual.len(), expected.len());
    for (actual, expected) in actual.iter().zip(expected) {
        let difference = (f64::from(*actual) - expected).abs();
        assert!(difference < bound, "{name}: {actual} is not {expected}");
    }
}

/// Codes are off by at most half a step; a step is 1/127 of the group's largest value, as an f16.
#[test]
fn codes_are_within_half_a_step_of_their_values() {
    let pool = ThreadPool::eager(2);
    for (head_dim, block_size) in [(64, 16), (24, 32), (80, 16), (2, 16), (37, 48)] {
        let mut case = Case::new(2, 2, head_dim, None);
        // Groups of all sizes, one of zeros, and one that f16 could not hold.
        for (index, token) in case.k.chunks_exact_mut(head_dim).enumerate() {
            let size = [1.0, 0.0, 300.0, 1e-3, 2e5][index % 5];
            token.iter_mut().for_each(|x| *x *= size);
        }
        let cache = case.cache(&pool, KvDtype::Q8_0, block_size);
        let (_, slots) = case.places(block_size);
        for (head, (keys, values)) in read(&cache, &slots).iter().enumerate() {
            for (read, written) in [(keys, &case.k), (values, &case.v)] {
                for (token, read) in read.chunks_exact(head_dim).enumerate() {
                    let written = &written[(token * 2 + head) * head_dim..][..head_dim];
                    for (read, written) in read.chunks(GROUP).zip(written.chunks(GROUP)) {
                        let largest = written.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                        // Rounded up to the next f16, the smallest of which is 6e-8.
                        let step = largest / 127.0 * 1.001 + 6e-8;
                        for (a, b) in read.iter().zip(written) {
                            assert!((a - b).abs() <= 0.501 * step, "{a} is not {b} by {step}");
                        }
                    }
                }
            }
        }
    }
}

/// Against the sum over what the cache holds and, for int8, queries rounded likewise: the products
/// are exact, so only f32 sums differ. Against unrounded keys, queries and values in -1..1: a score
/// of `head_dim` products, scaled by its root, is off by 2 * 0.0023 * 0.58 (standard error),
/// weights by as much relatively, and values by 0.0023: 0.02 is more than five of all together.
#[test]
fn attention_equals_the_plain_sum() {
    let pool = ThreadPool::eager(2);
    for (heads, kv_heads, head_dim, window, softcap) in [
        (1, 1, 64, None, None),
        (9, 3, 64, None, Some(0.5)),
        (4, 1, 256, Some(20), None),
        (14, 2, 24, None, None),
        (4, 4, 128, Some(16), None),
        (6, 2, 80, None, None),
        (3, 3, 37, Some(5), Some(2.0)),
    ] {
        let mut case = Case::new(heads, kv_heads, head_dim, window);
        case.params.softcap = softcap;
        for dtype in DTYPES {
            let name = format!("{} of {:?}", dtype.name(), case.params);
            let cache = case.cache(&pool, dtype, 16);
            let (_, slots) = case.places(16);
            let held = read(&cache, &slots);
            let q = match dtype {
                KvDtype::F16 => case.q.clone(),
                KvDtype::Q8_0 => rounded(&case.q, head_dim),
            };
            let actual = case.attend(&pool, &cache, LENGTH);
            assert_near(&actual, &case.expected(&q, &held), 2e-5, &name);
            let exact: Vec<_> = (0..kv_heads)
                .map(|head| {
                    let of_head = |rows: &[f32]| -> Vec<f32> {
                        let tokens = rows.chunks_exact(kv_heads * head_dim);
                        let one = |token: &[f32]| token[head * head_dim..][..head_dim].to_vec();
                        tokens.flat_map(one).collect()
                    };
                    (of_head(&case.k), of_head(&case.v))
                })
                .collect();
            assert_near(&actual, &case.expected(&case.q, &exact), 0.02, &name);
        }
    }
}

#[test]
fn attention_does_not_depend_on_chunks_blocks_or_threads() {
    let (one, three) = (ThreadPool::new(1), ThreadPool::eager(3));
    for head_dim in [64, 80] {
        let case = Case::new(9, 3, head_dim, Some(40));
        for dtype in DTYPES {
            let cache = case.cache(&one, dtype, 16);
            let whole = case.attend(&one, &cache, LENGTH);
            assert_eq!(whole, case.attend(&one, &cache, 1));
            let cache = case.cache(&three, dtype, 48);
            assert_eq!(whole, case.attend(&three, &cache, 13));
        }
    }
}

/// Leaves, forks and copies read what plain rows would.
#[test]
fn codes_are_attended_wherever_they_lie() {
    let pool = ThreadPool::eager(2);
    let mut case = Case::new(6, 2, 40, None);
    let (width, kv_width) = (case.width(), 80);
    let mut cache = case.cache(&pool, KvDtype::Q8_0, 16);
    let (table, slots) = case.places(16);
    let all = case.attend(&pool, &cache, LENGTH);
    // A fork: its first blocks are the sequence's own, the others copies that lie elsewhere.
    let spare = |block: u32| (block + 1) % 15;
    let copies: Vec<(u32, u32)> = table[2..].iter().map(|b| (*b, spare(*b))).collect();
    cache.copy_blocks(&copies);
    let mut fork = table.clone();
    fork[2..]
        .iter_mut()
        .for_each(|block| *block = spare(*block));
    let rows = [&table, &fork].map(|block_table| AttentionRows {
        block_table,
        num_rows: 30,
        context_len: LENGTH,
        leaves: &[],
    });
    let last = &case.q[(LENGTH - 30) * width..];
    let both = run(&pool, &case.params, &cache, &rows, &[last, last].concat());
    assert_eq!(both[..30 * width], all[(LENGTH - 30) * width..]);
    assert_eq!(both[30 * width..], all[(LENGTH - 30) * width..]);
    // The last token stands in for the one at position 50, and then lies there.
    let leaf = AttentionRows {
        block_table: &table,
        num_rows: 1,
        context_len: LENGTH,
        leaves: &[50],
    };
    let q = case.q[(LENGTH - 1) * width..].to_vec();
    let as_leaf = run(&pool, &case.params, &cache, &[leaf], &q);
    for values in [&mut case.k, &mut case.v] {
        values.copy_within((LENGTH - 1) * kv_width.., 50 * kv_width);
    }
    cache.write(&pool, 1, &slots, &case.k, &case.v);
    let plain = AttentionRows {
        context_len: 51,
        leaves: &[],
        ..leaf
    };
    assert_eq!(as_leaf, run(&pool, &case.params, &cache, &[plain], &q));
}

/// What lies in a block from before it was freed reaches no row, not even as a value that is no
/// number.
#[test]
fn tokens_that_nobody_sees_count_for_nothing() {
    let pool = ThreadPool::new(1);
    for dtype in DTYPES {
        let case = Case::new(2, 1, 32, None);
        let mut cache = case.cache(&pool, dtype, 16);
        let expected = case.attend(&pool, &cache, LENGTH);
        let (table, _) = case.places(16);
        let unseen: Vec<u32> = (LENGTH as u32 % 16..16)
            .map(|i| table[4] * 16 + i)
            .collect();
        let poison = vec![f32::NAN; unseen.len() * 32];
        cache.write(&pool, 1, &unseen, &poison, &poison);
        let (keys, _) = &read(&cache, &unseen)[0];
        assert!(keys.iter().all(|key| key.is_nan()), "{}", dtype.name());
        assert_eq!(expected, case.attend(&pool, &cache, LENGTH));
    }
}

#[test]
fn int8_takes_about_half_the_memory() {
    for (head_dim, most) in [(64, 0.54), (128, 0.54), (256, 0.54), (80, 0.56)] {
        let [halves, codes] = DTYPES.map(|dtype| {
            let cache = KvCache::of(dtype, 2, 3, 32, 2, head_dim).unwrap();
            let per_token = dtype.token_bytes(head_dim);
            assert_eq!(cache.nbytes(), per_token * 2 * 3 * 32 * 2);
            cache.nbytes() as f64
        });
        assert!(codes <= most * halves, "{codes} of {halves}");
    }
    assert!(KvCache::of(KvDtype::Q8_0, 1, 1, 24, 1, 64).is_err());
    assert!(KvCache::of(KvDtype::Q8_0, usize::MAX, 2, 16, 1, 64).is_err());
    assert!(KvCache::of(KvDtype::Q8_0, 1, 1, 16, 1, usize::MAX).is_err());
    assert_eq!(KvDtype::Q8_0.token_bytes(usize::MAX), usize::MAX);
}

#[test]
fn every_instruction_set_passes_these_tests() {
    common::with_other_instruction_sets();
}
