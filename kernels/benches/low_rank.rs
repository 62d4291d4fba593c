//! What an adapter adds to the products of a model's layers: their time without and with one, in
//! the same process.
//!
//!     cargo bench -p ponder-kernels --bench low_rank

use std::time::Instant;

use ponder_kernels::*;

const RANK: usize = 8;
const ROWS: [usize; 3] = [1, 16, 256];

/// Sizes of a model of the catalogue.
struct Shape {
    name: &'static str,
    dtype: DType,
    num_layers: usize,
    hidden: usize,
    inner: usize,
    kv: usize,
}

const SHAPES: [Shape; 2] = [
    Shape {
        name: "smollm2-135m",
        dtype: DType::Q4_1,
        num_layers: 30,
        hidden: 576,
        inner: 1536,
        kv: 192,
    },
    Shape {
        name: "qwen2.5-coder-0.5b",
        dtype: DType::Q5_0,
        num_layers: 24,
        hidden: 896,
        inner: 4864,
        kv: 128,
    },
];

struct Layer {
    qkv: [PackedMatrix; 3],
    output: PackedMatrix,
    gate_up: [PackedMatrix; 2],
    down: PackedMatrix,
    /// Of the four groups above.
    adapter: [LowRank; 4],
}

fn weights(pool: &ThreadPool, dtype: DType, outputs: usize, inputs: usize) -> PackedMatrix {
    let count = dtype.byte_count(outputs * inputs).expect("whole blocks");
    let byte = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x1f;
    let bytes: Vec<u8> = (0..count).map(byte).collect();
    PackedMatrix::pack(pool, dtype, &bytes, outputs, inputs).expect("it packs")
}

fn low_rank(pool: &ThreadPool, outputs: &[usize], inputs: usize) -> LowRank {
    let values = |count: usize| -> Vec<f32> {
        let value = |i: usize| (i * 7919 % 1021) as f32 / 25_000.0 - 0.02;
        (0..count).map(value).collect()
    };
    let parts = outputs
        .iter()
        .map(|out| [values(RANK * inputs), values(out * RANK)]);
    let parts: Vec<[Vec<f32>; 2]> = parts.collect();
    let factors = parts.iter().map(|[down, up]| {
        Some(Factors {
            rank: RANK,
            down,
            up,
        })
    });
    let factors: Vec<_> = factors.collect();
    LowRank::pack(pool, &factors, inputs, Reads::Codes).expect("it packs")
}

fn layer(pool: &ThreadPool, shape: &Shape) -> Layer {
    let Shape {
        dtype,
        hidden,
        inner,
        kv,
        ..
    } = *shape;
    let matrix = |outputs, inputs| weights(pool, dtype, outputs, inputs);
    Layer {
        qkv: [
            matrix(hidden, hidden),
            matrix(kv, hidden),
            matrix(kv, hidden),
        ],
        output: matrix(hidden, hidden),
        gate_up: [matrix(inner, hidden), matrix(inner, hidden)],
        down: matrix(hidden, inner),
        adapter: [
            low_rank(pool, &[hidden, kv, kv], hidden),
            low_rank(pool, &[hidden], hidden),
            low_rank(pool, &[inner, inner], hidden),
            low_rank(pool, &[hidden], inner),
        ],
    }
}

/// Buffers of a pass over the layers.
struct Pass {
    x: Activations,
    gated: Activations,
    outs: [Vec<f32>; 3],
    scratch: LowRankScratch,
}

impl Pass {
    /// The products of all layers; `users` are the rows that use the adapter.
    fn run(&mut self, pool: &ThreadPool, layers: &[Layer], users: Option<&[usize]>) {
        for layer in layers {
            let mut outs = self.outs.iter_mut();
            let qkv = layer.qkv.each_ref();
            let qkv = qkv.map(|weights| product(weights, outs.next().expect("one each")));
            let additions = |group: usize| {
                users.map(|rows| {
                    [Addition {
                        rows,
                        factors: &layer.adapter[group],
                    }]
                })
            };
            let ([gate, up], glu) = (&layer.gate_up, Glu::Silu);
            let (x, gated, scratch) = (&self.x, &mut self.gated, &mut self.scratch);
            match [0, 1, 2, 3].map(additions) {
                [Some(first), Some(second), Some(third), Some(fourth)] => {
                    matmul_adapted(pool, x, qkv, &first, scratch);
                    let output = [product(&layer.output, &mut self.outs[0])];
                    matmul_adapted(pool, x, output, &second, scratch);
                    glu_adapted(pool, x, [gate, up], glu, gated, (&third, scratch));
                    let down = [product(&layer.down, &mut self.outs[0])];
                    matmul_adapted(pool, gated, down, &fourth, scratch);
                }
                _ => {
                    matmul_many(pool, x, qkv);
                    matmul_many(pool, x, [product(&layer.output, &mut self.outs[0])]);
                    matmul_glu(pool, x, gate, up, glu, gated);
                    matmul_many(pool, gated, [product(&layer.down, &mut self.outs[0])]);
                }
            }
        }
    }
}

fn product<'a>(weights: &'a PackedMatrix, out: &'a mut [f32]) -> Product<'a> {
    Product {
        weights,
        bias: None,
        out,
        accumulate: false,
    }
}

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = ThreadPool::new(threads);
    println!("{}, {threads} threads, rank {RANK}", isa());
    for shape in &SHAPES {
        let layers: Vec<Layer> = (0..shape.num_layers).map(|_| layer(&pool, shape)).collect();
        for rows in ROWS {
            let values = (0..rows * shape.hidden).map(|i| (i % 251) as f32 / 125.0 - 1.0);
            let activations = || Activations::with_capacity(rows, shape.inner, false);
            let mut pass = Pass {
                x: activations(),
                gated: activations(),
                outs: [shape.hidden, shape.kv, shape.kv].map(|width| vec![0.0; rows * width]),
                scratch: LowRankScratch::default(),
            };
            let values: Vec<f32> = values.collect();
            pass.x.load(&pool, &values, rows, shape.hidden);
            let users: Vec<usize> = (0..rows).collect();
            let mut best = [f64::INFINITY; 2];
            for _ in 0..if rows > 64 { 4 } else { 30 } {
                for (best, users) in best.iter_mut().zip([None, Some(&users[..])]) {
                    let started = Instant::now();
                    pass.run(&pool, &layers, users);
                    *best = best.min(started.elapsed().as_secs_f64());
                }
            }
            let [plain, adapted] = best.map(|seconds| seconds * 1e3);
            println!(
                "{:>20} {rows:>4} rows: {plain:8.3} ms, with an adapter {adapted:8.3} ms, ratio {:.3}",
                shape.name,
                plain / adapted
            );
        }
    }
}
