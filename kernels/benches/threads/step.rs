//! A decode step of smollm2-135m at batch 1: its sections with weights of the model's shapes and
//! types, each layer's its own, so that caches see what they see in the model.

use std::time::{Duration, Instant};

use ponder_kernels::cost::{self, Nanoseconds};
use ponder_kernels::*;

const NUM_LAYERS: usize = 30;
const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const NUM_HEADS: usize = 9;
const NUM_KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const VOCAB: usize = 49_152;
/// Tokens of the context: `ponder bench engine`'s prompt and half of its answer.
const CONTEXT: usize = 152;
const BLOCK_SIZE: usize = 16;
const EPS: f32 = 1e-5;

/// The sections of a step, in the order of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    Norm,
    Qkv,
    Rotate,
    Attention,
    Quantise,
    Output,
    GateUp,
    Down,
    Head,
}

impl Section {
    pub const ALL: [Self; 9] = [
        Self::Norm,
        Self::Qkv,
        Self::Rotate,
        Self::Attention,
        Self::Quantise,
        Self::Output,
        Self::GateUp,
        Self::Down,
        Self::Head,
    ];

    /// Times that it comes in a step.
    pub fn num_calls(self) -> usize {
        match self {
            Self::Norm => 2 * NUM_LAYERS + 1,
            Self::Head => 1,
            _ => NUM_LAYERS,
        }
    }
}

struct Layer {
    q: PackedMatrix,
    k: PackedMatrix,
    v: PackedMatrix,
    output: PackedMatrix,
    gate: PackedMatrix,
    up: PackedMatrix,
    down: PackedMatrix,
}

/// Weights and buffers.
pub struct Step {
    layers: Vec<Layer>,
    head: PackedMatrix,
    norm: Vec<f32>,
    cache: KvCache,
    rope: RopeTable,
    plan: AttentionPlan,
    activations: Activations,
    gated: Activations,
    x: Vec<f32>,
    qkv: [Vec<f32>; 3],
    attended: Vec<f32>,
    logits: Vec<f32>,
}

/// Bytes that make blocks with small scales.
fn matrix(pool: &ThreadPool, dtype: DType, outputs: usize, inputs: usize) -> PackedMatrix {
    let len = dtype.byte_count(outputs * inputs).expect("whole blocks");
    let byte = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x1f;
    let bytes: Vec<u8> = (0..len).map(byte).collect();
    PackedMatrix::pack(pool, dtype, &bytes, outputs, inputs).expect("it packs")
}

impl Step {
    pub fn new(pool: &ThreadPool) -> Self {
        let q4 = |outputs, inputs| matrix(pool, DType::Q4_1, outputs, inputs);
        let (q_width, kv_width) = (NUM_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM);
        let layer = |_| Layer {
            q: q4(q_width, HIDDEN),
            k: q4(kv_width, HIDDEN),
            v: q4(kv_width, HIDDEN),
            output: q4(HIDDEN, q_width),
            gate: q4(INTERMEDIATE, HIDDEN),
            up: q4(INTERMEDIATE, HIDDEN),
            down: q4(HIDDEN, INTERMEDIATE),
        };
        let num_blocks = CONTEXT.div_ceil(BLOCK_SIZE);
        let cache = KvCache::new(NUM_LAYERS, num_blocks, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM);
        Self {
            layers: (0..NUM_LAYERS).map(layer).collect(),
            head: matrix(pool, DType::Q8_0, VOCAB, HIDDEN),
            norm: vec![1.0; HIDDEN],
            cache: cache.expect("memory"),
            rope: RopeTable::new(HEAD_DIM, CONTEXT, 1e5, None, 1.0),
            plan: AttentionPlan::default(),
            activations: Activations::with_capacity(1, HIDDEN, false),
            gated: Activations::with_capacity(1, INTERMEDIATE, false),
            x: vec![0.1; HIDDEN],
            qkv: [q_width, kv_width, kv_width].map(|width| vec![0.0; width]),
            attended: vec![0.0; q_width],
            logits: vec![0.0; VOCAB],
        }
    }

    /// Runs the step and adds each section's time to `times`, in the order of [`Section::ALL`].
    pub fn run(&mut self, pool: &ThreadPool, times: &mut [Duration; Section::ALL.len()]) {
        self.x.fill(0.1);
        let block_table: Vec<u32> = (0..CONTEXT.div_ceil(BLOCK_SIZE) as u32).collect();
        let sequences = [AttentionRows {
            block_table: &block_table,
            num_rows: 1,
            context_len: CONTEXT,
            leaves: &[],
        }];
        self.plan.plan(&sequences, NUM_KV_HEADS, pool.num_threads());
        let mut clock = Instant::now();
        let mut mark = |section: Section| {
            let now = Instant::now();
            times[section as usize] += now - clock;
            clock = now;
        };
        for index in 0..self.layers.len() {
            self.attend(pool, index, &sequences, &mut mark);
            self.feed_forward(pool, index, &mut mark);
        }
        self.activations.load_normed(pool, &self.x, &self.norm, EPS);
        mark(Section::Norm);
        matmul(pool, &self.activations, &self.head, None, &mut self.logits);
        mark(Section::Head);
    }

    /// A section's own estimate of its work, and the items that threads share; none where one row
    /// leaves nothing to share.
    pub fn work(&self, section: Section) -> Option<(Nanoseconds, usize)> {
        let layer = &self.layers[0];
        let matrices = match section {
            Section::Norm | Section::Rotate | Section::Quantise => return None,
            Section::Attention => {
                let work = cost::attention(CONTEXT, NUM_HEADS, HEAD_DIM);
                return Some((work, NUM_KV_HEADS));
            }
            Section::Qkv => vec![&layer.q, &layer.k, &layer.v],
            Section::Output => vec![&layer.output],
            Section::GateUp => vec![&layer.gate, &layer.up],
            Section::Down => vec![&layer.down],
            Section::Head => vec![&self.head],
        };
        let outputs: usize = matrices.iter().map(|matrix| matrix.out_features()).sum();
        // Blocks of 32 of gate and of up are one item.
        let outputs_per_item = if section == Section::GateUp { 64 } else { 16 };
        let work = matrices.iter().map(|matrix| cost::product(1, matrix, 1.0));
        Some((work.sum(), outputs / outputs_per_item))
    }

    fn attend(
        &mut self,
        pool: &ThreadPool,
        index: usize,
        sequences: &[AttentionRows<'_>],
        mark: &mut impl FnMut(Section),
    ) {
        let layer = &self.layers[index];
        self.activations.load_normed(pool, &self.x, &self.norm, EPS);
        mark(Section::Norm);
        let [q, k, v] = &mut self.qkv;
        let products = [
            product(&layer.q, q, false),
            product(&layer.k, k, false),
            product(&layer.v, v, false),
        ];
        matmul_many(pool, &self.activations, products);
        mark(Section::Qkv);
        let position = CONTEXT as u32 - 1;
        let rotation = Rotation {
            table: &self.rope,
            kind: RopeKind::Norm,
            q_norm: None,
            k_norm: None,
            eps: EPS,
            positions: &[position],
        };
        rotate_and_cache(
            pool,
            &rotation,
            &mut self.cache,
            index,
            &[position],
            q,
            k,
            v,
        );
        mark(Section::Rotate);
        let params = AttentionParams {
            num_heads: NUM_HEADS,
            num_kv_heads: NUM_KV_HEADS,
            head_dim: HEAD_DIM,
            scale: 0.125,
            sliding_window: None,
            softcap: None,
        };
        let (cache, attended) = (&self.cache, &mut self.attended);
        paged_attention(
            pool, &params, cache, index, &self.plan, q, sequences, attended,
        );
        mark(Section::Attention);
        self.activations.load(pool, &self.attended, 1, HIDDEN);
        mark(Section::Quantise);
        let residual = product(&layer.output, &mut self.x, true);
        matmul_many(pool, &self.activations, [residual]);
        mark(Section::Output);
    }

    fn feed_forward(&mut self, pool: &ThreadPool, index: usize, mark: &mut impl FnMut(Section)) {
        let layer = &self.layers[index];
        self.activations.load_normed(pool, &self.x, &self.norm, EPS);
        mark(Section::Norm);
        let (input, gated) = (&self.activations, &mut self.gated);
        matmul_glu(pool, input, &layer.gate, &layer.up, Glu::Silu, gated);
        mark(Section::GateUp);
        matmul_many(pool, &self.gated, [product(&layer.down, &mut self.x, true)]);
        mark(Section::Down);
    }
}

fn product<'a>(weights: &'a PackedMatrix, out: &'a mut [f32], accumulate: bool) -> Product<'a> {
    Product {
        weights,
        bias: None,
        out,
        accumulate,
    }
}
