//! Cross-entropy of rows under a head, and its gradient: logits exist a tile at a time, and the
//! head is read once for all rows.
//!
//! What is summed over the vocabulary is summed within chunks of a fixed number of tokens, and
//! chunk by chunk, so that neither the number of threads nor the rows beside a row change it.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::activations::Activations;
use crate::cost;
use crate::cpu::{self, MAX_PANELS, RunningSum};
use crate::elementwise::{scale, softcap};
use crate::float_panel::LineF32;
use crate::matmul::{ROW_BLOCK, SCRATCH, Scratch, check_inputs};
use crate::matrix::PackedMatrix;
use crate::panel::{BLOCK_INPUTS, PANEL_ROWS};
use crate::partition::{SharedSlice, for_each};
use crate::pool::ThreadPool;

/// Panels whose sums are kept together: a thread's share at a time.
const CHUNK_PANELS: usize = 64;
const CHUNK: usize = CHUNK_PANELS * PANEL_ROWS;
/// How far a logit may be rounded, in nats: what is likely enough is found before the sum is known
/// to the last bit.
const MARGIN: f32 = 1e-3;

/// What makes logits of rows.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// `[vocab_size, hidden_size]`
    pub weights: &'a PackedMatrix,
    /// Logits are divided by it.
    pub divisor: f32,
    /// Then they become `cap * tanh(logit / cap)`.
    pub softcap: Option<f32>,
}

/// How the mean loss changes with one token's product with one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenError {
    pub token: u32,
    pub row: u32,
    /// The derivative of the mean loss by the product.
    pub factor: f32,
}

/// The losses of some rows.
#[derive(Debug, Default)]
pub struct CrossEntropy {
    /// Nats, a row each.
    pub losses: Vec<f64>,
    /// By token, those of a token by row; empty unless wanted.
    pub errors: Vec<TokenError>,
}

/// A token that may be likely enough to count.
#[derive(Clone, Copy)]
struct Candidate {
    token: u32,
    row: u32,
    logit: f32,
}

/// What a chunk of the vocabulary says of all rows.
#[derive(Default)]
struct Chunk {
    sums: Vec<RunningSum>,
    candidates: Vec<Candidate>,
    errors: Vec<TokenError>,
}

impl Head<'_> {
    /// The loss of every row of `x`, where row `i` predicts `targets[i]`. With `min_probability`
    /// also the errors of each row's target and of all tokens that are as likely as that.
    ///
    /// # Panics
    /// When lengths do not fit, or a target is none of the head's tokens.
    pub fn cross_entropy(
        &self,
        pool: &ThreadPool,
        x: &Activations,
        targets: &[u32],
        min_probability: Option<f32>,
    ) -> CrossEntropy {
        check_inputs(x, self.weights);
        let vocab_size = self.weights.out_features();
        assert_eq!(targets.len(), x.num_rows(), "a target a row");
        assert!(targets.iter().all(|target| (*target as usize) < vocab_size));
        let num_rows = targets.len();
        let mut target_logits = vec![f32::NAN; num_rows];
        let mut chunks = Vec::new();
        chunks.resize_with(vocab_size.div_ceil(CHUNK), Chunk::default);
        let shared = SharedSlice::new(&mut chunks);
        let pass = Pass {
            head: self,
            x,
            targets,
            floor: min_probability.map(f32::ln),
            known: targets.iter().map(|_| atomic(f32::NEG_INFINITY)).collect(),
            target_logits: SharedSlice::new(&mut target_logits),
        };
        let work = cost::product(num_rows, self.weights, 1.0);
        for_each(pool, work, vocab_size.div_ceil(CHUNK), |index| {
            // SAFETY: each chunk is taken once.
            let chunk = unsafe { &mut shared.slice_mut(index, 1)[0] };
            SCRATCH.with_borrow_mut(|scratch| pass.run(index, chunk, scratch));
        });
        let totals: Vec<f64> = (0..num_rows).map(|row| total(&chunks, row)).collect();
        let losses = totals.iter().zip(&target_logits);
        let losses = losses
            .map(|(total, logit)| total - f64::from(*logit))
            .collect();
        let mut errors = Vec::new();
        if let Some(min_probability) = min_probability {
            self.find_errors(pool, &mut chunks, targets, &totals, min_probability);
            errors = chunks.into_iter().flat_map(|chunk| chunk.errors).collect();
        }
        CrossEntropy { losses, errors }
    }

    /// Makes errors of the candidates that are likely enough, in the order of their tokens.
    fn find_errors(
        &self,
        pool: &ThreadPool,
        chunks: &mut [Chunk],
        targets: &[u32],
        totals: &[f64],
        min_probability: f32,
    ) {
        let count: usize = chunks.iter().map(|chunk| chunk.candidates.len()).sum();
        let num_chunks = chunks.len();
        let shared = SharedSlice::new(chunks);
        for_each(pool, cost::values(10 * count), num_chunks, |index| {
            // SAFETY: each chunk is taken once.
            let chunk = unsafe { &mut shared.slice_mut(index, 1)[0] };
            for candidate in &chunk.candidates {
                let row = candidate.row as usize;
                let is_target = candidate.token == targets[row];
                let probability = (f64::from(candidate.logit) - totals[row]).exp() as f32;
                if probability < min_probability && !is_target {
                    continue;
                }
                let error = probability - f32::from(u8::from(is_target));
                let slope = self
                    .softcap
                    .map_or(1.0, |cap| 1.0 - (candidate.logit / cap).powi(2));
                chunk.errors.push(TokenError {
                    token: candidate.token,
                    row: candidate.row,
                    factor: error * slope / (self.divisor * targets.len() as f32),
                });
            }
            chunk
                .errors
                .sort_unstable_by_key(|error| (error.token, error.row));
        });
    }

    /// Adds the gradient of the mean loss by the rows that the head read, `[rows, hidden_size]`:
    /// each token's weights are read once. `errors` are in the order of their tokens.
    ///
    /// # Panics
    /// When an error's row or token does not exist.
    pub fn add_gradient(&self, pool: &ThreadPool, errors: &[TokenError], out: &mut [f32]) {
        let width = self.weights.in_features();
        let num_panels = errors.chunk_by(is_of_same_panel).count();
        let values = num_panels * PANEL_ROWS * width + errors.len() * width;
        let out = SharedSlice::new(out);
        for_each(
            pool,
            cost::values(values),
            width.div_ceil(BLOCK_INPUTS),
            |block| {
                let start = block * BLOCK_INPUTS;
                let count = BLOCK_INPUTS.min(width - start);
                let mut weights = cpu::PanelBlock::default();
                for errors in errors.chunk_by(is_of_same_panel) {
                    let panel = errors[0].token as usize / PANEL_ROWS;
                    self.weights.read_block(panel, block, &mut weights);
                    for error in errors {
                        // SAFETY: each block of columns is taken once.
                        let out =
                            unsafe { out.slice_mut(error.row as usize * width + start, count) };
                        let lane = error.token as usize % PANEL_ROWS;
                        for (out, strip) in out.chunks_mut(PANEL_ROWS).zip(&weights) {
                            for (out, weight) in out.iter_mut().zip(&strip[lane]) {
                                *out += error.factor * weight;
                            }
                        }
                    }
                }
            },
        );
    }
}

fn is_of_same_panel(a: &TokenError, b: &TokenError) -> bool {
    a.token as usize / PANEL_ROWS == b.token as usize / PANEL_ROWS
}

fn atomic(value: f32) -> AtomicU32 {
    AtomicU32::new(value.to_bits())
}

/// The logarithm of the sum of a row's exponentials.
fn total(chunks: &[Chunk], row: usize) -> f64 {
    let sums = || chunks.iter().map(|chunk| chunk.sums[row]);
    let shift = sums().fold(f32::NEG_INFINITY, |largest, sum| largest.max(sum.shift));
    let shift = f64::from(shift);
    let sum = |sum: RunningSum| f64::from(sum.sum) * (f64::from(sum.shift) - shift).exp();
    shift + sums().map(sum).sum::<f64>().ln()
}

/// The pass over the vocabulary.
struct Pass<'a> {
    head: &'a Head<'a>,
    x: &'a Activations,
    targets: &'a [u32],
    /// The logarithm of the probability from which on a token is a candidate; `None` finds none.
    floor: Option<f32>,
    /// Bits of a number that a row's total is not below: the best that any chunk has found.
    known: Vec<AtomicU32>,
    target_logits: SharedSlice<'a, f32>,
}

impl Pass<'_> {
    fn run(&self, index: usize, chunk: &mut Chunk, scratch: &mut Scratch) {
        scratch.grow();
        let num_rows = self.targets.len();
        chunk.sums.resize(num_rows, RunningSum::EMPTY);
        let num_panels = self.head.weights.num_panels();
        let end = ((index + 1) * CHUNK_PANELS).min(num_panels);
        for first in (index * CHUNK_PANELS..end).step_by(MAX_PANELS) {
            let panels = first..(first + MAX_PANELS).min(end);
            for start in (0..num_rows).step_by(ROW_BLOCK) {
                let rows = start..(start + ROW_BLOCK).min(num_rows);
                self.take(panels.clone(), rows, chunk, scratch);
            }
        }
    }

    /// Takes in the logits of some rows by some panels.
    fn take(
        &self,
        panels: Range<usize>,
        rows: Range<usize>,
        chunk: &mut Chunk,
        scratch: &mut Scratch,
    ) {
        let weights = self.head.weights;
        let (x, count) = (self.x, rows.len());
        let tiles = &mut scratch.tiles[..panels.len() * count * PANEL_ROWS];
        let decoded = &mut scratch.decoded;
        cpu::panels_product(x, weights, panels.clone(), rows.clone(), decoded, tiles);
        if self.head.divisor != 1.0 {
            scale(tiles, 1.0 / self.head.divisor);
        }
        if let Some(cap) = self.head.softcap {
            softcap(tiles, cap);
        }
        let tiles = tiles.as_chunks_mut::<PANEL_ROWS>().0;
        let num_tokens =
            weights.out_features().min(panels.end * PANEL_ROWS) - panels.start * PANEL_ROWS;
        let last = &mut tiles[(panels.len() - 1) * count..];
        for line in last {
            // What lies behind the last token is none.
            line[num_tokens - (panels.len() - 1) * PANEL_ROWS..].fill(f32::NEG_INFINITY);
        }
        let mut largest = [f32::NEG_INFINITY; ROW_BLOCK];
        let sums = &mut chunk.sums[rows.clone()];
        cpu::weigh_tile(tiles, sums, &mut largest[..count]);
        for (index, row) in rows.enumerate() {
            let logits = Logits {
                tiles,
                stride: count,
                index,
                first: panels.start * PANEL_ROWS,
                count: num_tokens,
            };
            self.find(row, &logits, largest[index], chunk);
        }
    }

    /// Looks for a row's target and candidates.
    fn find(&self, row: usize, logits: &Logits<'_>, largest: f32, chunk: &mut Chunk) {
        let target = self.targets[row];
        let is_here = (target as usize).wrapping_sub(logits.first) < logits.count;
        let candidate = |token: u32, logit: f32| Candidate {
            token,
            row: row as u32,
            logit,
        };
        if is_here {
            let logit = logits.get(target as usize - logits.first);
            // SAFETY: a row has one target, in one tile.
            unsafe { self.target_logits.write(row, logit) };
            if self.floor.is_some() {
                chunk.candidates.push(candidate(target, logit));
            }
        }
        let Some(floor) = self.floor else { return };
        let RunningSum { shift, sum } = chunk.sums[row];
        let known = &self.known[row];
        let best = f32::from_bits(known.load(Ordering::Relaxed)).max(shift + sum.ln());
        // Another thread may overwrite a better one: what is known stays true.
        known.store(best.to_bits(), Ordering::Relaxed);
        let least = best + floor - MARGIN;
        if largest < least {
            return;
        }
        for offset in 0..logits.count {
            let (token, logit) = ((logits.first + offset) as u32, logits.get(offset));
            if logit >= least && token != target {
                chunk.candidates.push(candidate(token, logit));
            }
        }
    }
}

/// One row's logits of some panels, `[panels, stride]` lines of which its own are each panel's line
/// `index`.
struct Logits<'a> {
    tiles: &'a [LineF32],
    stride: usize,
    index: usize,
    /// The first token.
    first: usize,
    /// Tokens.
    count: usize,
}

impl Logits<'_> {
    fn get(&self, offset: usize) -> f32 {
        self.tiles[offset / PANEL_ROWS * self.stride + self.index][offset % PANEL_ROWS]
    }
}
