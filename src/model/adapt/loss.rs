//! Cross-entropy of the next tokens and its gradient at the final hidden state.

use std::cell::RefCell;

use ponder_kernels::elementwise::{scale, softcap};
use ponder_kernels::logits::{argmax, weigh};
use ponder_kernels::norm::rms_norm_in_place;
use ponder_kernels::{PackedMatrix, ThreadPool, matmul};

use super::parallel;

use crate::model::decoder::Decoder;

/// Rows whose logits exist at once: a vocabulary of 150,000 tokens takes 40 MB for them.
const ROWS_AT_ONCE: usize = 64;
/// Tokens less likely than this are left out of the gradient: the head's rows are read back one by one, and a large vocabulary
/// has many of them that hardly pull.
const MIN_PROBABILITY: f32 = 1e-4;

/// Over the rows of a window.
pub(super) struct Loss {
    /// Mean, in nats a token.
    pub mean: f32,
    /// Of the mean by each normed row with its offset, `[rows, hidden_size]`; empty unless wanted.
    pub gradient: Vec<f32>,
}

impl Decoder {
    /// The loss of the rows in the scratch (before the final norm); row `i` predicts `targets[i]`. `offset` is added to the normed
    /// rows.
    pub(super) fn loss(
        &mut self,
        targets: &[u32],
        offset: Option<&[f32]>,
        wants_gradient: bool,
    ) -> Loss {
        let (hidden, eps) = (self.config.hidden_size, self.config.rms_norm_eps);
        let vocab_size = self.config.vocab_size;
        let mut gradient = vec![
            0.0;
            if wants_gradient {
                targets.len() * hidden
            } else {
                0
            }
        ];
        let mut logits = Vec::new();
        let mut total = 0.0_f64;
        let divisor = self.config.logits_divisor;
        for start in (0..targets.len()).step_by(ROWS_AT_ONCE) {
            let count = ROWS_AT_ONCE.min(targets.len() - start);
            let mut rows = self.scratch.x.values[start * hidden..(start + count) * hidden].to_vec();
            rms_norm_in_place(&self.ops.pool, &mut rows, &self.output_norm, eps);
            add_offset(&mut rows, offset);
            let activations = &mut self.scratch.activations;
            activations.load(&self.ops.pool, &rows, count, hidden);
            logits.resize(count * vocab_size, 0.0);
            let head = self.head.as_ref().unwrap_or(&self.embeddings);
            matmul(&self.ops.pool, activations, head, None, &mut logits);
            if divisor != 1.0 {
                scale(&mut logits, 1.0 / divisor);
            }
            if let Some(cap) = self.config.final_softcap {
                softcap(&mut logits, cap);
            }
            let head = Head {
                matrix: head,
                divisor,
                softcap: self.config.final_softcap,
                num_rows: targets.len(),
            };
            let own = targets[start..start + count].iter();
            let own = own.zip(logits.chunks_exact(vocab_size));
            let by_rows = gradient.get_mut(start * hidden..).unwrap_or_default();
            let by_rows = by_rows.chunks_mut(hidden).take(count);
            // Without a gradient there are no rows of one.
            let by_rows = by_rows.map(Some).chain(std::iter::repeat_with(|| None));
            let rows: Vec<_> = own.zip(by_rows).collect();
            total += head.losses(&self.ops.pool, rows);
        }
        Loss {
            mean: (total / targets.len() as f64) as f32,
            gradient,
        }
    }

    /// The gradient by the rows before the final norm, in place of that by the rows after it.
    pub(super) fn through_final_norm(&self, rows: &[f32], gradient: &mut [f32]) {
        let eps = self.config.rms_norm_eps;
        let width = self.config.hidden_size;
        let rows = rows
            .chunks_exact(width)
            .zip(gradient.chunks_exact_mut(width));
        for (x, gradient) in rows {
            let by_normed = gradient.to_vec();
            gradient.fill(0.0);
            add_norm_gradient(x, &self.output_norm, eps, &by_normed, gradient);
        }
    }
}

/// Adds a vector to every row.
pub(in crate::model) fn add_offset(rows: &mut [f32], offset: Option<&[f32]>) {
    let Some(offset) = offset else { return };
    for row in rows.chunks_exact_mut(offset.len()) {
        for (x, offset) in row.iter_mut().zip(offset) {
            *x += offset;
        }
    }
}

/// `out += J^T gradient` of an RMS norm at `x`: with `r = 1 / rms`, `r w g - x r^3 mean(w g x)`.
pub(super) fn add_norm_gradient(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    gradient: &[f32],
    out: &mut [f32],
) {
    let count = x.len() as f64;
    let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
    let r = 1.0 / (squares / count + f64::from(eps)).sqrt();
    let weighted = x.iter().zip(weight).zip(gradient);
    let along: f64 = weighted
        .map(|((x, w), g)| f64::from(*x) * f64::from(*w) * f64::from(*g))
        .sum();
    let (r, pull) = (r as f32, (r.powi(3) * along / count) as f32);
    for (((out, x), w), g) in out.iter_mut().zip(x).zip(weight).zip(gradient) {
        *out += r * w * g - x * pull;
    }
}

struct Head<'a> {
    matrix: &'a PackedMatrix,
    divisor: f32,
    softcap: Option<f32>,
    num_rows: usize,
}

/// What a row needs room for.
#[derive(Default)]
struct Buffers {
    weights: Vec<f32>,
    sums: Vec<f64>,
    row_of_head: Vec<f32>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// A row's target and logits, and where its gradient goes if it is wanted.
type Row<'a> = ((&'a u32, &'a [f32]), Option<&'a mut [f32]>);

impl Head<'_> {
    /// The sum of the rows' losses, added row by row whatever the number of threads.
    fn losses(&self, pool: &ThreadPool, rows: Vec<Row<'_>>) -> f64 {
        let losses = parallel::map(pool, rows, |row| {
            BUFFERS.with_borrow_mut(|buffers| self.row(row, buffers))
        });
        losses.iter().sum()
    }

    fn row(&self, ((target, logits), gradient): Row<'_>, buffers: &mut Buffers) -> f64 {
        let target = *target as usize;
        let largest = argmax(logits).map_or(0.0, |(_, largest)| largest);
        let sum = weigh(logits, largest, &mut buffers.weights, &mut buffers.sums);
        if let Some(out) = gradient {
            buffers.row_of_head.resize(out.len(), 0.0);
            let (weights, row) = (&buffers.weights, &mut buffers.row_of_head);
            self.pull(logits, weights, sum, target, row, out);
        }
        sum.ln() - f64::from(logits[target] - largest)
    }

    /// Adds what one row's logits pull at its hidden state. `weights` are the exponentials of the logits, `sum` is theirs.
    fn pull(
        &self,
        logits: &[f32],
        weights: &[f32],
        sum: f64,
        target: usize,
        row: &mut [f32],
        out: &mut [f32],
    ) {
        let floor = (f64::from(MIN_PROBABILITY) * sum) as f32;
        for (token, weight) in weights.iter().enumerate() {
            if *weight < floor && token != target {
                continue;
            }
            let probability = (f64::from(*weight) / sum) as f32;
            let error = probability - f32::from(u8::from(token == target));
            let slope = self
                .softcap
                .map_or(1.0, |cap| 1.0 - (logits[token] / cap).powi(2));
            let factor = error * slope / (self.divisor * self.num_rows as f32);
            self.matrix.dequantize_row(token, row);
            for (out, weight) in out.iter_mut().zip(&*row) {
                *out += factor * weight;
            }
        }
    }
}
