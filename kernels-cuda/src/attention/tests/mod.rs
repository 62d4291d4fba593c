//! Attention on the emulated device, against the definition and against itself.

mod attend;
mod caches;
mod rotate;

use half::f16;

use super::*;
use crate::{Gpu, Rows};

/// A model's attention, and how it is run.
#[derive(Debug, Clone, Copy)]
struct Case {
    params: AttentionParams,
    block_size: usize,
    split_tokens: usize,
    /// Few make units large, many make them small.
    num_multiprocessors: usize,
}

fn case(num_heads: usize, num_kv_heads: usize, head_dim: usize, block_size: usize) -> Case {
    Case {
        params: AttentionParams {
            num_heads,
            num_kv_heads,
            head_dim,
            scale: 1.7 / (head_dim as f32).sqrt(),
            sliding_window: None,
            softcap: None,
        },
        block_size,
        split_tokens: 32,
        num_multiprocessors: 132,
    }
}

/// Rows of one step: sequence, tokens, and the positions of leaves among the last of them.
type StepRows<'a> = (usize, std::ops::Range<usize>, &'a [u32]);

/// Sequences with their cache.
struct World {
    gpu: Gpu,
    case: Case,
    cache: KvCache,
    rope: RopeTable,
    step: StepBuffers,
    plan: AttentionPlan,
    tables: Vec<Vec<u32>>,
    /// The name of each sequence's token: the same name, the same values.
    names: fn(usize, usize) -> u64,
    rows: [Rows; 4],
}

const NUM_POSITIONS: usize = 4096;
const LAYER: usize = 1;

impl World {
    fn new(case: Case, num_blocks: usize, tables: Vec<Vec<u32>>) -> Self {
        let gpu = Gpu::for_tests();
        let shape = KvShape {
            num_layers: 2,
            num_blocks,
            block_size: case.block_size,
            num_kv_heads: case.params.num_kv_heads,
            head_dim: case.params.head_dim,
        };
        Self {
            cache: KvCache::new(&gpu, shape).unwrap(),
            rope: RopeTable::new(&gpu, 8, NUM_POSITIONS, 10_000.0, None, 1.0, 1.0).unwrap(),
            step: StepBuffers::default(),
            plan: AttentionPlan::with_split(case.split_tokens),
            tables,
            names: |sequence, token| (sequence * 10_000 + token) as u64,
            rows: Default::default(),
            gpu,
            case,
        }
    }

    fn shape(&self) -> PlanShape {
        PlanShape {
            num_heads: self.case.params.num_heads,
            num_kv_heads: self.case.params.num_kv_heads,
            head_dim: self.case.params.head_dim,
            num_blocks: self.cache.shape().num_blocks,
            block_size: self.case.block_size,
            num_multiprocessors: self.case.num_multiprocessors,
        }
    }

    fn slot(&self, sequence: usize, token: usize) -> u32 {
        let block = self.tables[sequence][token / self.case.block_size] as usize;
        (block * self.case.block_size + token % self.case.block_size) as u32
    }

    /// Plans and uploads a step, with `spare` rows of padding; rows of q, k and v are the tokens'.
    fn prepare(&mut self, rows: &[StepRows<'_>], spare: usize) {
        let (mut positions, mut slots, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for (sequence, tokens, leaves) in rows {
            for token in tokens.clone() {
                let leaf = (token + leaves.len()).checked_sub(tokens.end);
                positions.push(leaf.map_or(token as u32, |leaf| leaves[leaf]));
                slots.push(self.slot(*sequence, token));
                names.push((self.names)(*sequence, token));
            }
        }
        let sequences: Vec<AttentionRows<'_>> = rows
            .iter()
            .map(|(sequence, tokens, leaves)| AttentionRows {
                block_table: &self.tables[*sequence],
                num_rows: tokens.len(),
                context_len: tokens.end,
                leaves,
            })
            .collect();
        let shape = self.shape();
        self.plan.plan(&shape, &sequences).unwrap();
        let inputs = StepInputs {
            token_ids: Some(&positions),
            positions: &positions,
            slot_mapping: &slots,
            logits_rows: &[],
            num_rows: positions.len() + spare,
            num_logits_rows: 0,
        };
        self.step
            .upload(&self.gpu, &shape, &inputs, &self.plan)
            .unwrap();
        let dim = self.case.params.head_dim;
        let num_kv_heads = self.case.params.num_kv_heads;
        let widths = [self.case.params.num_heads, num_kv_heads, num_kv_heads].map(|n| n * dim);
        for (part, width) in widths.into_iter().enumerate() {
            let values = names
                .iter()
                .flat_map(|name| random(name * 3 + part as u64, width));
            let mut values: Vec<f32> = values.collect();
            values.resize((names.len() + spare) * width, f32::NAN);
            let rows = &mut self.rows[part];
            rows.reshape(&self.gpu, names.len() + spare, width).unwrap();
            self.gpu
                .write(rows.buffer_mut().unwrap(), 0, &values)
                .unwrap();
        }
    }

    /// The launches of a layer.
    fn launch(&mut self) {
        let rotation = Rotation {
            table: &self.rope,
            kind: RopeKind::Neox,
            q_norm: None,
            k_norm: None,
            eps: 1e-6,
        };
        let [q, k, v, out] = &mut self.rows;
        let (gpu, step) = (&self.gpu, &self.step);
        rotate_and_cache(gpu, &rotation, step, &mut self.cache, LAYER, [q, k, v]).unwrap();
        attention(gpu, &self.case.params, &self.cache, LAYER, step, q, out).unwrap();
    }

    fn read(&self, part: usize) -> Vec<f32> {
        let rows = &self.rows[part];
        let mut values = vec![0.0; rows.num_rows() * rows.width()];
        self.gpu
            .read(rows.buffer().unwrap(), 0, &mut values)
            .unwrap();
        values
    }

    /// The results of a step, row by row.
    fn run(&mut self, rows: &[StepRows<'_>]) -> Vec<Vec<f32>> {
        self.prepare(rows, 0);
        self.launch();
        let out = self.read(3);
        out.chunks(self.rows[3].width())
            .map(<[f32]>::to_vec)
            .collect()
    }

    /// What the definition says of the step that ran last.
    fn expected(&self, rows: &[StepRows<'_>]) -> Vec<Vec<f64>> {
        let params = &self.case.params;
        let group = params.num_heads / params.num_kv_heads;
        let q = self.read(0);
        let mut rows_of_q = q.chunks_exact(params.num_heads * params.head_dim);
        let mut all = Vec::new();
        for (sequence, tokens, leaves) in rows {
            for token in tokens.clone() {
                let q = rows_of_q.next().unwrap();
                let leaf = (token + leaves.len()).checked_sub(tokens.end);
                let position = leaf.map_or(token, |leaf| leaves[leaf] as usize);
                let first = params
                    .sliding_window
                    .map_or(0, |window| (position + 1).saturating_sub(window));
                let mut slots: Vec<u32> = (first..position)
                    .map(|at| self.slot(*sequence, at))
                    .collect();
                slots.push(self.slot(*sequence, token));
                let mut row = Vec::new();
                for (head, q) in q.chunks_exact(params.head_dim).enumerate() {
                    let [keys, values] = self
                        .cache
                        .read(&self.gpu, LAYER, head / group, &slots)
                        .unwrap();
                    row.extend(attend_one(params, q, &keys, &values));
                }
                all.push(row);
            }
        }
        all
    }
}

/// One head of one query by the definition.
fn attend_one(params: &AttentionParams, q: &[f32], keys: &[u16], values: &[u16]) -> Vec<f64> {
    let number = |bits: u16| f64::from(f16::from_bits(bits).to_f32());
    let q: Vec<f64> = q
        .iter()
        .map(|x| number(f16::from_f32(*x).to_bits()))
        .collect();
    let dim = params.head_dim;
    let scores: Vec<f64> = keys
        .chunks_exact(dim)
        .map(|key| {
            let score: f64 = key.iter().zip(&q).map(|(key, q)| number(*key) * q).sum();
            let score = score * f64::from(params.scale);
            params.softcap.map_or(score, |cap| {
                let cap = f64::from(cap);
                cap * (score / cap).tanh()
            })
        })
        .collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut out = vec![0.0; dim];
    for (weight, value) in weights.iter().zip(values.chunks_exact(dim)) {
        for (out, value) in out.iter_mut().zip(value) {
            *out += weight / sum * number(*value);
        }
    }
    out
}

/// Values between -2 and 2 that follow from a seed.
fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 22) as f32 - 2.0
    };
    (0..len).map(|_| next()).collect()
}

#[track_caller]
fn assert_near(got: &[Vec<f32>], expected: &[Vec<f64>], context: &str) {
    assert_eq!(got.len(), expected.len(), "{context}");
    for (row, (got, expected)) in got.iter().zip(expected).enumerate() {
        for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
            let error = (f64::from(*got) - expected).abs();
            // Weights are rounded to f16.
            assert!(
                error < 1.5e-3,
                "{context}: row {row}, {at}: {got}, not {expected}"
            );
        }
    }
}

#[track_caller]
fn assert_same_bits(got: &[Vec<f32>], expected: &[Vec<f32>], context: &str) {
    let bits = |rows: &[Vec<f32>]| -> Vec<Vec<u32>> {
        let of_row = |row: &Vec<f32>| row.iter().map(|x| x.to_bits()).collect();
        rows.iter().map(of_row).collect()
    };
    let (got, expected) = (bits(got), bits(expected));
    assert_eq!(got.len(), expected.len(), "{context}");
    for (row, pair) in got.iter().zip(&expected).enumerate() {
        assert!(pair.0 == pair.1, "{context}: the bits of row {row} differ");
    }
}
