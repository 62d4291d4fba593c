//! Fits a [`crate::reward::ValueHead`] to examples.

use std::collections::HashMap;
use std::path::Path;

use super::adamw::AdamW;
use super::batch::{Batch, batches};
use super::choices::{Choices, choose};
use super::examples::{Example, Examples};
use super::head::{Head, Weights};
use super::random::Random;
use crate::engine::EngineError;
use crate::reward::ValueHead;

/// How to fit.
#[derive(Debug, Clone, Copy)]
pub struct TrainOptions {
    /// Units between the state and the value, of each member.
    pub width: usize,
    /// Heads that start from other weights; the mean of their logits is the value's.
    pub members: usize,
    /// Read the mean log-probability of the answer's tokens beside the state.
    pub reads_likelihood: bool,
    pub learning_rate: f64,
    pub weight_decay: f64,
    pub batch_size: usize,
    pub max_epochs: usize,
    /// Epochs without a better held-out loss before it stops.
    pub patience: usize,
    /// Weight of the pairwise loss: right and wrong answers of one prompt are told apart
    /// (Bradley-Terry, as reward models are trained), which says nothing of how hard the prompt is.
    pub pairwise: f64,
    /// Share of the prompts that is only measured on.
    pub held_out: f64,
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            width: 16,
            members: 8,
            reads_likelihood: true,
            learning_rate: 3e-4,
            weight_decay: 0.05,
            batch_size: 128,
            max_epochs: 60,
            patience: 6,
            pairwise: 1.0,
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
    #[error("cannot write the head: {0}")]
    Tensor(#[from] safetensors::SafeTensorError),
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

/// Trains on most prompts, measures on the rest, keeps each member's epoch with the best held-out
/// loss and writes all members as one head to `out`. `progress` gets each epoch with its training
/// and held-out loss.
pub fn train(
    data: &Examples,
    options: &TrainOptions,
    out: &Path,
    mut progress: impl FnMut(usize, f64, f64),
) -> Result<Report, TrainError> {
    let examples: Vec<&Example> = data.examples.iter().collect();
    let (train, held_out) = split(&examples, data.num_groups, options)?;
    let fitted = fit_members(&train, &held_out, options, &mut progress)?;
    std::fs::write(out, fitted.head.to_safetensors()?)?;
    let values = fitted.values(&held_out, options);
    let mean_square = |errors: &mut dyn Iterator<Item = f64>| {
        errors.map(|error| error * error).sum::<f64>() / held_out.len() as f64
    };
    let mean = train.iter().map(|e| f64::from(e.value)).sum::<f64>() / train.len() as f64;
    let pairs = || held_out.iter().zip(&values);
    Ok(Report {
        num_train: train.len(),
        num_held_out: held_out.len(),
        best_epoch: fitted.best_epoch,
        mse: mean_square(&mut pairs().map(|(e, value)| f64::from(e.value - value))),
        mse_of_mean: mean_square(&mut pairs().map(|(e, _)| f64::from(e.value) - mean)),
        auc: auc(&held_out, &values),
        choices: choose(&held_out, &values, options.seed),
    })
}

/// All members as one head.
struct Fitted {
    head: Head,
    best_epoch: usize,
}

impl Fitted {
    fn values(&self, examples: &[&Example], options: &TrainOptions) -> Vec<f32> {
        let batch = Batch::new(examples, options.reads_likelihood);
        self.head.values(&batch)
    }
}

fn fit_members(
    train: &[&Example],
    held_out: &[&Example],
    options: &TrainOptions,
    progress: &mut impl FnMut(usize, f64, f64),
) -> Result<Fitted, TrainError> {
    if options.width == 0 {
        return Err(TrainError::Data("width is 0".to_owned()));
    }
    let all = Batch::new(train, options.reads_likelihood);
    let held = Batch::new(held_out, options.reads_likelihood);
    let mut groups: HashMap<usize, Vec<&Example>> = HashMap::new();
    for example in train {
        groups.entry(example.group).or_default().push(example);
    }
    let mut groups: Vec<Vec<&Example>> = groups.into_values().collect();
    groups.sort_unstable_by_key(|group| group[0].group);
    let (mut members, mut best_epoch) = (Vec::new(), 0);
    for member in 0..options.members.max(1) as u64 {
        let seed = options.seed.wrapping_add(member);
        let head = Head::new(&all, options, seed);
        let (epoch, weights) = fit(head, &groups, (&all, &held), options, seed, progress)?;
        members.push(weights);
        best_epoch = best_epoch.max(epoch);
    }
    let head = Head::new(&all, options, 0).with(Weights::join(&members));
    Ok(Fitted { head, best_epoch })
}

/// Fits one member; returns its best epoch and the weights of that epoch.
fn fit(
    mut head: Head,
    groups: &[Vec<&Example>],
    (all, held): (&Batch, &Batch),
    options: &TrainOptions,
    seed: u64,
    progress: &mut impl FnMut(usize, f64, f64),
) -> Result<(usize, Weights), TrainError> {
    let num_weights = head.weights.all.len();
    let mut optimiser = AdamW::new(num_weights, options.learning_rate, options.weight_decay);
    let mut random = Random(seed ^ 0x5EED);
    let mut order = groups.to_vec();
    let mut best: Option<(f64, usize, Weights)> = None;
    for epoch in 1..=options.max_epochs {
        random.shuffle(&mut order);
        for batch in batches(&order, options.batch_size) {
            let batch = Batch::new(&batch, options.reads_likelihood);
            let gradient = head.gradient(&batch, options.pairwise);
            optimiser.step(&mut head.weights.all, &gradient);
        }
        let loss = head.loss(held, options.pairwise);
        progress(epoch, head.loss(all, options.pairwise), loss);
        if best.as_ref().is_none_or(|(lowest, _, _)| loss < *lowest) {
            best = Some((loss, epoch, head.weights.clone()));
        }
        let is_stale = |(_, at, _): &(f64, usize, _)| epoch - at >= options.patience;
        if best.as_ref().is_some_and(is_stale) {
            break;
        }
    }
    let Some((_, epoch, weights)) = best else {
        return Err(TrainError::Data("max_epochs is 0".to_owned()));
    };
    Ok((epoch, weights))
}

/// Trains `folds` heads, each without a share of the prompts, and measures each head on the prompts
/// it has not seen: [`evaluate`]'s figures over all prompts.
pub fn cross_validate(
    data: &Examples,
    options: &TrainOptions,
    folds: usize,
    mut progress: impl FnMut(),
) -> Result<(f64, Choices), TrainError> {
    let (mut examples, mut values) = (Vec::new(), Vec::new());
    for fold in 0..folds {
        let is_tested = |example: &&Example| example.group % folds == fold;
        let (tested, seen): (Vec<&Example>, Vec<&Example>) =
            data.examples.iter().partition(is_tested);
        let (train, held_out) = split(&seen, data.num_groups, options)?;
        let fitted = fit_members(&train, &held_out, options, &mut |_, _, _| {})?;
        values.extend(fitted.values(&tested, options));
        examples.extend(tested);
        progress();
    }
    Ok((
        auc(&examples, &values),
        choose(&examples, &values, options.seed),
    ))
}

/// How a finished head chooses among the answers of all examples.
pub fn evaluate(data: &Examples, head: &ValueHead, seed: u64) -> (f64, Choices) {
    let examples: Vec<&Example> = data.examples.iter().collect();
    let values: Vec<f32> = examples
        .iter()
        .map(|example| head.value(&example.state, example.likelihood) as f32)
        .collect();
    (auc(&examples, &values), choose(&examples, &values, seed))
}

/// Training and held-out examples; all of a prompt's are on one side.
fn split<'e>(
    examples: &[&'e Example],
    num_groups: usize,
    options: &TrainOptions,
) -> Result<(Vec<&'e Example>, Vec<&'e Example>), TrainError> {
    let mut groups: Vec<usize> = (0..num_groups).collect();
    Random(options.seed).shuffle(&mut groups);
    let num_held_out = (num_groups as f64 * options.held_out).round() as usize;
    let mut is_held_out = vec![false; num_groups];
    for group in &groups[..num_held_out.min(groups.len())] {
        is_held_out[*group] = true;
    }
    let (held_out, train): (Vec<&Example>, Vec<&Example>) =
        examples.iter().partition(|e| is_held_out[e.group]);
    if train.is_empty() || held_out.is_empty() {
        return Err(TrainError::Data(format!(
            "{} examples of {num_groups} prompts are too few to train on some and measure on others",
            examples.len(),
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
            members: 2,
            learning_rate: 0.02,
            ..TrainOptions::default()
        };
        let data = examples(80);
        let report = train(&data, &options, &out, |_, _, _| {}).unwrap();
        assert!(report.auc > 0.95, "{report:?}");
        assert!(report.mse < 0.3 * report.mse_of_mean, "{report:?}");
        assert!(report.choices.by_value > report.choices.by_likelihood);
        assert_eq!(report.num_train + report.num_held_out, 320);
        let (auc, choices) = cross_validate(&data, &options, 4, || {}).unwrap();
        assert_eq!(choices.num_prompts, 80, "each prompt is tested once");
        assert!(auc > 0.9 && choices.gain.0 > 0.0, "{auc} {choices:?}");
        let again = train(&data, &options, &out, |_, _, _| {}).unwrap();
        assert_eq!(report, again, "the same seed gives the same head");
        // The served head says what the trained one says.
        let head = ValueHead::load(&out, 6).unwrap();
        assert!(head.reads_likelihood());
        assert!(head.value(&[0.4, 0.0, 0.0, 0.0, 0.0, 0.0], 0.5) > 0.8);
        assert!(head.value(&[-0.4, 0.0, 0.0, 0.0, 0.0, 0.0], 0.5) < 0.2);
        let (auc, choices) = evaluate(&data, &head, 0);
        assert!(
            auc > 0.95 && choices.by_value > choices.by_likelihood,
            "{auc}"
        );
        assert!(ValueHead::load(&out, 8).is_err() && ValueHead::load(&out, 5).is_err());
        assert!(train(&examples(1), &options, &out, |_, _, _| {}).is_err());
    }
}
