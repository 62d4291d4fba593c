//! The packed kernels against plain references and candle-core.

mod common;

use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};
use common::{Random, ggml, product, quantised};
use ponder_kernels::*;

#[test]
fn dequantisation_equals_candle() {
    for dtype in DType::ALL {
        let (bytes, expected) = quantised(dtype, 3, 512, 7);
        let mut actual = vec![0.0; expected.len()];
        reference::dequantize(dtype, &bytes, &mut actual);
        for (a, b) in actual.iter().zip(&expected) {
            assert!((a - b).abs() <= 1e-6, "{}: {a} is not {b}", dtype.name());
        }
    }
}

#[test]
fn packed_rows_read_back_as_they_were() {
    let pool = ThreadPool::eager(2);
    for dtype in DType::ALL {
        let (bytes, expected) = quantised(dtype, 19, 256, 3);
        let packed = PackedMatrix::pack(&pool, dtype, &bytes, 19, 256).unwrap();
        let mut row = vec![0.0; 256];
        for (index, expected) in expected.chunks(256).enumerate() {
            packed.dequantize_row(index, &mut row);
            for (a, b) in row.iter().zip(expected) {
                assert!(
                    (a - b).abs() <= 1e-6,
                    "{} row {index}: {a} is not {b}",
                    dtype.name()
                );
            }
        }
    }
}

/// Int8 activations are off by at most half a step of 1/127 of a block's largest value: over random
/// inputs in -1..1 a sum of `k` products has a standard error of 0.00227 * 0.577 * sqrt(k). The bound
/// is six of them.
#[test]
fn products_equal_the_reference_over_odd_shapes() {
    let pool = ThreadPool::eager(2);
    for dtype in DType::ALL {
        for (out_features, in_features) in [(1, 256), (7, 512), (8, 256), (33, 768), (130, 1024)] {
            let (bytes, weights) = quantised(dtype, out_features, in_features, 11);
            let packed =
                PackedMatrix::pack(&pool, dtype, &bytes, out_features, in_features).unwrap();
            for rows in [1, 2, 3, 4, 5, 17, 67] {
                let x = Random(rows as u64).values(rows * in_features);
                let actual = product(&pool, &packed, &x);
                let mut expected = vec![0.0; actual.len()];
                reference::matmul(&x, &weights, in_features, &mut expected);
                let bound = 0.008 * (in_features as f32).sqrt();
                for (a, b) in actual.iter().zip(&expected) {
                    assert!(
                        (a - b).abs() <= bound,
                        "{} {out_features}x{in_features} rows {rows}: {a} is not {b}",
                        dtype.name()
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_others_or_on_threads() {
    for dtype in DType::ALL {
        let (out_features, in_features) = (53, 512);
        let (bytes, _) = quantised(dtype, out_features, in_features, 5);
        let pools = [1, 2, 3].map(ThreadPool::eager);
        let packed =
            PackedMatrix::pack(&pools[0], dtype, &bytes, out_features, in_features).unwrap();
        let x = Random(9).values(71 * in_features);
        let together: Vec<Vec<f32>> = pools
            .iter()
            .map(|pool| product(pool, &packed, &x))
            .collect();
        assert_eq!(together[0], together[1], "{}", dtype.name());
        assert_eq!(together[0], together[2], "{}", dtype.name());
        // Each number of rows that has a kernel of its own, and one that needs two of them.
        for rows in 1..=35 {
            let first = product(&pools[0], &packed, &x[..rows * in_features]);
            let expected = &together[0][..rows * out_features];
            assert!(first == expected, "{} {rows} rows", dtype.name());
        }
        for (row, expected) in x.chunks(in_features).zip(together[0].chunks(out_features)) {
            let alone = product(&pools[0], &packed, row);
            assert_eq!(alone, expected, "{}", dtype.name());
        }
    }
}

#[test]
fn extreme_codes_do_not_saturate() {
    let pool = ThreadPool::new(1);
    for dtype in [DType::Q8_0, DType::Q6K, DType::Q5_1, DType::Q4_1] {
        let values: Vec<f32> = (0..1024)
            .map(|i| if i % 7 == 0 { -1.0 } else { 1.0 })
            .collect();
        let tensor = Tensor::from_vec(values, (1, 1024), &Device::Cpu).unwrap();
        let quantised = QTensor::quantize(&tensor, ggml(dtype).unwrap()).unwrap();
        let weights: Vec<f32> = quantised
            .dequantize(&Device::Cpu)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        let packed = PackedMatrix::pack(&pool, dtype, &quantised.data().unwrap(), 1, 1024).unwrap();
        let x: Vec<f32> = weights.iter().map(|w| w.signum()).collect();
        let expected: f32 = weights.iter().map(|w| w.abs()).sum();
        let actual = product(&pool, &packed, &x)[0];
        assert!(
            (actual - expected).abs() < 2.0,
            "{}: {actual} is not {expected}",
            dtype.name()
        );
    }
}

#[test]
fn bad_shapes_are_errors() {
    let pool = ThreadPool::new(1);
    let pack = |dtype, len, rows, columns| {
        PackedMatrix::pack(&pool, dtype, &vec![0; len], rows, columns).map(|_| ())
    };
    assert!(matches!(
        pack(DType::Q4K, 144, 1, 250),
        Err(KernelError::RaggedBlock { .. })
    ));
    assert!(matches!(
        pack(DType::Q4K, 143, 1, 256),
        Err(KernelError::WrongByteCount { .. })
    ));
    assert!(matches!(
        pack(DType::F32, 0, 0, 256),
        Err(KernelError::BadShape { .. })
    ));
    assert!(pack(DType::F32, 4, usize::MAX, 2).is_err());
    assert!(KvCache::new(1, 1, 24, 1, 64).is_err());
    assert!(KvCache::new(usize::MAX, 2, 16, 1, 64).is_err());
}

struct AttentionCase {
    params: AttentionParams,
    k: Vec<f32>,
    v: Vec<f32>,
    q: Vec<f32>,
    length: usize,
}

impl AttentionCase {
    fn new(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> Self {
        let length = 77;
        let mut random = Random(21);
        // Half precision stores the cache, so the reference reads rounded values too.
        let mut halves = |count| -> Vec<f32> {
            random
                .values(count)
                .iter()
                .map(|v| half::f16::from_f32(*v).to_f32())
                .collect()
        };
        Self {
            params: AttentionParams {
                num_heads: heads,
                num_kv_heads: kv_heads,
                head_dim,
                scale: 1.0 / (head_dim as f32).sqrt(),
                sliding_window: window,
                softcap: None,
            },
            k: halves(length * kv_heads * head_dim),
            v: halves(length * kv_heads * head_dim),
            q: halves(length * heads * head_dim),
            length,
        }
    }

    /// Runs rows `from..length` in chunks of `chunk` over shuffled blocks.
    fn paged(&self, pool: &ThreadPool, block_size: usize, chunk: usize) -> Vec<f32> {
        let p = self.params;
        let blocks = self.length.div_ceil(block_size);
        let table: Vec<u32> = (0..blocks as u32)
            .map(|i| (i * 3 + 1) % (3 * blocks as u32))
            .collect();
        let mut cache =
            KvCache::new(2, 3 * blocks, block_size, p.num_kv_heads, p.head_dim).unwrap();
        let slots: Vec<u32> = (0..self.length)
            .map(|i| table[i / block_size] * block_size as u32 + (i % block_size) as u32)
            .collect();
        cache.write(pool, 1, &slots, &self.k, &self.v);
        let width = p.num_heads * p.head_dim;
        let mut out = vec![f32::NAN; self.q.len()];
        for start in (0..self.length).step_by(chunk) {
            let end = (start + chunk).min(self.length);
            let rows = AttentionRows {
                block_table: &table,
                num_rows: end - start,
                context_len: end,
                leaves: &[],
            };
            let range = start * width..end * width;
            let mut plan = AttentionPlan::default();
            plan.plan(&[rows], p.num_kv_heads, pool.num_threads());
            paged_attention(
                pool,
                &p,
                &cache,
                1,
                &plan,
                &self.q[range.clone()],
                &[rows],
                &mut out[range],
            );
        }
        out
    }

    fn expected(&self) -> Vec<f64> {
        let p = self.params;
        let group = p.num_heads / p.num_kv_heads;
        let mut out = vec![0.0; self.q.len()];
        for row in 0..self.length {
            let first = p
                .sliding_window
                .map_or(0, |window| (row + 1).saturating_sub(window));
            for head in 0..p.num_heads {
                let q = &self.q[(row * p.num_heads + head) * p.head_dim..][..p.head_dim];
                let at = |t: usize| (t * p.num_kv_heads + head / group) * p.head_dim;
                let weights: Vec<f64> = (first..=row)
                    .map(|t| {
                        let k = &self.k[at(t)..][..p.head_dim];
                        let dot: f64 = q
                            .iter()
                            .zip(k)
                            .map(|(a, b)| f64::from(*a) * f64::from(*b))
                            .sum();
                        (dot * f64::from(p.scale)).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for d in 0..p.head_dim {
                    out[(row * p.num_heads + head) * p.head_dim + d] = weights
                        .iter()
                        .zip(first..=row)
                        .map(|(w, t)| w / total * f64::from(self.v[at(t) + d]))
                        .sum();
                }
            }
        }
        out
    }
}

#[test]
fn attention_equals_the_plain_sum() {
    let pool = ThreadPool::eager(2);
    for (heads, kv_heads, head_dim, window) in [
        (1, 1, 64, None),
        (9, 3, 64, None),
        (4, 1, 256, Some(20)),
        (14, 2, 24, None),
        (4, 4, 128, Some(16)),
    ] {
        let case = AttentionCase::new(heads, kv_heads, head_dim, window);
        let expected = case.expected();
        for (actual, expected) in case.paged(&pool, 16, 77).iter().zip(&expected) {
            assert!(
                (f64::from(*actual) - expected).abs() < 2e-5,
                "{actual} is not {expected}"
            );
        }
    }
}

#[test]
fn attention_does_not_depend_on_chunks_blocks_or_threads() {
    let case = AttentionCase::new(9, 3, 64, Some(40));
    let (one, three) = (ThreadPool::new(1), ThreadPool::eager(3));
    let whole = case.paged(&one, 16, 77);
    assert_eq!(whole, case.paged(&one, 16, 1));
    assert_eq!(whole, case.paged(&three, 32, 13));
}

/// A leaf gets what it would get if it stood in its place, bit for bit, and changes nothing for the rows beside it.
#[test]
fn leaves_are_attended_as_if_they_stood_at_their_position() {
    const FIRST_ROW: usize = 62;
    const FIRST_LEAF: usize = 72;
    let leaves = [63, 64, 70, 71, 70];
    for (block_size, window) in [(16, None), (32, Some(20))] {
        let case = AttentionCase::new(6, 2, 32, window);
        let (p, pool) = (case.params, ThreadPool::eager(2));
        let (width, kv_width) = (p.num_heads * p.head_dim, p.num_kv_heads * p.head_dim);
        let table: Vec<u32> = (0..5).collect();
        let slots: Vec<u32> = (0..case.length as u32).collect();
        let attend = |cache: &KvCache, rows: AttentionRows<'_>, q: &[f32]| {
            let mut plan = AttentionPlan::default();
            plan.plan(&[rows], p.num_kv_heads, pool.num_threads());
            let mut out = vec![f32::NAN; q.len()];
            paged_attention(&pool, &p, cache, 0, &plan, q, &[rows], &mut out);
            out
        };
        let new_cache = || KvCache::new(1, 5, block_size, p.num_kv_heads, p.head_dim).unwrap();
        let mut cache = new_cache();
        cache.write(&pool, 0, &slots, &case.k, &case.v);
        let rows = AttentionRows {
            block_table: &table,
            num_rows: case.length - FIRST_ROW,
            context_len: case.length,
            leaves: &leaves,
        };
        let out = attend(&cache, rows, &case.q[FIRST_ROW * width..]);
        let plain = AttentionRows {
            num_rows: FIRST_LEAF - FIRST_ROW,
            context_len: FIRST_LEAF,
            leaves: &[],
            ..rows
        };
        let plain = attend(
            &cache,
            plain,
            &case.q[FIRST_ROW * width..FIRST_LEAF * width],
        );
        assert_eq!(out[..plain.len()], plain);
        for (index, position) in leaves.into_iter().enumerate() {
            let (own, position) = (FIRST_LEAF + index, position as usize);
            let (mut k, mut v) = (case.k.clone(), case.v.clone());
            k.copy_within(own * kv_width..(own + 1) * kv_width, position * kv_width);
            v.copy_within(own * kv_width..(own + 1) * kv_width, position * kv_width);
            let mut cache = new_cache();
            cache.write(&pool, 0, &slots, &k, &v);
            let alone = AttentionRows {
                num_rows: 1,
                context_len: position + 1,
                leaves: &[],
                ..rows
            };
            let alone = attend(&cache, alone, &case.q[own * width..(own + 1) * width]);
            assert_eq!(
                out[(own - FIRST_ROW) * width..][..width],
                alone,
                "leaf {index}"
            );
        }
    }
}

/// A tree of sequences: some share all blocks but the last, some only the first, one shares none.
#[test]
fn rows_that_share_blocks_are_attended_as_if_alone() {
    let params = AttentionParams {
        num_heads: 6,
        num_kv_heads: 2,
        head_dim: 32,
        scale: 0.2,
        sliding_window: Some(70),
        softcap: None,
    };
    let (pool, mut random) = (ThreadPool::eager(2), Random(33));
    let mut cache = KvCache::new(1, 24, 16, 2, 32).unwrap();
    let slots: Vec<u32> = (0..24 * 16).collect();
    let (k, v) = (
        random.values(slots.len() * 64),
        random.values(slots.len() * 64),
    );
    cache.write(&pool, 0, &slots, &k, &v);
    let tables: [&[u32]; 6] = [
        &[3, 7, 1, 9, 12],
        &[3, 7, 1, 9, 2],
        &[0, 4, 5],
        &[3, 7, 1, 11],
        &[3, 8],
        &[3, 7, 1, 9, 12],
    ];
    let shapes = [(1, 70), (3, 68), (2, 40), (1, 64), (5, 20), (1, 66)];
    let rows: Vec<AttentionRows<'_>> = tables
        .iter()
        .zip(shapes)
        .map(|(block_table, (num_rows, context_len))| AttentionRows {
            block_table,
            num_rows,
            context_len,
            leaves: &[],
        })
        .collect();
    let width = 6 * 32;
    let total: usize = rows.iter().map(|rows| rows.num_rows).sum();
    let q = random.values(total * width);
    let attend = |rows: &[AttentionRows<'_>], q: &[f32]| {
        let mut plan = AttentionPlan::default();
        plan.plan(rows, 2, 1);
        let mut out = vec![f32::NAN; q.len()];
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
}

#[test]
fn logits_passes_equal_their_definitions() {
    let mut values = Random(8).values(5000);
    values[4321] = 3.0;
    values[4999] = 3.0;
    values[17] = f32::NEG_INFINITY;
    assert_eq!(logits::argmax(&values), Some((4321, 3.0)));
    assert_eq!(logits::argmax(&[f32::NAN, f32::NEG_INFINITY]), None);
    for count in [0, 1, 2, 63, 700, 5000, 6000] {
        let mut expected: Vec<u32> = (0..5000).collect();
        let at = |id: u32| values[id as usize];
        expected.sort_by(|a, b| at(*b).total_cmp(&at(*a)).then(a.cmp(b)));
        expected.truncate(count);
        assert_eq!(logits::top(&values, count), expected);
    }
    let (mut weights, mut sums) = (Vec::new(), Vec::new());
    let total = logits::weigh(&values, 3.0, &mut weights, &mut sums);
    let exact: Vec<f64> = values.iter().map(|v| (f64::from(*v) - 3.0).exp()).collect();
    assert!((total / exact.iter().sum::<f64>() - 1.0).abs() < 1e-6);
    assert_eq!(weights[17], 0.0);
    for (weight, exact) in weights.iter().zip(&exact) {
        assert!((f64::from(*weight) - exact).abs() <= 4e-7 * exact);
    }
}

#[test]
fn every_instruction_set_passes_these_tests() {
    common::with_other_instruction_sets();
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(60))]
    /// Any shape, any type: within the bound of the reference, and each row as if it were alone.
    #[test]
    fn any_product_equals_the_reference(
        dtype in 0..DType::ALL.len(),
        out_features in 1_usize..70,
        blocks in 1_usize..7,
        rows in 1_usize..80,
        seed in 0_u64..1000,
    ) {
        let (dtype, in_features) = (DType::ALL[dtype], 256 * blocks);
        let pool = ThreadPool::eager(2);
        let (bytes, weights) = quantised(dtype, out_features, in_features, seed);
        let packed = PackedMatrix::pack(&pool, dtype, &bytes, out_features, in_features).unwrap();
        let x = Random(seed + 1).values(rows * in_features);
        let actual = product(&pool, &packed, &x);
        let mut expected = vec![0.0; actual.len()];
        reference::matmul(&x, &weights, in_features, &mut expected);
        let bound = 0.008 * (in_features as f32).sqrt();
        for (a, b) in actual.iter().zip(&expected) {
            proptest::prop_assert!((a - b).abs() <= bound, "{} is not {}", a, b);
        }
        let last = &x[(rows - 1) * in_features..];
        let alone = product(&pool, &packed, last);
        proptest::prop_assert_eq!(&alone[..], &actual[(rows - 1) * out_features..]);
    }
}

/// Gate, up and the activation in one section equal the three apart, for whole blocks and others.
#[test]
fn gated_products_equal_their_parts() {
    let pool = ThreadPool::eager(2);
    for (width, dtype) in [(416, DType::Q4_1), (96, DType::Q6K), (40, DType::F32)] {
        let in_features = 512;
        let pack = |seed| {
            let (bytes, _) = quantised(dtype, width, in_features, seed);
            PackedMatrix::pack(&pool, dtype, &bytes, width, in_features).unwrap()
        };
        let (gate, up) = (pack(1), pack(2));
        for rows in [1, 9, 20, 30, 70] {
            let x = Random(rows as u64).values(rows * in_features);
            let mut input = Activations::with_capacity(rows, in_features, true);
            input.load(&pool, &x, rows, in_features);
            let mut gated = Activations::with_capacity(rows, width, true);
            matmul_glu(&pool, &input, &gate, &up, Glu::Silu, &mut gated);
            let (mut expected, wide) = (product(&pool, &gate, &x), product(&pool, &up, &x));
            elementwise::glu(Glu::Silu, &mut expected, &wide);
            // An identity matrix reads the activations back.
            let mut identity = vec![0.0_f32; width * width];
            (0..width).for_each(|i| identity[i * width + i] = 1.0);
            let bytes: Vec<u8> = identity.iter().flat_map(|v| v.to_le_bytes()).collect();
            let identity = PackedMatrix::pack(&pool, DType::F32, &bytes, width, width).unwrap();
            let mut actual = vec![0.0; rows * width];
            matmul(&pool, &gated, &identity, None, &mut actual);
            assert_eq!(actual, expected, "{} x {rows}", dtype.name());
        }
    }
}

#[test]
fn copied_blocks_hold_the_same_keys() {
    let pool = ThreadPool::new(1);
    let mut cache = KvCache::new(2, 4, 16, 1, 16).unwrap();
    let k = Random(1).values(16 * 16);
    let slots: Vec<u32> = (16..32).collect();
    for layer in 0..2 {
        cache.write(&pool, layer, &slots, &k, &k);
    }
    cache.copy_blocks(&[(1, 3)]);
    let params = AttentionParams {
        num_heads: 1,
        num_kv_heads: 1,
        head_dim: 16,
        scale: 1.0,
        sliding_window: None,
        softcap: Some(5.0),
    };
    for layer in 0..2 {
        let [a, b] = [1, 3].map(|block| {
            let rows = AttentionRows {
                block_table: &[block],
                num_rows: 1,
                context_len: 16,
                leaves: &[],
            };
            let mut out = vec![0.0; 16];
            let mut plan = AttentionPlan::default();
            plan.plan(&[rows], 1, 1);
            paged_attention(
                &pool,
                &params,
                &cache,
                layer,
                &plan,
                &k[..16],
                &[rows],
                &mut out,
            );
            out
        });
        assert_eq!(a, b);
        assert!(a.iter().any(|value| *value != 0.0));
    }
}

#[test]
fn gated_units_equal_their_definitions() {
    let gate: Vec<f32> = Random(2).values(10 * 40).iter().map(|v| v * 12.0).collect();
    let up: Vec<f32> = Random(3).values(10 * 40).iter().map(|v| v * 12.0).collect();
    let [mut silu, mut gelu, mut clamped] = [(); 3].map(|()| gate.clone());
    elementwise::glu(Glu::ClampedSwish, &mut clamped, &up);
    elementwise::glu(Glu::Silu, &mut silu, &up);
    elementwise::glu(Glu::GeluTanh, &mut gelu, &up);
    for i in 0..gate.len() {
        let (x, u) = (f64::from(gate[i]), f64::from(up[i]));
        let is_near = |a: f32, expected: f64| {
            (f64::from(a) - expected).abs() < 1e-6 * expected.abs().max(10.0)
        };
        assert!(is_near(silu[i], x / (1.0 + (-x).exp()) * u));
        let swish = x.min(7.0) / (1.0 + (-1.702 * x.min(7.0)).exp());
        assert!(is_near(clamped[i], swish * (u.clamp(-7.0, 7.0) + 1.0)));
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        assert!(is_near(gelu[i], 0.5 * x * (1.0 + inner.tanh()) * u));
    }
}

#[test]
fn rotations_keep_norms_and_differ_by_kind() {
    let pool = ThreadPool::new(1);
    let table = RopeTable::new(8, 32, 10_000.0, None, 1.0);
    let x = Random(4).values(2 * 16);
    for kind in [RopeKind::Norm, RopeKind::Neox] {
        let mut y = x.clone();
        let mut cache = KvCache::new(1, 1, 16, 2, 8).unwrap();
        let rotation = Rotation {
            table: &table,
            kind,
            q_norm: None,
            k_norm: None,
            eps: 0.0,
            positions: &[0, 5],
        };
        let (mut k, v) = (x.clone(), x.clone());
        rotate_and_cache(&pool, &rotation, &mut cache, 0, &[0, 1], &mut y, &mut k, &v);
        assert_eq!(k, y, "keys turn as queries do");
        assert_eq!(y[..16], x[..16], "position 0 does not rotate");
        let norm = |values: &[f32]| values.iter().map(|v| v * v).sum::<f32>();
        assert!((norm(&y[16..]) - norm(&x[16..])).abs() < 1e-4);
        let (a, b) = if kind == RopeKind::Norm {
            (0, 1)
        } else {
            (0, 4)
        };
        let expected = x[16 + a] * 5_f32.cos() - x[16 + b] * 5_f32.sin();
        assert!((y[16] - expected).abs() < 1e-5);
    }
}
