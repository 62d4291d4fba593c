//! The passes of an encoder's layer against plain loops in f64.

use ponder_kernels::dense::{dense, dense_add_norm, feed_forward, layer_norm};
use ponder_kernels::{
    Activation, DenseMatrix, FeedForward, LayerNorm, SelfAttention, ThreadPool, self_attention,
};

/// Numbers in -1..1.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn matrix(out: usize, inputs: usize, seed: u64) -> (Vec<f32>, Vec<f32>, DenseMatrix) {
    let scale = (inputs as f32).sqrt().recip();
    let weights: Vec<f32> = numbers(out * inputs, seed)
        .iter()
        .map(|w| w * scale)
        .collect();
    let bias = numbers(out, seed + 1);
    let packed = DenseMatrix::pack(&weights, &bias, inputs);
    (weights, bias, packed)
}

fn product(x: &[f32], weights: &[f32], bias: &[f32], inputs: usize) -> Vec<f32> {
    let rows = x.chunks_exact(inputs);
    rows.flat_map(|row| {
        let outputs = weights.chunks_exact(inputs).zip(bias);
        outputs.map(|(weights, bias)| {
            let products = row.iter().zip(weights);
            let sum: f64 = products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            (sum + f64::from(*bias)) as f32
        })
    })
    .collect()
}

fn normed(x: &[f32], norm: &LayerNorm) -> Vec<f32> {
    let width = norm.weight.len();
    let rows = x.chunks_exact(width);
    rows.flat_map(|row| {
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
        let squares = row.iter().map(|x| (f64::from(*x) - mean).powi(2));
        let scale = (squares.sum::<f64>() / width as f64 + f64::from(norm.eps)).sqrt();
        (0..width).map(move |i| {
            let x = (f64::from(row[i]) - mean) / scale;
            (x * f64::from(norm.weight[i]) + f64::from(norm.bias[i])) as f32
        })
    })
    .collect()
}

fn norm(width: usize) -> LayerNorm {
    LayerNorm {
        weight: numbers(width, 91),
        bias: numbers(width, 92),
        eps: 1e-12,
    }
}

fn assert_close(actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len());
    for (at, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let distance = (actual - expected).abs();
        assert!(
            distance <= tolerance * (1.0 + expected.abs()),
            "{at}: {actual} {expected}"
        );
    }
}

/// Rows by inputs by outputs: whole strips and cut ones.
const SHAPES: [(usize, usize, usize); 5] = [
    (1, 32, 32),
    (7, 24, 5),
    (65, 48, 70),
    (130, 16, 64),
    (8, 7, 33),
];

#[test]
fn products_and_norms_are_right() {
    for pool in [ThreadPool::new(1), ThreadPool::eager(3)] {
        for (rows, inputs, outputs) in SHAPES {
            let x = numbers(rows * inputs, 5);
            let (weights, bias, packed) = matrix(outputs, inputs, 6);
            assert_eq!(
                (packed.in_features(), packed.out_features()),
                (inputs, outputs)
            );
            let expected = product(&x, &weights, &bias, inputs);
            let mut out = vec![f32::NAN; rows * outputs];
            dense(&pool, &x, &packed, &mut out);
            assert_close(&out, &expected, 1e-5);
            let norm = norm(outputs);
            let mut residual = numbers(rows * outputs, 8);
            let sums: Vec<f32> = residual.iter().zip(&expected).map(|(a, b)| a + b).collect();
            dense_add_norm(&pool, &x, &packed, &norm, &mut residual);
            assert_close(&residual, &normed(&sums, &norm), 1e-4);
            let mut alone = sums.clone();
            layer_norm(&pool, &norm, &mut alone);
            assert_close(&alone, &normed(&sums, &norm), 1e-4);
        }
    }
}

/// The error function by its series.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        let n = f64::from(n);
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

fn activated(x: f32, activation: Activation) -> f32 {
    let x = f64::from(x);
    let y = match activation {
        Activation::Gelu => x * 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            x * 0.5 * (1.0 + u.tanh())
        }
        Activation::Relu => x.max(0.0),
    };
    y as f32
}

#[test]
fn feed_forward_is_right_with_every_activation() {
    for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
        for (rows, width, inner) in SHAPES {
            let x: Vec<f32> = numbers(rows * width, 3).iter().map(|x| 3.0 * x).collect();
            let (up, up_bias, packed_up) = matrix(inner, width, 11);
            let (down, down_bias, packed_down) = matrix(width, inner, 13);
            let hidden: Vec<f32> = product(&x, &up, &up_bias, width)
                .iter()
                .map(|x| activated(*x, activation))
                .collect();
            let result = product(&hidden, &down, &down_bias, inner);
            let sums: Vec<f32> = x.iter().zip(&result).map(|(a, b)| a + b).collect();
            let norm = norm(width);
            let weights = FeedForward {
                up: packed_up,
                activation,
                down: packed_down,
            };
            let mut out = x;
            feed_forward(&ThreadPool::eager(2), &weights, &norm, &mut out);
            assert_close(&out, &normed(&sums, &norm), 2e-4);
        }
    }
}

#[test]
fn tokens_see_their_own_sequence_and_nothing_else() {
    for (num_heads, head_dim) in [(2, 32), (3, 7), (1, 64), (4, 16)] {
        let width = num_heads * head_dim;
        let ends = [1, 1, 40, 105];
        let qkv = numbers(105 * 3 * width, 17);
        let input = SelfAttention {
            qkv: &qkv,
            ends: &ends,
            num_heads,
            head_dim,
        };
        let mut out = vec![f32::NAN; 105 * width];
        self_attention(&ThreadPool::eager(3), &input, &mut out);
        let mut start = 0;
        for end in ends {
            for row in start..end {
                for head in 0..num_heads {
                    let part = |row: usize, which: usize| {
                        &qkv[(row * 3 + which) * width + head * head_dim..][..head_dim]
                    };
                    let dot = |other: usize| -> f64 {
                        let pairs = part(row, 0).iter().zip(part(other, 1));
                        pairs.map(|(a, b)| f64::from(a * b)).sum()
                    };
                    let weigh = |other| (dot(other) / (head_dim as f64).sqrt()).exp();
                    let weights: Vec<f64> = (start..end).map(weigh).collect();
                    let total: f64 = weights.iter().sum();
                    let expected: Vec<f32> = (0..head_dim)
                        .map(|at| {
                            let seen = weights.iter().zip(start..end);
                            let sum: f64 = seen
                                .map(|(w, other)| w * f64::from(part(other, 2)[at]))
                                .sum();
                            (sum / total) as f32
                        })
                        .collect();
                    assert_close(
                        &out[row * width + head * head_dim..][..head_dim],
                        &expected,
                        1e-5,
                    );
                }
            }
            // A sequence alone has the same bits.
            let alone = SelfAttention {
                qkv: &qkv[start * 3 * width..end * 3 * width],
                ends: &[end - start],
                num_heads,
                head_dim,
            };
            let mut own = vec![0.0; (end - start) * width];
            self_attention(&ThreadPool::new(1), &alone, &mut own);
            assert_eq!(own, out[start * width..end * width]);
            start = end;
        }
    }
}

#[test]
fn rows_do_not_depend_on_their_neighbours() {
    let (_, _, up) = matrix(100, 40, 1);
    let (_, _, down) = matrix(40, 100, 2);
    let weights = FeedForward {
        up,
        activation: Activation::Gelu,
        down,
    };
    let norm = norm(40);
    let x = numbers(77 * 40, 4);
    let mut all = x.clone();
    feed_forward(&ThreadPool::eager(2), &weights, &norm, &mut all);
    for row in [0, 8, 63, 76] {
        let mut alone = x[row * 40..][..40].to_vec();
        feed_forward(&ThreadPool::new(1), &weights, &norm, &mut alone);
        assert_eq!(alone, all[row * 40..][..40]);
    }
}
