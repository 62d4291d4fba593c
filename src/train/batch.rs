//! Examples as tensors.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use super::examples::Example;
use super::value_head::TrainError;

/// States and values of some examples as tensors.
pub(super) struct Batch {
    pub states: Tensor,
    pub values: Tensor,
    /// Rows of a right and of a wrong answer to one prompt, pair by pair; absent without any.
    pub pairs: Option<(Tensor, Tensor)>,
}

impl Batch {
    pub(super) fn new(examples: &[&Example], reads_likelihood: bool) -> Result<Self, TrainError> {
        let device = &Device::Cpu;
        let (right, wrong) = pairs(examples);
        let pairs = match right.is_empty() {
            true => None,
            false => Some((Tensor::new(right, device)?, Tensor::new(wrong, device)?)),
        };
        let mut rows: Vec<f32> = Vec::new();
        for example in examples {
            rows.extend(&example.state);
            rows.extend(reads_likelihood.then_some(example.likelihood));
        }
        let num_inputs = rows.len() / examples.len().max(1);
        let values: Vec<f32> = examples.iter().map(|e| e.value).collect();
        Ok(Self {
            states: Tensor::from_vec(rows, (examples.len(), num_inputs), device)?,
            values: Tensor::from_vec(values, examples.len(), device)?,
            pairs,
        })
    }
}

/// Rows of right and wrong whole answers to the same prompt.
fn pairs(examples: &[&Example]) -> (Vec<u32>, Vec<u32>) {
    let mut groups: HashMap<usize, (Vec<u32>, Vec<u32>)> = HashMap::new();
    for (row, example) in examples.iter().enumerate() {
        if let Some(outcome) = example.outcome {
            let (right, wrong) = groups.entry(example.group).or_default();
            let side = if outcome > 0.5 { right } else { wrong };
            side.push(row as u32);
        }
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_unstable_by_key(|(group, _)| *group);
    let (mut rights, mut wrongs) = (Vec::new(), Vec::new());
    for (_, (right, wrong)) in groups {
        for r in &right {
            for w in &wrong {
                rights.push(*r);
                wrongs.push(*w);
            }
        }
    }
    (rights, wrongs)
}

/// Batches of whole groups, of about `size` examples.
pub(super) fn batches<'e>(groups: &[Vec<&'e Example>], size: usize) -> Vec<Vec<&'e Example>> {
    let mut batches: Vec<Vec<&Example>> = vec![Vec::new()];
    for group in groups {
        if batches.last().is_some_and(|batch| batch.len() >= size) {
            batches.push(Vec::new());
        }
        if let Some(batch) = batches.last_mut() {
            batch.extend(group);
        }
    }
    batches
}
