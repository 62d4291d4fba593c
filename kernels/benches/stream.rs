//! A decode step's products as a model does them: every layer's weights come from memory, not from
//! a cache. GB/s of each operator beside the rate at which the machine reads, in the same process.
//!
//!     cargo bench -p ponder-kernels --bench stream            # qwen2.5-coder-1.5b's shapes, 1 row
//!     cargo bench -p ponder-kernels --bench stream -- 8 16    # so many rows

use std::time::Instant;

use ponder_kernels::*;

const HIDDEN: usize = 1536;
const KV: usize = 256;
const WIDTH: usize = 8960;
const LAYERS: usize = 28;
const VOCABULARY: usize = 151_936;
/// Steps that are timed; the fastest counts.
const STEPS: usize = 9;

struct Layer {
    qkv: [PackedMatrix; 3],
    output: PackedMatrix,
    gate: PackedMatrix,
    up: PackedMatrix,
    down: PackedMatrix,
}

fn matrix(pool: &ThreadPool, dtype: DType, out: usize, inputs: usize) -> PackedMatrix {
    let byte = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x1f;
    let count = dtype.byte_count(out * inputs).expect("whole blocks");
    let bytes: Vec<u8> = (0..count).map(byte).collect();
    PackedMatrix::pack(pool, dtype, &bytes, out, inputs).expect("it packs")
}

/// As Q4_K_M mixes types: every other value and down matrix has six bits.
fn layer(pool: &ThreadPool, index: usize) -> Layer {
    let mixed = [DType::Q4K, DType::Q6K][index % 2];
    Layer {
        qkv: [
            matrix(pool, DType::Q4K, HIDDEN, HIDDEN),
            matrix(pool, DType::Q4K, KV, HIDDEN),
            matrix(pool, mixed, KV, HIDDEN),
        ],
        output: matrix(pool, DType::Q4K, HIDDEN, HIDDEN),
        gate: matrix(pool, DType::Q4K, WIDTH, HIDDEN),
        up: matrix(pool, DType::Q4K, WIDTH, HIDDEN),
        down: matrix(pool, mixed, HIDDEN, WIDTH),
    }
}

fn inputs(pool: &ThreadPool, rows: usize, width: usize) -> Activations {
    let x: Vec<f32> = (0..rows * width)
        .map(|i| (i % 251) as f32 / 125.0 - 1.0)
        .collect();
    let mut activations = Activations::with_capacity(rows, width, false);
    activations.load(pool, &x, rows, width);
    activations
}

const NAMES: [&str; 5] = ["qkv", "output", "gate, up", "down", "head"];

/// Seconds of each operator over all layers.
fn step(pool: &ThreadPool, layers: &[Layer], head: &PackedMatrix, rows: usize) -> [f64; 5] {
    let (narrow, wide) = (inputs(pool, rows, HIDDEN), inputs(pool, rows, WIDTH));
    let mut out = vec![vec![0.0; rows * HIDDEN]; 3];
    let mut activated = Activations::with_capacity(rows, WIDTH, false);
    let mut logits = vec![0.0; rows * VOCABULARY];
    let mut best = [f64::INFINITY; 5];
    for _ in 0..STEPS {
        let mut spent = [0.0; 5];
        let mut time = |operator: usize, call: &mut dyn FnMut()| {
            let started = Instant::now();
            call();
            spent[operator] += started.elapsed().as_secs_f64();
        };
        for layer in layers {
            time(0, &mut || {
                let mut outs = out.iter_mut();
                let products = layer.qkv.each_ref().map(|weights| Product {
                    weights,
                    bias: None,
                    out: &mut outs.next().expect("three")[..rows * weights.out_features()],
                    accumulate: false,
                });
                matmul_many(pool, &narrow, products);
            });
            time(1, &mut || {
                matmul(pool, &narrow, &layer.output, None, &mut out[0])
            });
            time(2, &mut || {
                let (gate, up) = (&layer.gate, &layer.up);
                matmul_glu(pool, &narrow, gate, up, Glu::Silu, &mut activated);
            });
            time(3, &mut || {
                matmul(pool, &wide, &layer.down, None, &mut out[0])
            });
        }
        time(4, &mut || matmul(pool, &narrow, head, None, &mut logits));
        for (best, spent) in best.iter_mut().zip(spent) {
            *best = best.min(spent);
        }
    }
    best
}

fn main() {
    let rows: Vec<usize> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    let rows = if rows.is_empty() { vec![1] } else { rows };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = ThreadPool::new(threads);
    let layers: Vec<Layer> = (0..LAYERS).map(|index| layer(&pool, index)).collect();
    let head = matrix(&pool, DType::Q6K, VOCABULARY, HIDDEN);
    let bytes = |of: &dyn Fn(&Layer) -> usize| layers.iter().map(of).sum::<usize>();
    let bytes = [
        bytes(&|layer| layer.qkv.iter().map(PackedMatrix::nbytes).sum()),
        bytes(&|layer| layer.output.nbytes()),
        bytes(&|layer| layer.gate.nbytes() + layer.up.nbytes()),
        bytes(&|layer| layer.down.nbytes()),
        head.nbytes(),
    ];
    let machine = Roofline::measure(&pool);
    println!("{threads} threads, {}: {machine:?}", isa());
    for rows in rows {
        let seconds = step(&pool, &layers, &head, rows);
        println!("{rows} rows:");
        let total = (bytes.iter().sum::<usize>(), seconds.iter().sum::<f64>());
        let lines = NAMES.iter().zip(bytes.into_iter().zip(seconds));
        for (name, (bytes, seconds)) in lines.chain([(&"step", total)]) {
            let gb_s = bytes as f64 / seconds / 1e9;
            let share = 100.0 * gb_s / machine.read_gb_s;
            println!(
                "  {name:9} {:7.2} ms {gb_s:6.1} GB/s ({share:.0} %)",
                seconds * 1e3
            );
        }
    }
}
