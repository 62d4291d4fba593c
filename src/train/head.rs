//! The head while it is trained; see [`crate::reward::ValueHead`] for its form.

use safetensors::{Dtype, SafeTensorError, tensor::TensorView};

use super::batch::Batch;
use super::random::Random;
use super::value_head::TrainOptions;
use crate::reward::head_tensors as names;

/// How much more the likelihood counts than one number of the state when a head starts to learn:
/// it is one among hundreds, and known to matter.
const LIKELIHOOD_SCALE: f32 = 4.0;
const MIN_VARIANCE: f32 = 1e-6;
/// Sums that a dot product keeps beside each other: one after another, an addition would wait for
/// the last.
const LANES: usize = 16;

/// One layer of tanh units on the standardised input, and one value of them.
#[derive(Debug, Clone)]
pub(super) struct Head {
    mean: Vec<f32>,
    inverse_std: Vec<f32>,
    pub weights: Weights,
}

/// What the optimiser changes.
#[derive(Debug, Clone)]
pub(super) struct Weights {
    /// `[width, num_inputs]` input weights, `[width]` their biases, `[width]` output weights, and
    /// the output's bias, in one piece.
    pub all: Vec<f32>,
    num_inputs: usize,
    width: usize,
}

/// The parts of [`Weights::all`].
struct Parts<'w> {
    input_weight: &'w [f32],
    input_bias: &'w [f32],
    output_weight: &'w [f32],
    output_bias: f32,
}

impl Weights {
    fn new(num_inputs: usize, width: usize, random: &mut Random) -> Self {
        let mut all = vec![0.0; width * num_inputs + 2 * width + 1];
        let (input, rest) = all.split_at_mut(width * num_inputs);
        for (weights, columns) in [(input, num_inputs), (&mut rest[width..2 * width], width)] {
            let bound = (3.0 / columns as f64).sqrt();
            for weight in weights {
                *weight = ((random.uniform() * 2.0 - 1.0) * bound) as f32;
            }
        }
        Self {
            all,
            num_inputs,
            width,
        }
    }

    fn parts(&self) -> Parts<'_> {
        let (input_weight, rest) = self.all.split_at(self.width * self.num_inputs);
        let (input_bias, rest) = rest.split_at(self.width);
        let (output_weight, output_bias) = rest.split_at(self.width);
        Parts {
            input_weight,
            input_bias,
            output_weight,
            output_bias: output_bias[0],
        }
    }

    /// One head whose logit is the mean of the members': their units side by side.
    pub(super) fn join(members: &[Self]) -> Self {
        let parts: Vec<Parts> = members.iter().map(Self::parts).collect();
        let share = 1.0 / members.len() as f32;
        let mut all = Vec::new();
        parts.iter().for_each(|part| all.extend(part.input_weight));
        parts.iter().for_each(|part| all.extend(part.input_bias));
        for part in &parts {
            all.extend(part.output_weight.iter().map(|weight| weight * share));
        }
        all.push(parts.iter().map(|part| part.output_bias).sum::<f32>() * share);
        Self {
            all,
            num_inputs: members[0].num_inputs,
            width: members.iter().map(|member| member.width).sum(),
        }
    }
}

impl Head {
    pub(super) fn new(train: &Batch, options: &TrainOptions, seed: u64) -> Self {
        let num_inputs = train.num_inputs;
        let rows = train.values.len().max(1) as f32;
        let mean_of = |of: &dyn Fn(usize, f32) -> f32| -> Vec<f32> {
            let mut sums = vec![0.0; num_inputs];
            for state in train.states.chunks_exact(num_inputs) {
                for (at, (sum, x)) in sums.iter_mut().zip(state).enumerate() {
                    *sum += of(at, *x);
                }
            }
            sums.iter().map(|sum| sum / rows).collect()
        };
        let mean = mean_of(&|_, x| x);
        let variance = mean_of(&|at, x| (x - mean[at]).powi(2));
        let mut inverse_std: Vec<f32> = variance
            .iter()
            .map(|variance| (variance + MIN_VARIANCE).sqrt().recip())
            .collect();
        if let Some(last) = inverse_std.last_mut().filter(|_| options.reads_likelihood) {
            *last *= LIKELIHOOD_SCALE;
        }
        Self {
            mean,
            inverse_std,
            weights: Weights::new(num_inputs, options.width, &mut Random(seed)),
        }
    }

    /// The same standardisation with other weights.
    pub(super) fn with(&self, weights: Weights) -> Self {
        Self {
            weights,
            ..self.clone()
        }
    }

    /// Values in 0..=1, one a row.
    pub(super) fn values(&self, batch: &Batch) -> Vec<f32> {
        let (logits, _) = self.forward(batch);
        logits.iter().map(|logit| sigmoid(*logit) as f32).collect()
    }

    /// The standardised row in `x`, its units in `hidden`; returns the logit.
    fn row(&self, state: &[f32], x: &mut [f32], hidden: &mut [f32]) -> f64 {
        let parts = self.weights.parts();
        let standard = self.mean.iter().zip(&self.inverse_std);
        for ((x, state), (mean, scale)) in x.iter_mut().zip(state).zip(standard) {
            *x = (state - mean) * scale;
        }
        let mut logit = parts.output_bias;
        for (unit, out) in hidden.iter_mut().enumerate() {
            let weights = &parts.input_weight[unit * x.len()..][..x.len()];
            *out = (dot(weights, x) + parts.input_bias[unit]).tanh();
            logit += *out * parts.output_weight[unit];
        }
        f64::from(logit)
    }

    /// Logits `[rows]` and units `[rows, width]`.
    fn forward(&self, batch: &Batch) -> (Vec<f64>, Vec<f32>) {
        let width = self.weights.width;
        let mut hidden = vec![0.0_f32; batch.values.len() * width];
        let mut x = vec![0.0_f32; batch.num_inputs];
        let states = batch.states.chunks_exact(batch.num_inputs);
        let logits: Vec<f64> = states
            .zip(hidden.chunks_exact_mut(width))
            .map(|(state, hidden)| self.row(state, &mut x, hidden))
            .collect();
        (logits, hidden)
    }

    /// Squared error of the values, and `pairwise` times how far right answers are from being
    /// above wrong ones.
    pub(super) fn loss(&self, batch: &Batch, pairwise: f64) -> f64 {
        let (logits, _) = self.forward(batch);
        loss_of(&logits, batch, pairwise).0
    }

    /// The gradient of [`Self::loss`], in the order of [`Weights::all`].
    pub(super) fn gradient(&self, batch: &Batch, pairwise: f64) -> Vec<f32> {
        let (num_inputs, width) = (batch.num_inputs, self.weights.width);
        let (logits, hidden) = self.forward(batch);
        let (_, slopes) = loss_of(&logits, batch, pairwise);
        let parts = self.weights.parts();
        let mut gradient = vec![0.0_f32; self.weights.all.len()];
        let (input_weight, rest) = gradient.split_at_mut(width * num_inputs);
        let (input_bias, rest) = rest.split_at_mut(width);
        let (output_weight, output_bias) = rest.split_at_mut(width);
        let mut x = vec![0.0_f32; num_inputs];
        let rows = batch.states.chunks_exact(num_inputs);
        for ((state, hidden), slope) in rows.zip(hidden.chunks_exact(width)).zip(slopes) {
            let standard = self.mean.iter().zip(&self.inverse_std);
            for ((x, state), (mean, scale)) in x.iter_mut().zip(state).zip(standard) {
                *x = (state - mean) * scale;
            }
            let slope = slope as f32;
            output_bias[0] += slope;
            for (unit, out) in hidden.iter().enumerate() {
                output_weight[unit] += slope * out;
                let slope = slope * parts.output_weight[unit] * (1.0 - out * out);
                input_bias[unit] += slope;
                let weights = &mut input_weight[unit * num_inputs..][..num_inputs];
                weights
                    .iter_mut()
                    .zip(&x)
                    .for_each(|(w, x)| *w += slope * x);
            }
        }
        gradient
    }

    /// The tensors of the file that [`crate::reward::ValueHead`] reads.
    pub(super) fn to_safetensors(&self) -> Result<Vec<u8>, SafeTensorError> {
        let (parts, width) = (self.weights.parts(), self.weights.width);
        let tensors = [
            (names::MEAN, vec![self.mean.len()], bytes(&self.mean)),
            (
                names::INVERSE_STD,
                vec![self.mean.len()],
                bytes(&self.inverse_std),
            ),
            (
                names::INPUT_WEIGHT,
                vec![width, self.mean.len()],
                bytes(parts.input_weight),
            ),
            (names::INPUT_BIAS, vec![width], bytes(parts.input_bias)),
            (
                names::OUTPUT_WEIGHT,
                vec![1, width],
                bytes(parts.output_weight),
            ),
            (names::OUTPUT_BIAS, vec![1], bytes(&[parts.output_bias])),
        ];
        let mut views = Vec::with_capacity(tensors.len());
        for (name, shape, bytes) in &tensors {
            views.push((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?));
        }
        safetensors::serialize(views, None)
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `-ln(sigmoid(x))`, also where the sigmoid is 0.
fn surprise(x: f64) -> f64 {
    (-x).max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The loss, and its slope along each logit.
fn loss_of(logits: &[f64], batch: &Batch, pairwise: f64) -> (f64, Vec<f64>) {
    let rows = logits.len().max(1) as f64;
    let mut loss = 0.0;
    let mut slopes: Vec<f64> = Vec::with_capacity(logits.len());
    for (logit, target) in logits.iter().zip(&batch.values) {
        let value = sigmoid(*logit);
        let error = value - f64::from(*target);
        loss += error * error / rows;
        slopes.push(2.0 * error * value * (1.0 - value) / rows);
    }
    if batch.pairs.is_empty() || pairwise <= 0.0 {
        return (loss, slopes);
    }
    let share = pairwise / batch.pairs.len() as f64;
    for (right, wrong) in &batch.pairs {
        let margin = logits[*right] - logits[*wrong];
        loss += share * surprise(margin);
        let slope = share * (sigmoid(margin) - 1.0);
        slopes[*right] += slope;
        slopes[*wrong] -= slope;
    }
    (loss, slopes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::examples::Example;

    #[test]
    fn gradients_are_those_of_small_changes() {
        let mut random = Random(3);
        let examples: Vec<Example> = (0..12)
            .map(|at| Example {
                group: at / 4,
                state: (0..5).map(|_| random.uniform() as f32).collect(),
                value: random.uniform() as f32,
                outcome: Some((at % 2) as f32),
                likelihood: random.uniform() as f32,
            })
            .collect();
        let batch = Batch::new(&examples.iter().collect::<Vec<_>>(), true);
        assert_eq!((batch.num_inputs, batch.pairs.len()), (6, 12));
        let options = TrainOptions {
            width: 3,
            ..TrainOptions::default()
        };
        let head = Head::new(&batch, &options, 1);
        let gradient = head.gradient(&batch, 0.7);
        for (at, slope) in gradient.iter().enumerate() {
            let moved = |by: f32| {
                let mut weights = head.weights.clone();
                weights.all[at] += by;
                head.with(weights).loss(&batch, 0.7)
            };
            let measured = (moved(1e-3) - moved(-1e-3)) / 2e-3;
            assert!(
                (measured - f64::from(*slope)).abs() < 1e-4,
                "weight {at}: {slope}, measured {measured}"
            );
        }
    }
}
