//! Products with adapters against sums in f64, and the law of rows bit by bit.

mod common;

use common::{Random, quantised};
use ponder_kernels::*;

/// Adapters of three matrices that read the same rows.
struct Case {
    base: DType,
    in_features: usize,
    out_features: [usize; 3],
    /// By adapter and matrix; 0: it does not change the matrix.
    ranks: Vec<[usize; 3]>,
    /// By row.
    adapters: Vec<Option<usize>>,
}

/// Factors in f32.
struct Plain {
    rank: usize,
    down: Vec<f32>,
    up: Vec<f32>,
}

struct Setup {
    pool: ThreadPool,
    weights: Vec<PackedMatrix>,
    plain: Vec<[Option<Plain>; 3]>,
    packed: Vec<LowRank>,
    /// `[rows, in_features]`
    x: Vec<f32>,
}

impl Case {
    fn reads(&self) -> Reads {
        match self.base {
            DType::F32 | DType::F16 | DType::BF16 => Reads::Values,
            _ => Reads::Codes,
        }
    }

    /// `scale` is that of the factors' weights.
    fn setup(&self, num_threads: usize, scale: f32) -> Setup {
        let pool = ThreadPool::eager(num_threads);
        let weights = self.out_features.iter().enumerate().map(|(seed, out)| {
            let (bytes, _) = quantised(self.base, *out, self.in_features, seed as u64);
            PackedMatrix::pack(&pool, self.base, &bytes, *out, self.in_features).unwrap()
        });
        let weights = weights.collect();
        let mut random = Random(7);
        let mut scaled = |count| -> Vec<f32> {
            let values = random.values(count).into_iter();
            values.map(|value| scale * value).collect()
        };
        let mut plain = Vec::new();
        for ranks in &self.ranks {
            plain.push(std::array::from_fn(|matrix| {
                let rank = ranks[matrix];
                (rank > 0).then(|| Plain {
                    rank,
                    down: scaled(rank * self.in_features),
                    up: scaled(self.out_features[matrix] * rank),
                })
            }));
        }
        let packed = plain.iter().map(|parts| {
            let parts = parts.each_ref().map(|part| {
                part.as_ref().map(|part| Factors {
                    rank: part.rank,
                    down: &part.down,
                    up: &part.up,
                })
            });
            LowRank::pack(&pool, &parts, self.in_features, self.reads()).unwrap()
        });
        let packed = packed.collect();
        let x = Random(9).values(self.adapters.len() * self.in_features);
        Setup {
            pool,
            weights,
            plain,
            packed,
            x,
        }
    }
}

/// The three products of some rows with some adapters.
fn run(setup: &Setup, rows: std::ops::Range<usize>, adapters: &[Option<usize>]) -> [Vec<f32>; 3] {
    let width = setup.weights[0].in_features();
    let mut x = Activations::with_capacity(rows.len(), width, true);
    let values = &setup.x[rows.start * width..rows.end * width];
    x.load(&setup.pool, values, rows.len(), width);
    let mut outs = [0, 1, 2].map(|i| vec![0.5; rows.len() * setup.weights[i].out_features()]);
    let users = |adapter| -> Vec<usize> {
        let rows = adapters.iter().enumerate();
        let users = rows.filter(|(_, of_row)| **of_row == Some(adapter));
        users.map(|(row, _)| row).collect()
    };
    let users: Vec<Vec<usize>> = (0..setup.packed.len()).map(users).collect();
    let additions = users.iter().zip(&setup.packed);
    let additions = additions.map(|(rows, factors)| Addition { rows, factors });
    let additions: Vec<_> = additions.collect();
    let mut weights = setup.weights.iter();
    let products = outs.each_mut().map(|out| Product {
        weights: weights.next().unwrap(),
        bias: None,
        out,
        accumulate: true,
    });
    let mut scratch = LowRankScratch::default();
    matmul_adapted(&setup.pool, &x, products, &additions, &mut scratch);
    outs
}

/// What the adapter adds to a row of a product, in f64.
fn exact(part: &Plain, x: &[f32]) -> Vec<f64> {
    let dot =
        |a: &[f32], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum() };
    let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let low: Vec<f64> = part.down.chunks(x.len()).map(|row| dot(row, &x)).collect();
    part.up
        .chunks(part.rank)
        .map(|row| dot(row, &low))
        .collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// The norm of [`exact`] if the row had another direction: for this one it may be near 0.
fn typical(part: &Plain, x: &[f32]) -> f64 {
    let square = |values: &[f32]| -> f64 { values.iter().map(|x| f64::from(*x).powi(2)).sum() };
    let of_column = |j: usize| -> f64 {
        let column = part.up.iter().skip(j).step_by(part.rank);
        square(&column.copied().collect::<Vec<f32>>())
    };
    let rows = part.down.chunks(x.len()).enumerate();
    let sum: f64 = rows.map(|(j, row)| square(row) * of_column(j)).sum();
    (sum * square(x) / x.len() as f64).sqrt()
}

fn cases() -> Vec<Case> {
    let mixed = |count: usize| -> Vec<Option<usize>> {
        let of_row = |row: usize| match row % 7 {
            0 | 3 => Some(0),
            1 => Some(1),
            5 => Some(2),
            _ => None,
        };
        (0..count).map(of_row).collect()
    };
    let blocks = |count: usize| -> Vec<Option<usize>> {
        let of_row = |row: usize| (row * 4 / count).checked_sub(1);
        (0..count).map(of_row).collect()
    };
    let ranks = vec![[8, 8, 8], [1, 0, 17], [0, 256, 3]];
    let mut cases = Vec::new();
    for base in [DType::Q4_1, DType::Q6K, DType::F32, DType::BF16] {
        for adapters in [mixed(1), mixed(9), mixed(40), blocks(300)] {
            cases.push(Case {
                base,
                in_features: 512,
                out_features: [48, 33, 200],
                ranks: ranks.clone(),
                adapters,
            });
        }
    }
    // No whole blocks of codes.
    cases.push(Case {
        base: DType::F32,
        in_features: 37,
        out_features: [5, 16, 1],
        ranks,
        adapters: mixed(20),
    });
    cases
}

#[test]
fn adapters_add_their_product_to_their_rows_alone() {
    for case in cases() {
        let setup = case.setup(3, 0.1);
        let count = case.adapters.len();
        let plain = run(&setup, 0..count, &vec![None; count]);
        let adapted = run(&setup, 0..count, &case.adapters);
        let tolerance = match case.reads() {
            Reads::Codes => 0.02,
            Reads::Values => 1e-3,
        };
        for (row, adapter) in case.adapters.iter().enumerate() {
            for matrix in 0..3 {
                let width = case.out_features[matrix];
                let range = row * width..(row + 1) * width;
                let (with, without) = (&adapted[matrix][range.clone()], &plain[matrix][range]);
                let part = adapter.and_then(|a| setup.plain[a][matrix].as_ref());
                let Some(part) = part else {
                    assert_eq!(with, without, "row {row} has no adapter");
                    continue;
                };
                let x = &setup.x[row * case.in_features..][..case.in_features];
                let expected = exact(part, x);
                let error = with.iter().zip(without).zip(&expected);
                let error = error.map(|((a, b), c)| f64::from(*a) - f64::from(*b) - c);
                let error = norm(&error.collect::<Vec<_>>()) / typical(part, x);
                assert!(error < tolerance, "{:?} row {row}: {error}", case.base);
            }
        }
    }
}

/// Base weights of zero, so that nothing is rounded away.
fn alone(scale: f32, reads: Reads) -> f64 {
    const WIDTH: usize = 256;
    const RANK: usize = 8;
    let pool = ThreadPool::eager(2);
    let mut random = Random(3);
    let scaled = |values: Vec<f32>| -> Vec<f32> { values.iter().map(|v| v * scale).collect() };
    let part = Plain {
        rank: RANK,
        down: scaled(random.values(RANK * WIDTH)),
        up: scaled(random.values(WIDTH * RANK)),
    };
    let factors = Factors {
        rank: RANK,
        down: &part.down,
        up: &part.up,
    };
    let packed = LowRank::pack(&pool, &[Some(factors)], WIDTH, reads).unwrap();
    let zeros = vec![0; DType::Q8_0.byte_count(WIDTH * WIDTH).unwrap()];
    let base = PackedMatrix::pack(&pool, DType::Q8_0, &zeros, WIDTH, WIDTH).unwrap();
    let values = random.values(WIDTH);
    let mut x = Activations::with_capacity(1, WIDTH, true);
    x.load(&pool, &values, 1, WIDTH);
    let mut out = vec![f32::NAN; WIDTH];
    let product = Product {
        weights: &base,
        bias: None,
        out: &mut out,
        accumulate: false,
    };
    let additions = [Addition {
        rows: &[0],
        factors: &packed,
    }];
    let mut scratch = LowRankScratch::default();
    matmul_adapted(&pool, &x, [product], &additions, &mut scratch);
    let expected = exact(&part, &values);
    let error = out.iter().zip(&expected).map(|(a, b)| f64::from(*a) - b);
    norm(&error.collect::<Vec<_>>()) / typical(&part, &values)
}

#[test]
fn small_and_large_weights_keep_their_digits() {
    for (reads, tolerance) in [(Reads::Codes, 0.012), (Reads::Values, 5e-4)] {
        for scale in [1e-12, 1e-6, 1e-3, 1.0, 6e4] {
            let error = alone(scale, reads);
            assert!(error < tolerance, "{reads:?} at {scale}: {error}");
        }
        // An adapter before its training: B is zero.
        let zero = alone(0.0, reads);
        assert!(zero.is_nan(), "0 / 0, not {zero}");
    }
}

#[test]
fn a_row_gets_the_same_bits_alone_and_with_any_number_of_threads() {
    for case in cases() {
        let setup = case.setup(3, 0.1);
        let single = case.setup(1, 0.1);
        let count = case.adapters.len();
        let all = run(&setup, 0..count, &case.adapters);
        assert_eq!(all, run(&single, 0..count, &case.adapters));
        for row in (0..count).step_by(5) {
            let adapters = &case.adapters[row..row + 1];
            let alone = run(&setup, row..row + 1, adapters);
            for matrix in 0..3 {
                let width = case.out_features[matrix];
                let of_all = &all[matrix][row * width..(row + 1) * width];
                assert_eq!(alone[matrix], of_all, "{:?} row {row}", case.base);
            }
        }
    }
}

/// The gated product with adapters equals the gate over the adapted products.
#[test]
fn adapted_gates_equal_gates_of_adapted_products() {
    for (base, in_features, width) in [
        (DType::Q4K, 256, 96),
        (DType::Q8_0, 64, 32),
        (DType::F32, 40, 20),
    ] {
        let case = Case {
            base,
            in_features,
            out_features: [width, width, width],
            ranks: vec![[8, 0, 0], [3, 20, 0]],
            adapters: (0..70)
                .map(|row| [None, Some(0), Some(1)][row / 3 % 3])
                .collect(),
        };
        let setup = case.setup(2, 0.3);
        let count = case.adapters.len();
        let [gate, up, _] = run(&setup, 0..count, &case.adapters);
        // `run` adds to rows of 0.5.
        let expected = gate.iter().zip(&up).map(|(gate, up)| {
            let (gate, up) = (gate - 0.5, up - 0.5);
            gate / (1.0 + (-gate).exp()) * up
        });
        let mut x = Activations::with_capacity(count, in_features, true);
        x.load(&setup.pool, &setup.x, count, in_features);
        let users = [0, 1].map(|adapter| -> Vec<usize> {
            let is_user = |row: &usize| case.adapters[*row] == Some(adapter);
            (0..count).filter(is_user).collect()
        });
        // Of the three matrices the first two.
        let packed: Vec<LowRank> = setup
            .plain
            .iter()
            .map(|parts| {
                let parts = parts[..2].iter().map(|part| {
                    part.as_ref().map(|part| Factors {
                        rank: part.rank,
                        down: &part.down,
                        up: &part.up,
                    })
                });
                let parts: Vec<_> = parts.collect();
                LowRank::pack(&setup.pool, &parts, in_features, case.reads()).unwrap()
            })
            .collect();
        let additions = users.iter().zip(&packed);
        let additions: Vec<_> = additions
            .map(|(rows, factors)| Addition { rows, factors })
            .collect();
        let mut out = Activations::with_capacity(count, width, true);
        let weights = [&setup.weights[0], &setup.weights[1]];
        let mut scratch = LowRankScratch::default();
        let buffers = (&additions[..], &mut scratch);
        glu_adapted(&setup.pool, &x, weights, Glu::Silu, &mut out, buffers);
        // Read back by the identity.
        let identity: Vec<u8> = (0..width * width)
            .flat_map(|at| f32::from(u8::from(at % (width + 1) == 0)).to_le_bytes())
            .collect();
        let identity = PackedMatrix::pack(&setup.pool, DType::F32, &identity, width, width);
        let mut actual = vec![0.0; count * width];
        matmul(&setup.pool, &out, &identity.unwrap(), None, &mut actual);
        for (index, (a, b)) in actual.iter().zip(expected).enumerate() {
            let bound = 1e-4 * (1.0 + b.abs());
            assert!((a - b).abs() <= bound, "{base:?} {index}: {a}, not {b}");
        }
    }
}

#[test]
fn every_instruction_set_passes_these_tests() {
    common::with_other_instruction_sets();
}
