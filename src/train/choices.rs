//! How often each way to choose among a prompt's answers finds a right one.

use std::collections::BTreeMap;

use super::examples::Example;
use super::random::Random;

/// Resamples of the interval.
const RESAMPLES: usize = 10_000;

/// Best-of-N over prompts with several whole answers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Choices {
    pub num_prompts: usize,
    /// Shares of the prompts where the chosen answer is right: by value, by likelihood, on average, by an oracle.
    pub by_value: f64,
    pub by_likelihood: f64,
    pub at_random: f64,
    pub by_oracle: f64,
    /// 95 % interval of `by_value - by_likelihood`, a bootstrap over prompts.
    pub gain: (f64, f64),
    /// The probability that a right answer is valued above a wrong one of the same prompt.
    pub auc_within: f64,
}

/// A whole answer.
struct Answer {
    value: f32,
    likelihood: f32,
    outcome: f64,
}

/// Chooses by `values`, one an example.
pub(super) fn choose(examples: &[&Example], values: &[f32], seed: u64) -> Choices {
    let mut groups: BTreeMap<usize, Vec<Answer>> = BTreeMap::new();
    for (example, value) in examples.iter().zip(values) {
        if let Some(outcome) = example.outcome {
            groups.entry(example.group).or_default().push(Answer {
                value: *value,
                likelihood: example.likelihood,
                outcome: f64::from(outcome),
            });
        }
    }
    groups.retain(|_, answers| answers.len() > 1);
    let num_prompts = groups.len();
    let by = |key: fn(&Answer) -> f32| -> Vec<f64> {
        let best = |answers: &Vec<Answer>| {
            let best = answers.iter().max_by(|a, b| key(a).total_cmp(&key(b)));
            best.map_or(0.0, |answer| answer.outcome)
        };
        groups.values().map(best).collect()
    };
    let (by_value, by_likelihood) = (by(|a| a.value), by(|a| a.likelihood));
    let differences: Vec<f64> = by_value
        .iter()
        .zip(&by_likelihood)
        .map(|(a, b)| a - b)
        .collect();
    let averages = groups.values().map(|answers| {
        answers.iter().map(|answer| answer.outcome).sum::<f64>() / answers.len() as f64
    });
    let averages: Vec<f64> = averages.collect();
    Choices {
        num_prompts,
        by_value: mean(&by_value),
        by_likelihood: mean(&by_likelihood),
        at_random: mean(&averages),
        by_oracle: mean(&by(|a| a.outcome as f32)),
        gain: interval(&differences, seed),
        auc_within: auc_within(groups.values()),
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn interval(differences: &[f64], seed: u64) -> (f64, f64) {
    if differences.is_empty() {
        return (0.0, 0.0);
    }
    let mut random = Random(seed);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let draws =
                (0..differences.len()).map(|_| differences[random.below(differences.len())]);
            draws.sum::<f64>() / differences.len() as f64
        })
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| means[(share * (RESAMPLES - 1) as f64).round() as usize];
    (at(0.025), at(0.975))
}

fn auc_within<'a>(groups: impl Iterator<Item = &'a Vec<Answer>>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for answers in groups {
        for right in answers.iter().filter(|answer| answer.outcome > 0.5) {
            for wrong in answers.iter().filter(|answer| answer.outcome <= 0.5) {
                count += 1.0;
                sum += match right.value.total_cmp(&wrong.value) {
                    std::cmp::Ordering::Greater => 1.0,
                    std::cmp::Ordering::Equal => 0.5,
                    std::cmp::Ordering::Less => 0.0,
                };
            }
        }
    }
    if count > 0.0 { sum / count } else { 0.5 }
}
