//! What a step of test-time adaptation takes, by operator: the pass over a window, the head's loss
//! and the way back, of a small mixture of experts in Q8_0. Weights come from memory, as in a
//! model.
//!
//!     cargo bench -p ponder-kernels --bench gradients           # 256 rows
//!     cargo bench -p ponder-kernels --bench gradients -- 64     # so many rows

use std::time::Instant;

use ponder_kernels::cross_entropy::Head;
use ponder_kernels::gradients::{
    AttentionGradient, AttentionGradients, add_norm_gradient, kept_glu, weighted_glu_gradient,
};
use ponder_kernels::*;

const HIDDEN: usize = 896;
const KV: usize = 128;
const HEADS: usize = 14;
const HEAD_DIM: usize = 64;
const EXPERTS: usize = 28;
const CHOSEN: usize = 16;
const WIDTH: usize = 128;
const SHARED: usize = 1280;
const VOCABULARY: usize = 151_936;
/// Layers with weights of their own; figures are of one.
const LAYERS: usize = 4;
/// Tokens less likely have no part in the gradient.
const MIN_PROBABILITY: f32 = 1e-4;
/// Runs that are timed; the fastest counts.
const RUNS: usize = 9;

struct Layer {
    qkv: [PackedMatrix; 3],
    output: PackedMatrix,
    experts: [ExpertMatrix; 3],
    shared: [PackedMatrix; 3],
}

/// Q8_0 blocks of small scales.
fn bytes(count: usize) -> Vec<u8> {
    let byte = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8;
    let len = DType::Q8_0.byte_count(count).expect("whole blocks");
    let scale = |i: usize| [0x00, 0x18][i];
    let place = |i: usize| i % DType::Q8_0.block_bytes();
    (0..len)
        .map(|i| {
            if place(i) < 2 {
                scale(place(i))
            } else {
                byte(i)
            }
        })
        .collect()
}

fn matrix(pool: &ThreadPool, out: usize, inputs: usize) -> PackedMatrix {
    PackedMatrix::pack(pool, DType::Q8_0, &bytes(out * inputs), out, inputs).expect("it packs")
}

fn experts(pool: &ThreadPool, out: usize, inputs: usize) -> ExpertMatrix {
    let bytes = bytes(EXPERTS * out * inputs);
    ExpertMatrix::pack(pool, DType::Q8_0, &bytes, EXPERTS, out, inputs).expect("it packs")
}

fn layer(pool: &ThreadPool) -> Layer {
    Layer {
        qkv: [HIDDEN, KV, KV].map(|out| matrix(pool, out, HIDDEN)),
        output: matrix(pool, HIDDEN, HIDDEN),
        experts: [(WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH)]
            .map(|(out, inputs)| experts(pool, out, inputs)),
        shared: [(SHARED, HIDDEN), (SHARED, HIDDEN), (HIDDEN, SHARED)]
            .map(|(out, inputs)| matrix(pool, out, inputs)),
    }
}

fn values(count: usize, salt: usize) -> Vec<f32> {
    let value = |i: usize| ((i + salt).wrapping_mul(2_654_435_761) >> 7) % 1021;
    (0..count).map(|i| value(i) as f32 / 510.0 - 1.0).collect()
}

fn inputs(pool: &ThreadPool, rows: usize, width: usize) -> Activations {
    let mut activations = Activations::with_capacity(rows, width, false);
    activations.load(pool, &values(rows * width, 3), rows, width);
    activations
}

/// Times `call` for each layer and prints what one takes, and its rate where it multiplies.
fn time(name: &str, macs: usize, count: usize, mut call: impl FnMut(usize)) {
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        let started = Instant::now();
        (0..count).for_each(&mut call);
        best = best.min(started.elapsed().as_secs_f64() / count as f64);
    }
    let rate = match macs {
        0 => String::new(),
        _ => format!("{:8.0} GMAC/s", macs as f64 / best / 1e9),
    };
    println!("  {name:34} {:8.2} ms {rate}", best * 1e3);
}

struct Window {
    rows: usize,
    routes: Routes,
    normed: Activations,
    sorted: Activations,
}

impl Window {
    fn new(pool: &ThreadPool, rows: usize) -> Self {
        let gating = Gating {
            num_experts_per_tok: CHOSEN,
            scoring: Scoring::Softmax,
            normalise: false,
            scale: 1.0,
            groups: None,
        };
        let mut routes = Routes::default();
        routes.plan(pool, &gating, &values(rows * EXPERTS, 1), EXPERTS, None);
        let normed = inputs(pool, rows, HIDDEN);
        let mut sorted = Activations::with_capacity(rows * CHOSEN, HIDDEN, false);
        sorted.gather(pool, &normed, routes.rows());
        Self {
            rows,
            routes,
            normed,
            sorted,
        }
    }

    fn forward(&self, pool: &ThreadPool, layers: &[Layer]) {
        let (rows, slots) = (self.rows, self.rows * CHOSEN);
        let routes = &self.routes;
        println!("forward, a layer:");
        let mut outs = [HIDDEN, KV, KV].map(|out| vec![0.0; rows * out]);
        let macs = rows * HIDDEN * (HIDDEN + 2 * KV);
        time("q, k, v", macs, LAYERS, |index| {
            let mut outs = outs.iter_mut();
            let products = layers[index].qkv.each_ref().map(|weights| Product {
                weights,
                bias: None,
                out: outs.next().expect("three"),
                accumulate: false,
            });
            matmul_many(pool, &self.normed, products);
        });
        let mut results = vec![0.0; slots * HIDDEN];
        let macs = slots * HIDDEN * WIDTH;
        let mut gated = Activations::with_capacity(slots, SHARED, false);
        time("experts: gate, up", 2 * macs, LAYERS, |index| {
            let [gate, up, _] = &layers[index].experts;
            experts_glu(pool, &self.sorted, routes, gate, up, Glu::Silu, &mut gated);
        });
        let mut kept = [vec![0.0; slots * WIDTH], vec![0.0; slots * WIDTH]];
        let mut room = vec![0.0; slots * WIDTH];
        time("experts: gate, up, kept", 2 * macs, LAYERS, |index| {
            let [gate, up, _] = &layers[index].experts;
            let [kept_gate, kept_up] = &mut kept;
            experts_matmul(pool, &self.sorted, routes, gate, kept_gate);
            experts_matmul(pool, &self.sorted, routes, up, kept_up);
            kept_glu(pool, Glu::Silu, kept_gate, kept_up, &mut room);
            gated.load(pool, &room, slots, WIDTH);
        });
        time("experts: down", macs, LAYERS, |index| {
            let down = &layers[index].experts[2];
            experts_matmul(pool, &gated, routes, down, &mut results);
        });
        let mut sorted = Activations::with_capacity(slots, HIDDEN, false);
        time("experts: gather, combine", 0, LAYERS, |_| {
            sorted.gather(pool, &self.normed, routes.rows());
            routes.combine(pool, &results, 1.0, &mut outs[0]);
        });
        let macs = rows * HIDDEN * SHARED;
        time("shared: gate, up", 2 * macs, LAYERS, |index| {
            let [gate, up, _] = &layers[index].shared;
            matmul_glu(pool, &self.normed, gate, up, Glu::Silu, &mut gated);
        });
        time("shared: down", macs, LAYERS, |index| {
            matmul(pool, &gated, &layers[index].shared[2], None, &mut outs[0]);
        });
    }

    fn backward(&self, pool: &ThreadPool, layers: &[Layer]) {
        let (rows, slots) = (self.rows, self.rows * CHOSEN);
        let routes = &self.routes;
        println!("backward, a layer:");
        let mut room = GradientRows::default();
        let by_result = values(rows * HIDDEN, 5);
        let mut by_gated = vec![0.0; slots * WIDTH];
        let macs = slots * HIDDEN * WIDTH;
        time("experts: down", macs, LAYERS, |index| {
            let down = &layers[index].experts[2];
            let out = &mut by_gated;
            experts_transposed_from_rows(pool, &by_result, routes, down, &mut room, out);
        });
        let mut parts = [1, 2].map(|salt| values(slots * WIDTH, salt));
        let mut by_normed = vec![0.0; rows * HIDDEN];
        time("experts: gate, up", 2 * macs, LAYERS, |index| {
            let [gate, up, _] = &layers[index].experts;
            let x = parts.each_ref().map(|part| &part[..]);
            let out = &mut by_normed;
            experts_transposed_to_rows(pool, x, routes, [gate, up], &mut room, out);
        });
        let (weights, mut along) = (vec![0.5; slots], vec![0.0; slots]);
        time("experts: units", 0, 1, |_| {
            let [gate, up] = &mut parts;
            let parts = [&mut gate[..], &mut up[..], &mut by_gated[..]];
            weighted_glu_gradient(pool, Glu::Silu, &weights, parts, &mut along);
        });
        let mut by_gated = vec![0.0; rows * SHARED];
        let macs = rows * HIDDEN * SHARED;
        time("shared: down", macs, LAYERS, |index| {
            let down = &layers[index].shared[2];
            matmul_transposed(pool, [&by_result], [down], &mut room, &mut by_gated);
        });
        time("shared: gate, up", 2 * macs, LAYERS, |index| {
            let [gate, up, _] = &layers[index].shared;
            let x = [&by_gated[..], &by_gated[..]];
            matmul_transposed(pool, x, [gate, up], &mut room, &mut by_normed);
        });
        let macs = rows * HIDDEN * HIDDEN;
        time("attention: output", macs, LAYERS, |index| {
            let output = &layers[index].output;
            matmul_transposed(pool, [&by_result], [output], &mut room, &mut by_normed);
        });
        let by_kv = values(rows * KV, 7);
        let macs = rows * HIDDEN * (HIDDEN + 2 * KV);
        time("attention: q, k, v", macs, LAYERS, |index| {
            let weights = layers[index].qkv.each_ref();
            let x = [&by_result[..], &by_kv, &by_kv];
            matmul_transposed(pool, x, weights, &mut room, &mut by_normed);
        });
        self.attention(pool, &by_result);
        let weight = vec![1.0; HIDDEN];
        let mut gradient = by_result.clone();
        time("two norms", 0, 2, |_| {
            add_norm_gradient(pool, &by_result, &weight, 1e-6, &by_normed, &mut gradient);
        });
    }

    fn attention(&self, pool: &ThreadPool, by_result: &[f32]) {
        let rows = self.rows;
        let params = AttentionParams {
            num_heads: HEADS,
            num_kv_heads: KV / HEAD_DIM,
            head_dim: HEAD_DIM,
            scale: 0.125,
            sliding_window: None,
            softcap: None,
        };
        let blocks = rows.div_ceil(16);
        let mut cache = KvCache::new(1, blocks, 16, params.num_kv_heads, HEAD_DIM).expect("memory");
        let slots: Vec<u32> = (0..rows as u32).collect();
        let kv = [11, 13].map(|salt| values(rows * KV, salt));
        cache.write(pool, 0, &slots, &kv[0], &kv[1]);
        let queries = values(rows * HIDDEN, 17);
        let input = AttentionGradient {
            params: &params,
            queries: &queries,
            by_result,
            slots: &slots,
        };
        let mut gradients = AttentionGradients::default();
        time("attention itself", 0, LAYERS, |_| {
            gradients.run(pool, &input, &cache, 0);
        });
    }

    fn head(&self, pool: &ThreadPool) {
        let rows = self.rows;
        println!("head:");
        let weights = matrix(pool, VOCABULARY, HIDDEN);
        let head = Head {
            weights: &weights,
            divisor: 1.0,
            softcap: None,
        };
        let targets: Vec<u32> = (0..rows).map(|i| (i * 577 % VOCABULARY) as u32).collect();
        let macs = rows * HIDDEN * VOCABULARY;
        let mut logits = vec![0.0; rows * VOCABULARY];
        time("logits alone", macs, 1, |_| {
            matmul(pool, &self.normed, &weights, None, &mut logits);
        });
        time("loss", macs, 1, |_| {
            head.cross_entropy(pool, &self.normed, &targets, None);
        });
        let mut errors = Vec::new();
        time("loss and errors", macs, 1, |_| {
            let least = Some(MIN_PROBABILITY);
            errors = head
                .cross_entropy(pool, &self.normed, &targets, least)
                .errors;
        });
        println!("  {} errors", errors.len());
        let mut gradient = vec![0.0; rows * HIDDEN];
        time("gradient", errors.len() * HIDDEN, 1, |_| {
            head.add_gradient(pool, &errors, &mut gradient);
        });
    }
}

fn main() {
    let rows = std::env::args().find_map(|arg| arg.parse().ok());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = ThreadPool::new(threads);
    let machine = Roofline::measure(&pool);
    println!("{threads} threads, {}: {machine:?}", isa());
    let layers: Vec<Layer> = (0..LAYERS).map(|_| layer(&pool)).collect();
    let window = Window::new(&pool, rows.unwrap_or(256));
    println!("{} rows", window.rows);
    window.forward(&pool, &layers);
    window.backward(&pool, &layers);
    window.head(&pool);
}
