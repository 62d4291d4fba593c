//! Fits a [`crate::reward::ValueHead`] to examples.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap};

use super::choices::{Choices, choose};
use super::examples::{Example, Examples};
use super::random::Random;
use crate::engine::EngineError;
use crate::reward::{ValueHead, head_tensors as names};

/// How to fit.
#[derive(Debug, Clone, Copy)]
pub struct TrainOptions {
    /// Units between the state and the value.
    pub width: usize,
    pub learning_rate: f64,
    pub weight_decay: f64,
    pub batch_size: usize,
    pub max_epochs: usize,
    /// Epochs without a better held-out loss before it stops.
    pub patience: usize,
    /// Share of the prompts that is only measured on.
    pub held_out: f64,
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            width: 64,
            learning_rate: 1e-3,
            weight_decay: 0.05,
            batch_size: 128,
            max_epochs: 60,
            patience: 6,
            held_out: 0.2,
            seed: 0,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("{0}")]
    Data(String),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// What was reached on prompts that were not trained on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Report {
    pub num_train: usize,
    pub num_held_out: usize,
    pub best_epoch: usize,
    /// Mean squared error of values, and that of always saying the training mean.
    pub mse: f64,
    pub mse_of_mean: f64,
    /// The probability that a right answer is valued above a wrong one.
    pub auc: f64,
    pub choices: Choices,
}

/// States and values of some examples as tensors.
struct Batch {
    states: Tensor,
    values: Tensor,
}

impl Batch {
    fn new(examples: &[&Example], device: &Device) -> Result<Self, TrainError> {
        let rows: Vec<f32> = examples
            .iter()
            .flat_map(|e| e.state.iter().copied())
            .collect();
        let values: Vec<f32> = examples.iter().map(|e| e.value).collect();
        Ok(Self {
            states: Tensor::from_vec(rows, (examples.len(), examples[0].state.len()), device)?,
            values: Tensor::from_vec(values, examples.len(), device)?,
        })
    }
}

/// The head while it is trained; see [`crate::reward::ValueHead`] for its form.
struct Head {
    mean: Tensor,
    inverse_std: Tensor,
    weights: VarMap,
}

impl Head {
    fn new(train: &Batch, width: usize, seed: u64) -> Result<Self, TrainError> {
        let hidden_size = train.states.dim(D::Minus1)?;
        let mean = train.states.mean(0)?;
        let variance = train.states.broadcast_sub(&mean)?.sqr()?.mean(0)?;
        let inverse_std = (variance + 1e-6)?.sqrt()?.recip()?;
        let weights = VarMap::new();
        let device = train.states.device();
        let builder = VarBuilder::from_varmap(&weights, DType::F32, device);
        let mut random = Random(seed);
        for (name, rows, columns) in [
            (names::INPUT_WEIGHT, width, hidden_size),
            (names::OUTPUT_WEIGHT, 1, width),
        ] {
            let bound = (3.0 / columns as f64).sqrt();
            let values: Vec<f32> = (0..rows * columns)
                .map(|_| ((random.uniform() * 2.0 - 1.0) * bound) as f32)
                .collect();
            builder.get((rows, columns), name)?;
            let values = Tensor::from_vec(values, (rows, columns), device)?;
            set(&weights, name, &values)?;
        }
        builder.get(width, names::INPUT_BIAS)?;
        builder.get(1, names::OUTPUT_BIAS)?;
        Ok(Self {
            mean,
            inverse_std,
            weights,
        })
    }

    fn tensor(&self, name: &str) -> Result<Tensor, TrainError> {
        let data = self.weights.data().lock();
        let data = data.unwrap_or_else(|poison| poison.into_inner());
        let var = data
            .get(name)
            .ok_or_else(|| TrainError::Data(format!("no tensor {name}")))?;
        Ok(var.as_tensor().clone())
    }

    /// Values in 0..=1, `[rows]`.
    fn forward(&self, states: &Tensor) -> Result<Tensor, TrainError> {
        let x = states
            .broadcast_sub(&self.mean)?
            .broadcast_mul(&self.inverse_std)?;
        let hidden = x
            .matmul(&self.tensor(names::INPUT_WEIGHT)?.t()?)?
            .broadcast_add(&self.tensor(names::INPUT_BIAS)?)?
            .tanh()?;
        let out = hidden
            .matmul(&self.tensor(names::OUTPUT_WEIGHT)?.t()?)?
            .broadcast_add(&self.tensor(names::OUTPUT_BIAS)?)?;
        Ok(candle_nn::ops::sigmoid(&out.squeeze(1)?)?)
    }

    fn loss(&self, batch: &Batch) -> Result<Tensor, TrainError> {
        Ok((self.forward(&batch.states)? - &batch.values)?
            .sqr()?
            .mean_all()?)
    }

    fn snapshot(&self) -> Result<HashMap<String, Tensor>, TrainError> {
        let mut tensors = HashMap::from([
            (names::MEAN.to_owned(), self.mean.clone()),
            (names::INVERSE_STD.to_owned(), self.inverse_std.clone()),
        ]);
        for name in [
            names::INPUT_WEIGHT,
            names::INPUT_BIAS,
            names::OUTPUT_WEIGHT,
            names::OUTPUT_BIAS,
        ] {
            tensors.insert(name.to_owned(), self.tensor(name)?.copy()?);
        }
        Ok(tensors)
    }

    fn restore(&self, tensors: &HashMap<String, Tensor>) -> Result<(), TrainError> {
        for (name, tensor) in tensors {
            if self.tensor(name).is_ok() {
                set(&self.weights, name, tensor)?;
            }
        }
        Ok(())
    }
}

fn set(weights: &VarMap, name: &str, tensor: &Tensor) -> Result<(), TrainError> {
    let data = weights.data().lock();
    let data = data.unwrap_or_else(|poison| poison.into_inner());
    match data.get(name) {
        Some(var) => Ok(var.set(tensor)?),
        None => Err(TrainError::Data(format!("no tensor {name}"))),
    }
}

/// Trains on most prompts, measures on the rest, keeps the epoch with the best held-out loss and writes it to
/// `out`. `progress` gets each epoch with its training and held-out loss.
pub fn train(
    data: &Examples,
    options: &TrainOptions,
    out: &Path,
    mut progress: impl FnMut(usize, f64, f64),
) -> Result<Report, TrainError> {
    let device = Device::Cpu;
    let (train, held_out) = split(data, options)?;
    let (all, held) = (
        Batch::new(&train, &device)?,
        Batch::new(&held_out, &device)?,
    );
    let head = Head::new(&all, options.width, options.seed)?;
    let params = ParamsAdamW {
        lr: options.learning_rate,
        weight_decay: options.weight_decay,
        ..ParamsAdamW::default()
    };
    let mut optimizer = AdamW::new(head.weights.all_vars(), params)?;
    let mut random = Random(options.seed ^ 0x5EED);
    let mut order: Vec<&Example> = train.clone();
    let mut best: Option<(f64, usize, HashMap<String, Tensor>)> = None;
    for epoch in 1..=options.max_epochs {
        random.shuffle(&mut order);
        for chunk in order.chunks(options.batch_size) {
            let batch = Batch::new(chunk, &device)?;
            optimizer.backward_step(&head.loss(&batch)?)?;
        }
        let train_loss = f64::from(head.loss(&all)?.to_scalar::<f32>()?);
        let loss = f64::from(head.loss(&held)?.to_scalar::<f32>()?);
        progress(epoch, train_loss, loss);
        if best.as_ref().is_none_or(|(lowest, _, _)| loss < *lowest) {
            best = Some((loss, epoch, head.snapshot()?));
        }
        let is_stale = best
            .as_ref()
            .is_some_and(|(_, at, _)| epoch - at >= options.patience);
        if is_stale {
            break;
        }
    }
    let Some((mse, best_epoch, tensors)) = best else {
        return Err(TrainError::Data("max_epochs is 0".to_owned()));
    };
    head.restore(&tensors)?;
    candle_core::safetensors::save(&tensors, out)?;
    let values = head.forward(&held.states)?.to_vec1::<f32>()?;
    let mean = train.iter().map(|e| f64::from(e.value)).sum::<f64>() / train.len() as f64;
    let errors = held_out.iter().map(|e| (f64::from(e.value) - mean).powi(2));
    Ok(Report {
        num_train: train.len(),
        num_held_out: held_out.len(),
        best_epoch,
        mse,
        mse_of_mean: errors.sum::<f64>() / held_out.len() as f64,
        auc: auc(&held_out, &values),
        choices: choose(&held_out, &values, options.seed),
    })
}

/// How a finished head chooses among the answers of all examples.
pub fn evaluate(data: &Examples, head: &ValueHead, seed: u64) -> (f64, Choices) {
    let examples: Vec<&Example> = data.examples.iter().collect();
    let values: Vec<f32> = examples
        .iter()
        .map(|example| head.value(&example.state) as f32)
        .collect();
    (auc(&examples, &values), choose(&examples, &values, seed))
}

/// Training and held-out examples; all of a prompt's are on one side.
fn split<'e>(
    data: &'e Examples,
    options: &TrainOptions,
) -> Result<(Vec<&'e Example>, Vec<&'e Example>), TrainError> {
    let mut groups: Vec<usize> = (0..data.num_groups).collect();
    Random(options.seed).shuffle(&mut groups);
    let num_held_out = (data.num_groups as f64 * options.held_out).round() as usize;
    let mut is_held_out = vec![false; data.num_groups];
    for group in &groups[..num_held_out.min(groups.len())] {
        is_held_out[*group] = true;
    }
    let (held_out, train): (Vec<&Example>, Vec<&Example>) =
        data.examples.iter().partition(|e| is_held_out[e.group]);
    if train.is_empty() || held_out.is_empty() {
        return Err(TrainError::Data(format!(
            "{} examples of {} prompts are too few to train on some and measure on others",
            data.examples.len(),
            data.num_groups
        )));
    }
    Ok((train, held_out))
}

/// The share of pairs of a right and a wrong whole answer that are ordered rightly.
fn auc(examples: &[&Example], values: &[f32]) -> f64 {
    let of = |is_right: bool| -> Vec<f32> {
        let pairs = examples.iter().zip(values);
        let chosen = pairs.filter(|(e, _)| e.outcome.is_some_and(|o| (o > 0.5) == is_right));
        chosen.map(|(_, value)| *value).collect()
    };
    let (right, wrong) = (of(true), of(false));
    let mut sum = 0.0;
    for r in &right {
        for w in &wrong {
            sum += if r > w {
                1.0
            } else if r == w {
                0.5
            } else {
                0.0
            };
        }
    }
    sum / (right.len() * wrong.len()).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Right answers have a positive first number, whatever the others say.
    fn examples(num_groups: usize) -> Examples {
        let mut random = Random(9);
        let mut examples = Vec::new();
        for group in 0..num_groups {
            for _ in 0..4 {
                let state: Vec<f32> = (0..6).map(|_| random.uniform() as f32 - 0.5).collect();
                let outcome = f32::from(u8::from(state[0] > 0.0));
                examples.push(Example {
                    group,
                    state,
                    value: outcome,
                    outcome: Some(outcome),
                    likelihood: random.uniform() as f32,
                });
            }
        }
        Examples {
            examples,
            num_groups,
        }
    }

    #[test]
    fn learns_what_decides_and_writes_what_it_learnt() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("head.safetensors");
        let options = TrainOptions {
            width: 8,
            learning_rate: 0.02,
            ..TrainOptions::default()
        };
        let data = examples(80);
        let report = train(&data, &options, &out, |_, _, _| {}).unwrap();
        assert!(report.auc > 0.95, "{report:?}");
        assert!(report.mse < 0.3 * report.mse_of_mean, "{report:?}");
        assert!(report.choices.by_value > report.choices.by_likelihood);
        assert_eq!(report.num_train + report.num_held_out, 320);
        let again = train(&data, &options, &out, |_, _, _| {}).unwrap();
        assert_eq!(report, again, "the same seed gives the same head");
        // The served head says what the trained one says.
        let head = ValueHead::load(&out, 6).unwrap();
        assert!(head.value(&[0.4, 0.0, 0.0, 0.0, 0.0, 0.0]) > 0.8);
        assert!(head.value(&[-0.4, 0.0, 0.0, 0.0, 0.0, 0.0]) < 0.2);
        assert!(ValueHead::load(&out, 7).is_err());
        assert!(train(&examples(1), &options, &out, |_, _, _| {}).is_err());
    }
}
